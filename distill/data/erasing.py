"""Random erasing: a rectangle of noise. Zhong et al., "Random Erasing Data Augmentation", arXiv 1708.04896.

As in timm, but on grey levels before normalisation, so the noise is uniform over them and not normal.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.draws import Boxes, boxes, uniform
from distill.data.pixels import chosen, moved, rows_of, with_rows
from distill.recipe.schema import ViewsRecipe
from distill.seeding import derive, draw_bytes


@dataclass(frozen=True)
class Erased:
    """Which images of a batch lose a rectangle, int64 [n], and the n rectangles."""

    rows: Tensor
    rectangles: Boxes


def erased_boxes(indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, shape: tuple[int, int]) -> Erased:
    """What view k of each image loses; an image where none of ten rectangles fits is not erased.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        recipe: the views.
        seed: of the views.
        shape: H and W of the images.
    """
    wanted = uniform(seed, "erasing", indices, k) < recipe.erasing
    rectangles, found = boxes(
        seed, "erasing", indices, k, shape, recipe.erasing_area, recipe.erasing_ratio, smaller=True
    )
    rows = torch.nonzero(wanted & found).flatten()
    return Erased(rows, rectangles[rows])


def erase(images: Tensor, erased: Erased, indices: Tensor, k: Tensor, seed: int) -> Tensor:
    """Fills the rectangles with uniform noise from the hash: uint8 [B, ch, H, W] -> the same.

    The noise of a pixel depends on (seed, i, k) and where the pixel is, not on the rectangle.

    Args:
        images: on any device.
        erased: what to fill.
        indices: source indices, int64 [B], on the CPU.
        k: view numbers, int64 [B], on the CPU.
        seed: of the views.
    """
    if not len(erased.rows):
        return images
    device = images.device
    height, width = images.shape[2:]
    i, number = (moved(t[erased.rows], device) for t in (indices, k))
    some = rows_of(images, erased.rows)
    noise = draw_bytes(derive(seed, "erasing-noise"), i, number, images[0].numel()).view_as(some)
    return with_rows(images, erased.rows, chosen(erased.rectangles.mask(height, width, device), noise, some))
