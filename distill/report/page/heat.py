"""Mean learned labels of each given class, in shades on a logarithmic scale. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill.report.label_means import LabelMap, LabelMaps, Means
from distill.report.page.markup import Markup, el
from distill.report.page.svg import Scale, at, picture, text

_PLOT = 250.0  # side of the squares together
_LEVELS = 7  # shades; the style sheet has h1 to h7
_DECADES = 3.0
_NAME = 11  # letters
_LETTER = 5.6  # width of one, about


def heat_maps(found: LabelMaps) -> Markup:
    """A panel for each teacher, all in the same shades."""
    shades = _shades([each.means for each in found.maps])
    panels = [_panel(each, found.names, shades) for each in found.maps]
    shown = f"the {len(found.names)} classes that are confused most of {found.classes}, " * (
        len(found.names) < found.classes
    )
    note = (
        f"Labels after learning, mean over the training images given as each class, {shown}seed {found.seed}. "
        "Row: given as; column: learned for. On the diagonal: what the given class keeps, in %."
    )
    return el("div", el("div", panels, class_="panels"), _legend(shades), el("p", note, class_="caption"))


def _shades(tables: Sequence[Means]) -> Scale:
    """From the logarithm of a probability to the number of a shade: all there are, or the largest decades of them."""
    off = [float(v) for means in tables for k, row in enumerate(means) for j, v in enumerate(row) if j != k and v > 0]
    most = max([1e-3, *off])
    least = max(min([most, *off]) * 0.9, most / 10**_DECADES)
    return Scale(math.log10(min(least, most / 3)), math.log10(most), 0.0, _LEVELS)


def _panel(each: LabelMap, names: Sequence[str], shades: Scale) -> Markup:
    count = len(names)
    short = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names]
    margin = max(18.0, _LETTER * max(map(len, short)) + 10)
    side = _PLOT / count
    marks: list[Markup] = [el("rect", x=at(margin), y=0, width=at(_PLOT), height=at(_PLOT), class_="h0")]
    for level in range(1, _LEVELS + 1):
        cells = [(k, j) for k in range(count) for j in range(count) if k != j]
        marks.append(_squares([c for c in cells if _level(each.means[c], shades) == level], margin, side, f"h{level}"))
    marks.append(_squares([(k, k) for k in range(count)], margin, side, "kept"))
    for k in range(count):
        middle = (k + 0.5) * side
        marks.append(text(margin - 6, middle + 4, short[k], "tick", "end", full=names[k]))
        marks.append(_upright(margin + middle, _PLOT + 6, short[k], names[k]))
        if count <= 12:
            kept = f"{100 * each.means[k, k]:.0f}"
            marks.append(text(margin + middle, middle + 4, kept, "tick on"))
    chart = picture(margin + _PLOT + 2, _PLOT + margin, f"Mean learned labels of {each.arm}", marks)
    return el("figure", el("h3", each.arm), chart, class_="panel")


def _level(value: float, shades: Scale) -> int:
    """0: nothing to see; else one of the shades, on a logarithmic scale."""
    if value <= 0:
        return 0
    return min(_LEVELS, max(0, math.ceil(shades(math.log10(value)))))


def _squares(cells: Sequence[tuple[int, int]], margin: float, side: float, class_: str) -> Markup:
    """All squares of one shade, as one path."""
    size = at(side - 0.5)
    path = "".join(f"M{at(margin + j * side)} {at(k * side)}h{size}v{size}h-{size}z" for k, j in cells)
    return el("path", d=path or "M0 0", class_=class_)


def _upright(x: float, y: float, words: str, full: str) -> Markup:
    """Words along a column; single letters and digits stand as they are."""
    if len(words) < 3:
        return text(x, y + 9, words, "tick", full=full)
    title = el("title", full) if full != words else None
    turned = f"rotate(-90 {at(x)} {at(y)})"
    return el("text", title, words, x=at(x), y=at(y + 3.5), class_="tick", text_anchor="end", transform=turned)


def _legend(scale: Scale) -> Markup:
    shades = [
        el(
            "span",
            el("i", class_=f"swatch h{k}"),
            _percent(10 ** (scale.low + (k - 0.5) / _LEVELS * (scale.high - scale.low))),
        )
        for k in range(1, _LEVELS + 1)
    ]
    return el("p", el("span", "mean probability, about %:"), shades, class_="legend shades")


def _percent(value: float) -> str:
    return f"{float(f'{100 * value:.1g}'):g}"
