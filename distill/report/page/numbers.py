"""Numbers as a page shows them. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

from distill.report.page.markup import Markup, el
from distill.report.stats import Summary, summary
from distill.report.verdicts import ALPHA

MINUS = "\u2212"
_NEGATIVE = re.compile(r"(?<![\w.)-])-(?=\d)")
_ZERO = re.compile(r"(?<![\w.)])[-+](0(?:\.0+)?)(?![\d.])")


def summarised(values: Mapping[int, float]) -> Summary | None:
    """Over seeds; None where there are none."""
    return summary(list(values.values())) if values else None


def with_half(found: Summary | None, scale: float = 100, digits: int = 1) -> str:
    """`97.2 ± 0.3`."""
    if found is None:
        return "-"
    mean = f"{scale * found.mean:.{digits}f}"
    return mean if found.half is None else f"{mean} ± {scale * found.half:.{digits}f}"


def number(words: str) -> Markup:
    """A number in a column: what stands behind `±`, or in brackets, is quieter; the numbers before it are aligned."""
    words = words.replace("->", "→")
    for sign, shown in ((" ± ", "± "), (" (", "(")):
        head, found, tail = words.partition(sign)
        if found:
            return el("span", typeset(head), el("span", " ", shown + typeset(tail), class_="pm"), class_="n")
    return el("span", typeset(words) if words not in ("-", "") else "–" if words else "", class_="n")


def typeset(words: str) -> str:
    """With true minus signs, and none before a zero."""
    return _NEGATIVE.sub(MINUS, _ZERO.sub(r"\1", words))


def points(value: float, signed: bool = True) -> str:
    """`+1.7`, `−0.4`: a difference of shares, in points."""
    return typeset(f"{100 * value:{'+' if signed else ''}.1f}")


def p_text(value: float) -> str:
    """`p = .013`."""
    return "p < .001" if value < 0.001 else f"p = {value:.3f}".replace("= 0.", "= .")


def claim(mean: float | None, p: float | None) -> str:
    """What can be said of a difference: "up", "down" or "open"."""
    if mean is None or p is None or p >= ALPHA:
        return "open"
    return "up" if mean > 0 else "down"


SIGNS = {"up": "▲", "down": "▼", "open": "○"}
