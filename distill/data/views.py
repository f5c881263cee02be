"""Augmentation as a pure function: view k of image i is always the same pixels.

A view is a crop of the zero-padded image, mirrored or not. Which one, is a hash of (seed, i, k), so it can be made
again in any order, in any batch and in any process. There are (2p + 1)^2 crops for padding p, and twice as many views
with the flip: the orbit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.recipe.schema import ViewsRecipe
from distill.seeding import derive, draw


@dataclass(frozen=True)
class ViewParameters:
    """What makes a view: the crop's corner in the padded image, int64 [B] from 0 to 2p, and a mirror, bool [B]."""

    top: Tensor
    left: Tensor
    flip: Tensor


def orbit_size(recipe: ViewsRecipe) -> int:
    """Number of distinct views: (2p + 1)^2, times 2 with flips."""
    shifts: int = (2 * recipe.crop_padding + 1) ** 2
    return shifts * (2 if recipe.flip else 1)


def view_count(recipe: ViewsRecipe) -> int:
    """Number V of views that a store holds of each image."""
    return orbit_size(recipe) if recipe.count == "orbit" else recipe.count


def view_of_epoch(indices: Tensor, epoch: int, recipe: ViewsRecipe, seed: int, numbered: bool) -> Tensor:
    """Which view each image shows in an epoch.

    Args:
        indices: source indices, int64 [B].
        epoch: from 0.
        recipe: the views.
        seed: for numbered views, which one an image begins with.
        numbered: False: k = epoch, without an end, for training without a store. True: one of a store's V views; each
            image starts at its own and takes the next one every epoch, so in V epochs it shows each exactly once.

    Returns:
        int64 [B].
    """
    if not numbered:
        return torch.full_like(indices, epoch)
    count = view_count(recipe)
    first = draw(derive(seed, "view-order"), indices, torch.zeros_like(indices)) % count
    return (first + epoch) % count


def view_parameters(indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, *, numbered: bool) -> ViewParameters:
    """The crop and flip of view k of each image.

    A numbered view of an orbit is looked up: k counts through every (flip, top, left), without a repeat, the same for
    all images. Every other view is drawn from (seed, i, k).

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B]; with `numbered`, below `view_count(recipe)`.
        recipe: the views.
        seed: of the views.
        numbered: whether k numbers a store's views or goes on without an end.

    Raises:
        ValueError: when a numbered view is out of range.
    """
    side = 2 * recipe.crop_padding + 1
    if numbered and len(k) and not 0 <= int(k.min()) <= int(k.max()) < view_count(recipe):
        raise ValueError(f"views {int(k.min())} to {int(k.max())}, expected 0 to {view_count(recipe) - 1}")
    if numbered and recipe.count == "orbit":
        return ViewParameters(top=k // side % side, left=k % side, flip=k // (side * side) == 1)
    no = torch.zeros_like(indices)
    top = draw(derive(seed, "crop-y"), indices, k) % side if recipe.crop_padding else no
    left = draw(derive(seed, "crop-x"), indices, k) % side if recipe.crop_padding else no
    flip = draw(derive(seed, "flip"), indices, k) % 2 if recipe.flip else no
    return ViewParameters(top=top, left=left, flip=flip.bool())


def crop_and_flip(images: Tensor, parameters: ViewParameters, padding: int) -> Tensor:
    """Pads with zeros, crops to the old size, mirrors: [B, ch, H, W] -> [B, ch, H, W], same type and device.

    On the CPU each image is copied as a block, on one thread: faster than any batched form, and it does not suffer when
    other processes use the cores. Elsewhere one gather does all images at once.
    """
    if images.device.type == "cpu":
        return _copy_each(images, parameters, padding)
    return gather_views(images, parameters, padding)


def _copy_each(images: Tensor, parameters: ViewParameters, padding: int) -> Tensor:
    pixels = images.numpy()
    height, width = pixels.shape[2:]
    made = np.zeros(pixels.shape, pixels.dtype)
    corners = zip(parameters.top.tolist(), parameters.left.tolist(), parameters.flip.tolist(), strict=True)
    for old, new, (top, left, flip) in zip(pixels, made, corners, strict=True):
        down, right = top - padding, left - padding
        rows, columns = max(0, height - abs(down)), max(0, width - abs(right))  # how much of the image is in the crop
        y, x = max(0, -down), max(0, -right)  # where it begins in the crop
        from_y, from_x = max(0, down), max(0, right)  # and in the image
        target = new[:, :, ::-1] if flip else new
        target[:, y : y + rows, x : x + columns] = old[:, from_y : from_y + rows, from_x : from_x + columns]
    return torch.from_numpy(made)


def gather_views(images: Tensor, parameters: ViewParameters, padding: int) -> Tensor:
    """`crop_and_flip` as one gather over pixel numbers, without a padded copy; for devices.

    Pixels from outside the image are multiplied by 0. Arguments and result are those of `crop_and_flip`.
    """
    batch, channels, height, width = images.shape
    across = torch.arange(width, device=images.device).expand(batch, -1)
    column = torch.where(parameters.flip[:, None], width - 1 - across, across) + parameters.left[:, None] - padding
    row = torch.arange(height, device=images.device) + parameters.top[:, None] - padding
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    pixel = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
    chosen = images.reshape(batch, channels, -1).gather(2, pixel.view(batch, 1, -1).expand(-1, channels, -1))
    return chosen.view_as(images).mul_(inside[:, None])


def make_views(images: Tensor, indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, *, numbered: bool) -> Tensor:
    """View k of each image; a pure function of (image, index, k, seed).

    Args:
        images: uint8 [B, ch, H, W], on any device.
        indices: source indices, int64 [B], on the CPU.
        k: view numbers, int64 [B], on the CPU.
        recipe: the views; without padding and flip, the images come back as they are.
        seed: of the views.
        numbered: as for `view_parameters`.

    Returns:
        uint8 [B, ch, H, W], on the images' device.
    """
    parameters = view_parameters(indices, k, recipe, seed, numbered=numbered)
    if orbit_size(recipe) == 1:
        return images
    moved = ViewParameters(
        top=parameters.top.to(images.device, non_blocking=True),
        left=parameters.left.to(images.device, non_blocking=True),
        flip=parameters.flip.to(images.device, non_blocking=True),
    )
    return crop_and_flip(images, moved, recipe.crop_padding)
