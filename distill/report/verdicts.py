"""What a paired difference in accuracy allows to be said, in a plain sentence. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.stats import Paired

ALPHA = 0.05


def verdict(network: str, first: str, second: str, found: Paired, p_holm: float | None, family: int) -> str:
    """One sentence. A difference is claimed only when Holm's correction leaves it one.

    Args:
        network: "teacher" or "student".
        first: name of an arm.
        second: name of another.
        found: accuracy of the first less that of the second, as shares of 1.
        p_holm: the corrected p value; None: there is none.
        family: pairs that the correction is over; 0 for a control, whose p value is not corrected.
    """
    whose = f"{network}s: "
    if found.difference is None:
        return f"{whose}{first} and {second} have no seed in common, so nothing can be said"
    points = 100 * found.difference.mean
    p = found.p if family == 0 else p_holm
    if found.difference.interval is None or p is None:
        than = "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
        at = f"at the one seed that both have ({found.seeds[0]})"
        return f"{whose}{first} is {than} {second} {at}; one seed gives no interval, so no difference can be claimed"
    low, high = (100 * bound for bound in found.difference.interval)
    seeds = f"{len(found.seeds)} seeds"
    correction = _p(p) + (f" after Holm's correction over {family} pairs" if family > 1 else "")
    if found.detectable is None:
        at_all = f"{points:+.1f} points at every one of {seeds}, so no interval can be given ({correction})"
        if p >= ALPHA:
            return f"{whose}no difference can be claimed between {first} and {second}: {at_all}"
        return f"{whose}{first} {_beats(points)} {second}: {at_all}"
    if p >= ALPHA:
        least = f"less than {100 * found.detectable:.1f} points would mostly go unnoticed with so few seeds"
        return (
            f"{whose}no difference can be claimed between {first} and {second}: {points:+.1f} points, interval "
            f"{low:.1f} to {high:.1f}, {seeds} ({correction}); {least}"
        )
    if points < 0:
        low, high = -high, -low
    return (
        f"{whose}{first} {_beats(points)} {second} by {abs(points):.1f} points, interval {low:.1f} to {high:.1f}, "
        f"{seeds} ({correction})"
    )


def untold(network: str, names: Sequence[str]) -> str:
    """One sentence about arms that have no finished seed."""
    return f"{network}s: nothing can be said about {', '.join(names)}, as no seed of them is finished"


def _beats(points: float) -> str:
    return "beats" if points > 0 else "loses to"


def _p(value: float) -> str:
    """`p = .013`, `p < .001`."""
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("= 0", "= ")
