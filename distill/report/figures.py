"""Pictures. No torch; matplotlib is imported where it is used."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.store.atomic import writable_folder, write_bytes

COLUMNS = 8
RIGHT, WRONG = "#1a7f37", "#b3261e"


def suspected_errors(
    path: Path,
    *,
    images: NDArray[np.uint8],
    given: Sequence[str],
    learned: Sequence[str],
    true: Sequence[str],
    confidence: Sequence[float],
) -> None:
    """A contact sheet: image, given label, learned label. Green where the learned label is the true one, red where not.

    Args:
        path: a PNG.
        images: uint8 [K, H, W, ch], ch of 1 or 3.
        given: names, K of them.
        learned: names.
        true: names, where they are known: for the colour only.
        confidence: probability on the learned label.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = max(len(images), 1)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(1.75 * columns, 2.35 * rows + 0.7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for k, image in enumerate(images):
        axes[k].imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
        colour = RIGHT if learned[k] == true[k] else WRONG
        title = f"given {_short(given[k])}\nlearned {_short(learned[k])} ({confidence[k]:.2f})"
        axes[k].set_title(title, fontsize=8.5, color=colour)
    right = sum(a == b for a, b in zip(learned, true, strict=True))
    note = f"{len(images)} training images whose learned label differs most surely from the given one"
    figure.suptitle(
        f"{note}; {right} of them rightly (green)" if len(images) else "no suspected label errors", fontsize=10
    )
    _save(figure, path)


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _save(figure: Any, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    writable_folder(path.parent)
    write_bytes(path, buffer.getvalue())
