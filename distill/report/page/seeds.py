"""Every seed as a line between the arms: whether differences are the same at each. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill.report.comparison import MAIN, Comparison
from distill.report.comparison_parts import Network
from distill.report.page.markup import Markup, el
from distill.report.page.numbers import summarised, with_half
from distill.report.page.svg import Scale, curve, dot, line, picture, span, text, tick_text

_WIDTH, _ROW = 440.0, 44.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 108.0, 14.0, 8.0, 34.0
_NAME = 15  # letters


def seeds(comparison: Comparison) -> Markup | None:
    """A panel for each network; None where there is one seed, or one arm."""
    compare = comparison.recipe.compare
    if len(comparison.seeds) < 2 or len(compare.names) < 2:
        return None
    panels = []
    for network in reversed(comparison.networks):
        values = {name: comparison.row(name, network).values(MAIN) for name in compare.names}
        if any(len(each) > 1 for each in values.values()):
            chart = _panel(network, values, comparison.seeds)
            panels.append(el("figure", el("h3", f"{network}s".capitalize()), chart, class_="panel wide"))
    if not panels:
        return None
    note = (
        "Thin line: one seed. Thick mark: mean. Where lines run side by side, the difference is the same at each seed."
    )
    return el("div", el("div", panels, class_="panels"), el("p", note, class_="caption"))


def _panel(network: Network, values: Mapping[str, Mapping[int, float]], order: Sequence[int]) -> Markup:
    height = _TOP + _ROW * len(values) + _BOTTOM
    low, high = span([100 * v for each in values.values() for v in each.values()], least=1.0)
    scale = Scale(max(low, -1.0), min(high, 101.0), _LEFT, _WIDTH - _RIGHT)
    rows = {name: _TOP + _ROW * (k + 0.5) for k, name in enumerate(values)}
    return picture(
        _WIDTH,
        height,
        f"Test accuracy of {network}s, by arm and seed",
        _frame(scale, rows, height),
        [_seed(seed, values, scale, rows) for seed in order],
        [_mean(each, scale, rows[name]) for name, each in values.items()],
    )


def _frame(scale: Scale, rows: Mapping[str, float], height: float) -> list[Markup]:
    ticks, bottom = scale.ticks(5), height - _BOTTOM
    marks = []
    for tick in ticks:
        marks.append(line(scale(tick), _TOP, scale(tick), bottom, "grid"))
        marks.append(text(scale(tick), bottom + 14, tick_text(tick, ticks), "tick"))
    for name, y in rows.items():
        short = name if len(name) <= _NAME else name[: _NAME - 1] + "…"
        marks.append(text(0, y + 4, short, "name", "start", full=name))
    return [*marks, text((_LEFT + _WIDTH - _RIGHT) / 2, height - 4, "test accuracy %", "label")]


def _seed(seed: int, values: Mapping[str, Mapping[int, float]], scale: Scale, rows: Mapping[str, float]) -> Markup:
    """A line through the arms that have this seed, broken where one lacks it."""
    pieces: list[list[tuple[float, float]]] = [[]]
    dots = []
    for name, each in values.items():
        if seed not in each:
            pieces.append([])
            continue
        place = scale(100 * each[seed]), rows[name]
        pieces[-1].append(place)
        dots.append(dot(*place, 3, "dot seed", f"seed {seed}: {100 * each[seed]:.1f} %"))
    return el("g", [curve(piece, "curve seed") for piece in pieces if len(piece) > 1], dots)


def _mean(values: Mapping[int, float], scale: Scale, y: float) -> Markup | None:
    found = summarised(values)
    if found is None:
        return None
    x = scale(100 * found.mean)
    mark = el("line", x1=round(x, 1), x2=round(x, 1), y1=y - 12, y2=y + 12, class_="mean")
    return el("g", el("title", f"mean {with_half(found)} %"), mark)
