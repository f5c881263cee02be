"""A folder of drawn shapes that a small network hardly learns to tell apart: the images of search_shapes.toml.

Six classes, each 40 x 40 pixels: a shape of any size, place, angle and colour on a coloured background, with noise.
What learned labels do where the network is mostly wrong is seen on these, not on digits or Fashion-MNIST.

Run: python benchmarks/shapes.py data/shapes
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("circle", "ring", "star", "cross", "triangle", "square")
SIDE = 40
SEED = 7


def corners(count: int, centre: Sequence[float], radius: float, angle: float, inner: float = 1.0) -> list[float]:
    """Of a polygon, x and y in turn; every second one is nearer to the centre by the factor `inner`."""
    found: list[float] = []
    for number in range(count):
        reach, turned = radius * (inner if number % 2 else 1.0), angle + 2 * np.pi * number / count
        found += [centre[0] + reach * np.cos(turned), centre[1] + reach * np.sin(turned)]
    return found


def picture(kind: str, rng: np.random.Generator) -> Image.Image:
    """One shape, RGB."""
    coarse = rng.integers(0, 255, (4, 4, 3)).astype("uint8")
    image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    radius = rng.uniform(7, 14)
    x, y = rng.uniform(radius + 1, SIDE - radius - 1, 2)
    angle = rng.uniform(0, 6.28)
    colour = tuple(int(value) for value in rng.integers(0, 255, 3))
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == "circle":
        draw.ellipse(box, fill=colour)
    elif kind == "ring":
        draw.ellipse(box, outline=colour, width=3)
    elif kind == "cross":
        for turned in (angle, angle + np.pi / 2):
            draw.line(corners(2, (x, y), radius, turned), fill=colour, width=4)
    elif kind == "star":
        draw.polygon(corners(10, (x, y), radius, angle, inner=0.45), fill=colour)
    else:
        draw.polygon(corners({"triangle": 3, "square": 4}[kind], (x, y), radius, angle), fill=colour)
    noisy = np.asarray(image).astype(float) + rng.normal(0, 12, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype("uint8"))


def make(folder: Path, count: int) -> None:
    """So many of each class, a folder each; always the same ones."""
    rng = np.random.default_rng(SEED)
    for kind in CLASSES:
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            picture(kind, rng).save(folder / kind / f"{number}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=250, help="of each class")
    given = parser.parse_args()
    make(given.folder, given.count)
