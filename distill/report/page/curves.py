"""How the teachers came along, epoch by epoch: a panel for each arm, the others behind it in grey. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from distill.report.arm_curves import TITLES, Curve, arm_curves
from distill.report.comparison import Comparison
from distill.report.page.markup import Markup, el
from distill.report.page.svg import Scale, curve, line, picture, span, text, tick_text

_WIDTH, _HEIGHT = 320.0, 180.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 12.0, 22.0, 36.0


def curves(comparison: Comparison) -> Markup | None:
    """Validation accuracy, and of labels that move the share that is right; None where no curve is known."""
    blocks = [_block(arm_curves(comparison, quantity), title) for quantity, title in TITLES.items()]
    if not any(blocks):
        return None
    note = "Thick line: mean over the seeds. Thin lines: seeds. Grey: the other arms."
    return el("div", blocks, el("p", note, class_="caption"))


def _block(found: Sequence[Curve], title: str) -> Markup | None:
    longest = max((len(each.mean) for each in found), default=0)
    if longest < 2:
        return None
    low, high = span([100 * value for each in found for value in (*each.lowest, *each.highest)], least=1.0)
    epochs = Scale(1.0, float(longest), _LEFT, _WIDTH - _RIGHT)
    share = Scale(max(low, -2.0), min(high, 102.0), _HEIGHT - _BOTTOM, _TOP)
    panels = [
        el("figure", el("h3", each.arm), _panel(each, found, epochs, share, title), class_="panel") for each in found
    ]
    return el("div", panels, class_="panels")


def _panel(own: Curve, found: Sequence[Curve], epochs: Scale, share: Scale, title: str) -> Markup:
    others = [_line(each.mean, epochs, share, "behind") for each in found if each is not own]
    seeds = [_line(values, epochs, share, "seed") for values in own.seeds.values()] if len(own.seeds) > 1 else []
    what = f"{own.arm}: {title} after each epoch"
    return picture(
        _WIDTH, _HEIGHT, what, _frame(epochs, share, title), others, seeds, _line(own.mean, epochs, share, "c0")
    )


def _line(values: Sequence[float], epochs: Scale, share: Scale, colour: str) -> Markup:
    return curve([(epochs(k), share(100 * value)) for k, value in enumerate(values, start=1)], f"curve {colour}")


def _frame(epochs: Scale, share: Scale, title: str) -> list[Markup]:
    marks, ticks = [], share.ticks(4)
    for tick in ticks:
        marks.append(line(_LEFT, share(tick), _WIDTH - _RIGHT, share(tick), "grid"))
        marks.append(text(_LEFT - 6, share(tick) + 4, tick_text(tick, ticks), "tick", "end"))
    for tick in epochs.ticks(5):
        if tick == round(tick):
            marks.append(text(epochs(tick), _HEIGHT - _BOTTOM + 15, f"{tick:.0f}", "tick"))
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    return [*marks, text(middle, _HEIGHT - 5, "epoch", "label"), text(0, 9, title, "label", "start")]
