"""Random erasing: a rectangle of noise. Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896.

As in timm, but on grey levels before normalisation, so the noise is uniform over them and not normal.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from distill.data import compiled
from distill.data.draws import Boxes, boxes, uniform
from distill.data.pixels import array, chosen, moved, room_for, rows_of, with_rows
from distill.recipe.schema import ViewsRecipe
from distill.seeding import derive, draw_bytes


def erased_boxes(indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, shape: tuple[int, int]) -> Boxes:
    """The rectangle that view k of each image loses: [B]. No height: none, as where none of ten fits.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        recipe: the views.
        seed: of the views.
        shape: H and W of the images.
    """
    wanted = uniform(seed, "erasing", indices, k) < recipe.erasing
    area, ratio = recipe.erasing_area, recipe.erasing_ratio
    drawn, _ = boxes(seed, "erasing", indices, k, shape, area, ratio, smaller=True)
    return Boxes(drawn.top, drawn.left, drawn.height * wanted, drawn.width)


def erase(
    images: Tensor, rectangles: Boxes, indices: Tensor, k: Tensor, seed: int, out: Tensor | None = None
) -> Tensor:
    """Fills the rectangles with uniform noise from the hash: uint8 [B, ch, H, W] -> the same.

    The noise of a pixel depends on (seed, i, k) and where the pixel is, not on the rectangle.

    Args:
        images: on any device.
        rectangles: [B], on the CPU; no height: none.
        indices: source indices, int64 [B], on the CPU.
        k: view numbers, int64 [B], on the CPU.
        seed: of the views.
        out: where the result goes, on the CPU only; None: to new memory.
    """
    if images.device.type != "cpu":
        return erase_together(images, rectangles, indices, k, seed)
    made = room_for(images, out)
    made.numpy()[:] = images.numpy()
    parts = (indices, k, rectangles.top, rectangles.left, rectangles.height, rectangles.width)
    arrays = (array(part, len(images)) for part in parts)
    compiled.draws.erase(made.numpy(), np.uint64(derive(seed, "erasing-noise")), *arrays)
    return made


def erase_together(images: Tensor, rectangles: Boxes, indices: Tensor, k: Tensor, seed: int) -> Tensor:
    """`erase` by whole images of noise: for devices, and what defines the result."""
    rows = torch.nonzero(rectangles.height).flatten()
    if not len(rows):
        return images
    device = images.device
    height, width = images.shape[2:]
    i, number = (moved(t[rows], device) for t in (indices, k))
    some = rows_of(images, rows)
    noise = draw_bytes(derive(seed, "erasing-noise"), i, number, images[0].numel()).view_as(some)
    return with_rows(images, rows, chosen(rectangles[rows].mask(height, width, device), noise, some))
