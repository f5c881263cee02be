"""What figures are drawn with: scales, ticks, marks. Colours and type are the style sheet's. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from distill.report.page.markup import Child, Markup, el

_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True)
class Scale:
    """From a value to a place."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def held(self, value: float) -> float:
        """The place of a value, or the end that it lies beyond."""
        return self(min(max(value, self.low), self.high))

    def ticks(self, about: int = 4) -> list[float]:
        """Round numbers within, about so many."""
        rough = (self.high - self.low) / max(about, 1)
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(k * power for k in _STEPS if k * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def span(values: Iterable[float], *, least: float, room: float = 0.06) -> tuple[float, float]:
    """From the smallest to the largest, with some room on both sides; at least `least` wide."""
    found = list(values)
    low, high = (min(found), max(found)) if found else (0.0, 0.0)
    lack = max(0.0, least - (high - low)) / 2
    edge = room * max(high - low, least)
    return low - lack - edge, high + lack + edge


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """A tick's number, with as many decimals as the steps between them need; a true minus sign."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    digits = next((d for d in range(4) if abs(round(step, d) - step) < 1e-9), 4)
    return f"{value if abs(value) > 1e-9 else 0.0:.{digits}f}".replace("-", "\u2212")


def at(place: float) -> str:
    """A coordinate, to a tenth."""
    return f"{place:.1f}".removesuffix(".0")


def picture(width: float, height: float, title: str, *children: Child, class_: str = "chart") -> Markup:
    """An SVG that is as wide as its place, up to what its style allows."""
    return el(
        "svg",
        el("title", title),
        *children,
        viewbox=f"0 0 {at(width)} {at(height)}",
        role="img",
        class_=class_,
        style=f"max-width:{at(width)}px",
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return el("line", x1=at(x1), y1=at(y1), x2=at(x2), y2=at(y2), class_=class_)


def text(x: float, y: float, words: str, class_: str = "", anchor: str = "middle", full: str = "") -> Markup:
    """Words; `full` is shown where the pointer rests on them."""
    title = el("title", full) if full and full != words else None
    return el("text", title, words, x=at(x), y=at(y), class_=class_ or None, text_anchor=anchor)


def dot(x: float, y: float, radius: float, class_: str, title: str = "") -> Markup:
    """A round mark."""
    return el("g", el("title", title) if title else None, el("circle", cx=at(x), cy=at(y), r=at(radius), class_=class_))


def curve(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points."""
    return el("polyline", points=" ".join(f"{at(x)},{at(y)}" for x, y in points), class_=class_)
