"""Pictures of learned labels: where their probability goes, how they changed, how sure they are. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.report.figures import QUIET, RIGHT, UNKNOWN, WRONG, new_figure, save, short
from distill.report.relations import Relation

_COLUMNS = 3  # panels beside each other
_DECADES = 3  # that the colours of a heat map reach over
_NAMED = 8  # pairs of classes that a chart names
_MARKS = 9  # numbers along an axis
_BLUE, _ORANGE = "#0969da", "#bc4c00"


def heat_map(path: Path, panels: Mapping[str, NDArray[np.float64]], names: Sequence[str], note: str) -> None:
    """Mean learned labels of each given class, a panel for each time. The diagonal is in numbers, the rest in colours.

    Args:
        path: a PNG.
        panels: title -> mean probabilities [K, K], row given, column learned.
        names: of the K classes.
        note: what is shown.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm

    size, shown = len(names), {title: _off_diagonal(means) for title, means in panels.items()}
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    side = max(2.6, 0.21 * size + 0.6)
    figure = new_figure(max(columns * side + 2.0, 7.0), rows * (side + 0.45) + 1.1)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    least, most = _reach(np.concatenate([means.ravel() for means in shown.values()]))
    colours = colormaps["YlOrRd"].with_extremes(bad="white", under="white")
    norm = LogNorm(vmin=least, vmax=most)
    for axis, (title, means) in zip(axes.ravel(), shown.items(), strict=False):
        drawn = axis.imshow(np.ma.masked_less_equal(means, 0), cmap=colours, norm=norm, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        _diagonal(axis, panels[title])
    for axis in axes.ravel()[len(shown) :]:
        axis.set_axis_off()
    labels, place = [short(name, 12) for name in names], range(size)
    for k, axis in enumerate(axes.ravel()):
        axis.set_xticks(place, labels, rotation=90, fontsize=7, parse_math=False)
        axis.set_yticks(place, labels, fontsize=7, parse_math=False)
        beneath, beside = k + columns >= len(shown), k % columns == 0
        axis.tick_params(length=0, labelbottom=beneath, labelleft=beside)
    bar = figure.colorbar(drawn, ax=axes, label="mean probability in % (log scale)", extend="min", shrink=0.8)
    marks = [k * 10.0**power for power in range(-9, 1) for k in (1, 2, 5) if least <= k * 10.0**power <= most]
    bar.set_ticks(marks, labels=[f"{100 * mark:g}" for mark in marks], minor=False)
    bar.set_ticks([], minor=True)
    figure.supxlabel("learned for", fontsize=9)
    figure.supylabel("given as", fontsize=9)
    figure.suptitle(note, fontsize=10)
    save(figure, path)


def _reach(means: NDArray[np.float64]) -> tuple[float, float]:
    """From where to where the colours reach: all values above 0, or the largest decades of them."""
    most = max(1e-3, float(means.max()))
    least = float(means.min(where=means > 0, initial=most))
    return max(min(least, most / 10), most / 10**_DECADES), most


def _off_diagonal(means: NDArray[np.float64]) -> NDArray[np.float64]:
    means = means.copy()
    np.fill_diagonal(means, 0.0)
    return means


def _diagonal(axis: Any, means: NDArray[np.float64]) -> None:
    """What the given classes keep, in per cent."""
    for k, kept in enumerate(np.diagonal(means).tolist()):
        axis.add_patch(_square(k))
        axis.text(
            k, k, f"{100 * kept:.0f}", fontsize=7 if len(means) <= 12 else 5.5, color=QUIET, ha="center", va="center"
        )


def _square(k: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((k - 0.5, k - 0.5), 1, 1, facecolor="#eaeef2", edgecolor="none")


def epochs_chart(path: Path, epochs: Mapping[int, Mapping[str, float]], classes: int) -> bool:
    """Label entropy, and the shares of labels that moved, are saturated and are right, over the epochs.

    Args:
        path: a PNG; not written where no epoch says anything about labels.
        epochs: metrics of each epoch, counted from 0; any may be missing.
        classes: C.

    Returns:
        Whether there was anything to draw.
    """
    names = ("label_entropy", "labels_moved", "labels_saturated", "labels_right", "given_right")
    entropy, moved, saturated, right, given = (_series(epochs, name) for name in names)
    if not entropy and not moved and not right:
        return False
    figure = new_figure(9.0, 3.4)
    left, second = figure.subplots(1, 2)
    _line(left, entropy, _BLUE, "mean label entropy")
    left.set_ylabel(f"nats (uniform over {classes} classes: {math.log(classes):.2f})", fontsize=8)
    _line(second, moved, UNKNOWN, "moved to another class than given")
    _line(second, saturated, _ORANGE, "saturated: nearly one-hot", style=":")
    if any(share < 1 for share in given.values()):  # labels were made wrong on purpose
        _line(second, right, RIGHT, "learned label is true")
        _line(second, given, WRONG, "given label is true", style="--")
    second.set_ylabel("% of the training images", fontsize=8)
    for axis, title in ((left, "How soft the labels are"), (second, "Where they have gone")):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch", fontsize=8)
        axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        axis.tick_params(labelsize=8)
        axis.set_ylim(0, 1.08 * max([0.01, *(max(line.get_ydata()) for line in axis.lines)]))
        axis.grid(color="#d1d9e0", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    if second.lines:
        figure.legend(handles=second.lines, fontsize=8, frameon=False, loc="outside lower right", ncols=4)
    save(figure, path)
    return True


def _series(epochs: Mapping[int, Mapping[str, float]], name: str) -> dict[int, float]:
    return {epoch + 1: metrics[name] for epoch, metrics in sorted(epochs.items()) if name in metrics}


def _line(axis: Any, series: Mapping[int, float], colour: str, label: str, style: str = "-") -> None:
    if series:
        factor = 1 if label.endswith("entropy") else 100
        values = [factor * value for value in series.values()]
        axis.plot(list(series), values, style, color=colour, label=label, marker="." if len(series) < 40 else None)


def confidence_histogram(
    path: Path, confidence: NDArray[np.float32], suspected: NDArray[np.bool_], classes: int
) -> None:
    """How sure the learned labels are: of the suspected images, and of the others.

    Args:
        path: a PNG.
        confidence: largest probability of each label, [N].
        suspected: whether the likeliest class is not the given one, bool [N].
        classes: C.
    """
    figure = new_figure(7.0, 3.6)
    axis = figure.subplots()
    least = 1 / max(classes, 2)
    bins = np.linspace(least, 1, 41)
    sides = ((~suspected, _BLUE, "likeliest class is the given one"), (suspected, WRONG, "suspected: it is another"))
    for chosen, colour, label in sides:
        values = confidence[chosen].clip(least, 1)
        name = f"{label} ({int(chosen.sum()):,})"
        axis.hist(values, bins, histtype="stepfilled", color=colour, alpha=0.35, edgecolor=colour, label=name)
    axis.set_yscale("log", nonpositive="clip")
    axis.set_ylim(bottom=0.5)
    axis.set_xlabel("confidence: probability of the likeliest class", fontsize=9)
    axis.set_ylabel("images (log scale)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, frameon=False, loc="outside upper center", ncols=2)
    save(figure, path)


def relation_chart(path: Path, learned: Any, confusion: Any, names: Sequence[str], found: Relation) -> None:
    """Each ordered pair of different classes: what a label learned for it, against how often another network takes it.

    Logarithmic, with a place of its own for 0: every pair that was counted is drawn.

    Args:
        path: a PNG.
        learned: mean learned labels, [C, C].
        confusion: shares of the true classes' test images, [C, C].
        names: of the C classes.
        found: how well they agree.

    Raises:
        ValueError: there is no correlation, as one of the tables is constant.
    """
    if found.correlation is None:
        raise ValueError(f"relation_chart: nothing to draw, {found.missing}")
    figure = new_figure(7.6, 4.8)
    axis = figure.subplots()
    off = ~np.eye(len(names), dtype=bool)
    # What lies at 0 lies on the frame, which is not to cut it.
    axis.plot(learned[off], confusion[off], ".", color=_BLUE, markersize=4, alpha=0.6, clip_on=False)
    _scale(axis, "x", learned[off])
    _scale(axis, "y", confusion[off])
    pairs, both = np.argwhere(off), (learned * confusion)[off]
    shown = pairs[[place for place in np.argsort(-both)[:_NAMED] if both[place] > 0]]
    # Names beside the chart: the pairs that matter lie together, where names at the points would lie on each other.
    for number, (one, other) in enumerate(shown.tolist(), start=1):
        at = (learned[one, other], confusion[one, other])
        axis.annotate(str(number), at, fontsize=7, xytext=(3, 3), textcoords="offset points")
        text = f"{number}  {short(names[one], 12)} \u2192 {short(names[other], 12)}"
        line = 1.0 - 0.045 * (number - 1)
        axis.text(1.02, line, text, transform=axis.transAxes, fontsize=7, va="top", parse_math=False)
    axis.set_xlabel("mean probability that the labels of the given class learned for the other", fontsize=9)
    axis.set_ylabel("share of its test images that the other network takes for it", fontsize=9)
    axis.set_title(
        f"{found.pairs:,} pairs of classes: rank correlation {found.correlation:.2f} (p = {found.p_value:.2g})",
        fontsize=10,
    )
    axis.tick_params(labelsize=8, which="both")
    axis.grid(color="#d1d9e0", linewidth=0.6)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _scale(axes: Any, letter: str, values: NDArray[np.floating[Any]]) -> None:
    """Logarithmic along "x" or "y"; where some values are 0, from the least other one on, and 0 has its own tick."""
    least, most = float(values.min(where=values > 0, initial=math.inf)), float(values.max())
    scale, ticks = getattr(axes, f"set_{letter}scale"), getattr(axes, f"set_{letter}ticks")
    marks = _marks(least, most)
    if values.min() > 0:
        scale("log")
    else:
        # Between 0 and the least value there is nothing: room for a step, and no tick.
        scale("symlog", linthresh=least, linscale=0.4)
        axes.set(**{f"{letter}lim": (0, 1.2 * most)})
        marks = [0.0, *marks]
    ticks(marks, labels=[f"{mark:.3g}" for mark in marks])
    ticks([], minor=True)


def _marks(least: float, most: float) -> list[float]:
    """Round numbers from the one to the other, few enough for their labels; the least where there is none."""
    steps = (1, 2, 5) if most < 1e3 * least else (1,)
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    marks = [step * 10.0**power for power in powers for step in steps if least <= step * 10.0**power <= most]
    return marks[:: -(-len(marks) // _MARKS)] if marks else [least]
