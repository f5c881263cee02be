"""Reliability diagrams: how often a network is right, against how sure it is. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.calibration import Calibration
from distill.report.comparison import Comparison
from distill.report.page.markup import Child, Markup, el
from distill.report.page.numbers import summarised, with_half
from distill.report.page.svg import at, line, picture, text
from distill.store.bins import Bin

_SIDE, _LEFT, _TOP, _BELOW = 150.0, 30.0, 6.0, 58.0
_BARS = 20.0  # height of the histogram beneath
_ROOT = 0.5  # bars are as high as the square root of a bin's share, or the rare ones would not be seen


def reliability(comparison: Comparison, found: Sequence[Calibration]) -> Markup | None:
    """A small panel for each row, students first; None where nothing is known."""
    blocks = []
    for network in reversed(comparison.networks):
        own = [each for each in found if each.network == network]
        if own:
            panels = [_panel(comparison, each) for each in own]
            blocks.append(el("div", el("h3", f"{network}s".capitalize()), el("div", panels, class_="panels small")))
    if not blocks:
        return None
    note = (
        "Test images in bins of confidence, the probability of the likeliest class, all seeds together. Bar: share "
        "that is right; a calibrated network's bars end on the diagonal. Pale: more often right than sure; orange: "
        "surer than right. Beneath: how many images each bin has (height: square root of its share)."
    )
    return el("div", blocks, el("p", note, class_="caption"))


def _panel(comparison: Comparison, each: Calibration) -> Markup:
    ece = summarised(comparison.row(each.name, each.network).values("test_ece"))
    name = f"{each.name} (control)" if each.control else each.name
    title = f"Reliability of {name}, {each.network}"
    marks: list[Child] = [
        _frame(),
        [_bar(k, len(each.bins), bin_) for k, bin_ in enumerate(each.bins)],
        _histogram(each.bins),
    ]
    diagonal = line(_LEFT, _TOP + _SIDE, _LEFT + _SIDE, _TOP, "diagonal")
    chart = picture(_LEFT + _SIDE + 6, _TOP + _SIDE + _BELOW, title, marks, diagonal)
    below = el("p", f"ECE {with_half(ece)} %", class_="quiet")
    return el("figure", el("h4", name), chart, below, class_="panel")


def _frame() -> list[Markup]:
    bottom, middle = _TOP + _SIDE, _LEFT + _SIDE / 2
    marks = []
    for share in (0.0, 0.5, 1.0):
        y, x = bottom - share * _SIDE, _LEFT + share * _SIDE
        marks.append(line(_LEFT, y, _LEFT + _SIDE, y, "grid"))
        marks.append(text(_LEFT - 5, y + 4, f"{100 * share:.0f}", "tick", "end"))
        marks.append(text(x, bottom + _BARS + 18, f"{100 * share:.0f}", "tick"))
    return [*marks, text(middle, bottom + _BARS + 33, "confidence %", "label")]


def _bar(k: int, count: int, bin_: Bin) -> list[Markup]:
    if not bin_.count:
        return []
    width, bottom = _SIDE / count, _TOP + _SIDE
    low, high = sorted((bin_.accuracy, bin_.confidence))
    gap = "under" if bin_.accuracy > bin_.confidence else "over"
    return [
        _rect(_LEFT + k * width, bottom - low * _SIDE, width, low * _SIDE, "right"),
        _rect(_LEFT + k * width, bottom - high * _SIDE, width, (high - low) * _SIDE, gap),
    ]


def _histogram(bins: Sequence[Bin]) -> list[Markup]:
    total, width = max(1, sum(each.count for each in bins)), _SIDE / len(bins)
    top = _TOP + _SIDE + 3
    return [
        _rect(_LEFT + k * width, top, width, _BARS * (each.count / total) ** _ROOT, "many", f"{each.count} images")
        for k, each in enumerate(bins)
        if each.count
    ]


def _rect(x: float, y: float, width: float, height: float, class_: str, title: str = "") -> Markup:
    place = {"x": at(x + 0.5), "y": at(y), "width": at(width - 1), "height": at(max(height, 0.0))}
    rect = el("rect", **place, class_=class_)
    return el("g", el("title", title), rect) if title else rect
