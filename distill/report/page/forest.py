"""Paired differences, one under the other, with their intervals. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.recipe.grid import UNTRAINED
from distill.report.comparison import MAIN, Comparison
from distill.report.comparison_parts import Difference
from distill.report.page.markup import Markup, el
from distill.report.page.numbers import MINUS, SIGNS, p_text, points
from distill.report.page.svg import Scale, span, tick_text
from distill.report.page.verdicts import judge

_HEIGHT = 26  # of a row, in pixels
_FAR = 4.0  # times the largest mean: intervals that reach farther are cut off there


def forest(comparison: Comparison) -> Markup | None:
    """One block for each network, students first; None where nothing can be drawn."""
    blocks = []
    for network in reversed(comparison.networks):
        found = [each for each in comparison.differences if (each.network, each.metric) == (network, MAIN)]
        found = [each for each in found if each.paired.difference is not None]
        found.sort(key=lambda each: (not each.family, comparison.reference not in (each.first, each.second)))
        if found:
            blocks.append(_block(f"{network}s".capitalize(), found))
    return el("figure", blocks, el("figcaption", _caption(comparison))) if blocks else None


def _caption(comparison: Comparison) -> str:
    text = "Test accuracy of the first less that of the second, in points, after the last epoch."
    if len(comparison.seeds) < 2:
        return f"{text} One seed gives no interval."
    only = f" with {comparison.reference}" if comparison.recipe.compare.pairs == "reference" else ""
    return (
        f"{text} Dot: mean over the seeds that both have; line: 95 % interval (paired by seed, Student's t); p after "
        f"Holm's correction over the pairs of arms{only}, uncorrected for controls. "
        f"{SIGNS['up']} and {SIGNS['down']}: p below .05."
    )


def _block(title: str, found: Sequence[Difference]) -> Markup:
    scale = _scale(found)
    ticks = scale.ticks(5)
    rows = [_row(each, scale, ticks) for each in found]
    return el("div", el("h3", title), el("div", rows, _axis(scale, ticks), class_="forest"))


def _scale(found: Sequence[Difference]) -> Scale:
    """In points, to per cent of the track's width."""
    shown = [each.paired.difference for each in found if each.first != UNTRAINED and each.paired.difference]
    means = [100 * each.mean for each in shown] or [0.0]
    bounds = [100 * b for each in shown for b in each.interval or ()]
    far = max(1.0, _FAR * max(abs(mean) for mean in means))
    low, high = span([0.0, *means, *(min(max(b, -far), far) for b in bounds)], least=0.5)
    return Scale(low, high, 2.0, 98.0)


def _row(each: Difference, scale: Scale, ticks: Sequence[float]) -> Markup:
    found = each.paired.difference
    assert found is not None
    judged = judge(each)
    middle = _HEIGHT / 2
    marks = [_upright(scale(tick), "zero" if abs(tick) < 1e-9 else "grid") for tick in ticks]
    said = points(found.mean)
    if found.interval is not None:
        low, high = (100 * bound for bound in found.interval)
        marks.append(_level(scale.held(low), scale.held(high), middle, f"bar {judged}"))
        marks += [_arrow(bound, scale, middle, judged) for bound in (low, high) if scale.held(bound) != scale(bound)]
        said += f" ({points(low / 100, signed=False)} to {points(high / 100, signed=False)})"
    marks.append(_mean(100 * found.mean, scale, middle, judged))
    p = each.p_holm if each.family else each.paired.p
    names = [each.first, el("span", f" {MINUS} ", class_="quiet"), each.second]
    track = el("svg", marks, class_="track", height=_HEIGHT, role="img", aria_label=said)
    told = [el("span", said), el("span", "" if p is None else p_text(p), class_="quiet p")]
    sign = el("span", SIGNS[judged], class_=f"sign {judged}", aria_hidden="true")
    return el(
        "div", el("div", sign, el("span", names), class_="who"), track, el("div", told, class_="told"), class_="r"
    )


def _mean(value: float, scale: Scale, y: float, judged: str) -> Markup:
    """A dot; an arrow where it is off the scale, as an untrained teacher's students are."""
    if scale.low <= value <= scale.high:
        return el("circle", cx=f"{scale(value):.2f}%", cy=y, r=4.5, class_=f"mark {judged}")
    return _arrow(value, scale, y, judged)


def _arrow(value: float, scale: Scale, y: float, judged: str) -> Markup:
    x, sign = ("0%", "◂") if value < scale.low else ("100%", "▸")
    return el("text", sign, x=x, y=y + 4.5, text_anchor="start" if x == "0%" else "end", class_=f"mark off {judged}")


def _axis(scale: Scale, ticks: Sequence[float]) -> Markup:
    words = [
        el("text", tick_text(tick, ticks), x=f"{scale(tick):.2f}%", y=12, text_anchor="middle", class_="tick")
        for tick in ticks
    ]
    svg = el("svg", words, class_="track", height=18, aria_hidden="true")
    unit = el("div", "points", class_="told quiet")
    return el("div", el("div", class_="who"), svg, unit, class_="r axis")


def _upright(x: float, class_: str) -> Markup:
    return el("line", x1=f"{x:.2f}%", x2=f"{x:.2f}%", y1=0, y2=_HEIGHT, class_=class_)


def _level(x1: float, x2: float, y: float, class_: str) -> Markup:
    return el("line", x1=f"{x1:.2f}%", x2=f"{x2:.2f}%", y1=y, y2=y, class_=class_)
