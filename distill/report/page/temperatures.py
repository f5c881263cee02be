"""Students' accuracy against temperature: a panel for each teacher, the others behind it in grey. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.recipe.grid import shortest
from distill.report.comparison import MAIN, Comparison
from distill.report.comparison_parts import Choice
from distill.report.page.markup import Markup, el
from distill.report.page.numbers import summarised, with_half
from distill.report.page.svg import Scale, at, curve, dot, line, picture, span, text, tick_text
from distill.report.stats import Summary

_WIDTH, _HEIGHT = 320.0, 216.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 22.0, 36.0
_COLOURS = 6  # curves that are told apart
_APART = 3.0  # between the marks of two curves at one temperature


@dataclass(frozen=True)
class _Places:
    """Where temperatures and losses without one stand, and how high accuracies are."""

    temperature: Scale | None  # of its logarithm
    alone: float  # where losses without a temperature stand
    accuracy: Scale

    def x(self, temperature: float | None) -> float:
        if temperature is None or self.temperature is None:
            return self.alone
        return self.temperature(math.log(temperature))


def temperatures(comparison: Comparison) -> Markup | None:
    """A curve for each loss and weight; None where no arm has two students to choose between."""
    compare = comparison.recipe.compare
    found = {arm: _summaries(comparison, arm) for arm in (compare.names if compare.students else ())}
    found = {arm: each for arm, each in found.items() if each}
    if not found or all(len(each) < 2 for each in found.values()):
        return None
    names = list(dict.fromkeys(choice.words for each in found.values() for choice in each))
    places = _places(found)
    panels = [
        el("figure", el("h3", arm), _panel(arm, found, places, names, comparison.chosen(arm)), class_="panel")
        for arm in found
    ]
    return el("div", _legend(names), el("div", panels, class_="panels"))


def _summaries(comparison: Comparison, arm: str) -> dict[Choice, Summary]:
    found = {}
    for choice, results in comparison.grid(arm).items():
        values = {seed: r.metrics[MAIN] for seed, r in results.items() if math.isfinite(r.metrics.get(MAIN, math.nan))}
        one = summarised(values)
        if one is not None:
            found[choice] = one
    return found


def _temperatures(found: Mapping[str, Mapping[Choice, Summary]]) -> set[float | None]:
    return {choice.temperature for each in found.values() for choice in each}


def _places(found: Mapping[str, Mapping[Choice, Summary]]) -> _Places:
    every = [one for each in found.values() for one in each.values()]
    bounds = [100 * b for one in every for b in (one.interval or (one.mean, one.mean))]
    means = [100 * one.mean for one in every]
    reach = max(2.0, 1.5 * (max(means) - min(means)))  # two seeds have intervals that would flatten everything else
    low, high = span([*means, *(min(max(b, min(means) - reach), max(means) + reach) for b in bounds)], least=1.0)
    all_of_them = _temperatures(found)
    known, alone = sorted(t for t in all_of_them if t is not None), None in all_of_them
    start = _LEFT + (44.0 if alone and known else 14.0)
    wide = Scale(math.log(known[0]), math.log(known[-1]), start, _WIDTH - _RIGHT - 14) if len(known) > 1 else None
    if len(known) == 1:
        wide = Scale(math.log(known[0]) - 1, math.log(known[0]) + 1, start, _WIDTH - _RIGHT - 14)
    accuracy = Scale(max(low, -2.0), min(high, 102.0), _HEIGHT - _BOTTOM, _TOP)
    return _Places(wide, _LEFT + 18 if known else (_LEFT + _WIDTH - _RIGHT) / 2, accuracy)


def _panel(
    arm: str,
    found: Mapping[str, Mapping[Choice, Summary]],
    places: _Places,
    names: Sequence[str],
    chosen: Choice | None,
) -> Markup:
    others = [_curves(each, places, names, None) for other, each in found.items() if other != arm]
    own = _curves(found[arm], places, names, chosen)
    title = f"Test accuracy of {arm}'s students against temperature"
    return picture(_WIDTH, _HEIGHT, title, _frame(found, places), others, own)


def _frame(found: Mapping[str, Mapping[Choice, Summary]], places: _Places) -> list[Markup]:
    ticks = places.accuracy.ticks(4)
    marks = []
    for tick in ticks:
        y = places.accuracy(tick)
        marks.append(line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
        marks.append(text(_LEFT - 6, y + 4, tick_text(tick, ticks), "tick", "end"))
    last, bottom = -99.0, _HEIGHT - _BOTTOM
    for temperature in sorted(_temperatures(found), key=lambda t: t or 0.0):
        x = places.x(temperature)
        if x - last >= 22 or temperature is None:
            marks.append(text(x, bottom + 15, "none" if temperature is None else shortest(temperature), "tick"))
            last = x
    marks.append(text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 5, "temperature", "label"))
    return [*marks, text(0, 9, "accuracy %", "label", "start")]


def _curves(
    found: Mapping[Choice, Summary], places: _Places, names: Sequence[str], chosen: Choice | None
) -> list[Markup]:
    """Of one arm; in colour with intervals where it is the panel's own, which `chosen` is given for."""
    behind = chosen is None
    marks: list[Markup] = []
    for name in dict.fromkeys(choice.words for choice in found):
        place = names.index(name)
        colour = "behind" if behind else f"c{place % _COLOURS}"
        order = sorted((choice for choice in found if choice.words == name), key=lambda each: each.temperature or 0.0)
        shift = _APART * (place - (len(names) - 1) / 2)
        shown = [(places.x(each.temperature) + shift, places.accuracy(100 * found[each].mean)) for each in order]
        if len(shown) > 1:
            marks.append(curve(shown, f"curve {colour}"))
        if not behind:
            for choice, (x, _) in zip(order, shown, strict=True):
                marks += _marks(x, choice, found[choice], places.accuracy, colour, chosen)
        elif len(shown) == 1:
            marks.append(dot(*shown[0], 2.5, "dot behind"))
    return marks


def _marks(x: float, choice: Choice, one: Summary, scale: Scale, colour: str, chosen: Choice | None) -> list[Markup]:
    marks = []
    if one.interval is not None:
        low, high = (scale.held(100 * bound) for bound in one.interval)
        marks.append(line(x, low, x, high, f"whisker {colour}"))
    at_t = "" if choice.temperature is None else f", T {shortest(choice.temperature)}"
    title = f"{choice.words}{at_t}: {with_half(one)} %"
    y = scale(100 * one.mean)
    if chosen == choice:
        marks.append(el("circle", cx=at(x), cy=at(y), r=8, class_=f"ring {colour}"))
    return [*marks, dot(x, y, 4, f"dot {colour}", title)]


def _legend(names: Sequence[str]) -> Markup:
    swatch = el("svg", el("circle", cx=9, cy=9, r=7.5, class_="ring c0"), dot(9, 9, 4, "dot c0"), width=18, height=18)
    items = [el("li", swatch, "chosen by validation")]
    if len(names) > 1:
        dots = [el("svg", dot(6, 9, 4, f"dot c{k % _COLOURS}"), width=12, height=18) for k in range(len(names))]
        items = [el("li", mark, name) for mark, name in zip(dots, names, strict=True)] + items
    grey = el("svg", line(0, 9, 18, 9, "curve behind"), width=18, height=18)
    return el("ul", items, el("li", grey, "the other arms"), class_="legend")
