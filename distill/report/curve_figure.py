"""How a comparison's teachers came along, as one picture. No torch; matplotlib is imported where it is used."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.report.arm_curves import TITLES, Curve, arm_curves
from distill.report.comparison import Comparison
from distill.report.figures import new_figure, save, short

_COLOURS = (
    "#59636e",
    "#a84a05",
    "#1a7a5e",
    "#0a5f9e",
    "#94437c",
    "#7a6a00",
    "#b3261e",
    "#3f83b6",
    "#2b3037",
    "#d6a419",
)


def curve_figure(comparison: Comparison, path: Path) -> bool:
    """Validation accuracy after each epoch and, where labels move, the share that is right: mean, lowest to highest.

    Args:
        comparison: the numbers.
        path: a PNG; not written where no curve is known.

    Returns:
        Whether there was anything to draw.
    """
    found = {title: arm_curves(comparison, quantity) for quantity, title in TITLES.items()}
    found = {title: each for title, each in found.items() if each}
    if not found:
        return False
    names = comparison.recipe.compare.names
    figure = new_figure(4.6 * len(found) + 1.2, 3.6)
    axes = figure.subplots(1, len(found), squeeze=False).ravel()
    for axis, (title, each) in zip(axes, found.items(), strict=True):
        _draw(axis, each, names)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
    figure.legend(handles=axes[0].lines, fontsize=8, frameon=False, loc="outside lower center", ncols=5)
    save(figure, path)
    return True


def _draw(axis: Any, found: Sequence[Curve], names: Sequence[str]) -> None:
    for each in found:
        place = names.index(each.arm)
        colour, style = _COLOURS[place % len(_COLOURS)], "-" if place < len(_COLOURS) else "--"
        epochs = range(1, len(each.mean) + 1)
        low, mean, high = ([100 * value for value in values] for values in (each.lowest, each.mean, each.highest))
        axis.plot(epochs, mean, style, color=colour, label=short(each.arm, 24), linewidth=1.6)
        if len(each.seeds) > 1:
            axis.fill_between(epochs, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.set_ylim(top=min(axis.get_ylim()[1], 101.0))  # shares
    axis.set_ylim(bottom=100 * 0.98 * min(min(each.mean) for each in found))  # one bad seed must not flatten the rest
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.tick_params(labelsize=8)
    axis.grid(color="#d1d9e0", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
