"""Pictures. No torch; matplotlib is imported where it is used."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.report.fonts import legible
from distill.report.label_report import Suspect, printable
from distill.store.atomic import writable_folder, write_bytes

COLUMNS = 8
THUMBNAIL = 160  # pixels: as large as an image of a contact sheet is drawn
RIGHT, WRONG, UNKNOWN = "#1a7f37", "#b3261e", "#1f2328"
QUIET = "#59636e"


def contact_sheet(
    path: Path, images: Sequence[NDArray[np.uint8]], suspects: Sequence[Suspect], *, planted: bool
) -> None:
    """Images whose learned label is not the given one.

    Args:
        path: a PNG.
        images: K of them, uint8 [h, w, 3], or [h, w] where they are grey.
        suspects: their labels.
        planted: whether labels were made wrong on purpose: then what was learned rightly is green, and the rest red.
    """
    count = max(len(images), 1)
    columns = min(COLUMNS, count)
    rows = -(-count // columns)
    figure = new_figure(max(1.75 * columns, 6.5), 2.3 * rows + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, image, suspect in zip(axes, images, suspects, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="antialiased")
        colour = (RIGHT if suspect.learned == suspect.true else WRONG) if planted else UNKNOWN
        title = f"given {short(suspect.given)}\nlearned {short(suspect.learned)}"
        axis.set_title(title, fontsize=8, color=colour, parse_math=False)
        beneath = {"ha": "center", "va": "top", "transform": axis.transAxes}
        told = f"image {suspect.index}, confidence {suspect.confidence:.2f}"
        axis.text(0.5, -0.03, told, fontsize=7, color=QUIET, **beneath)
    figure.suptitle(_heading(suspects, planted), fontsize=10)
    save(figure, path)


def _heading(suspects: Sequence[Suspect], planted: bool) -> str:
    if not suspects:
        return "no suspected label errors"
    most = "the most confident one" if len(suspects) == 1 else f"the {len(suspects)} most confident"
    note = f"suspected label errors, {most}"
    right = sum(suspect.learned == suspect.true for suspect in suspects)
    return f"{note}: {right} learned rightly (green)" if planted else note


def thumbnail(image: NDArray[np.uint8], side: int = THUMBNAIL) -> NDArray[np.uint8]:
    """uint8 [H, W, ch] -> uint8 [h, w, ch], or [h, w] of one channel; scaled down until no side is longer."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    longest = max(pixels.shape[:2])
    if longest <= side:
        return pixels
    height, width = (max(1, round(length * side / longest)) for length in pixels.shape[:2])
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BOX))


def short(name: str, length: int = 14) -> str:
    """A name that fits beside others, in characters that can be drawn: its beginning and more of its end.

    Names of one data set often begin alike, as `n02085782-Japanese_spaniel` does.
    """
    name = printable(name)
    begin = (length - 1) // 3
    return name if len(name) <= length else f"{name[:begin]}…{name[begin + 1 - length :]}"


def new_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches, that no window belongs to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path) -> None:
    """Writes a PNG in one stroke; its folder is made if need be."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A class name in a script that no font has is drawn as boxes; the CSV file has it in letters.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        with legible(figure):
            figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    writable_folder(path.parent)
    write_bytes(path, buffer.getvalue())
