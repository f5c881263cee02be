"""Augmentation as a pure function: view k of image i is always the same pixels.

A view is the image cropped, mirrored, recoloured and erased as a hash of (seed, i, k) says, so it can be made again in
any order, in any batch and in any process: uint8 in, uint8 out, the same on every device. Always in this order:

    crop with padding, or resized crop, and flip    geometry.py
    RandAugment                                     randaugment.py
    colour jitter                                   color.py
    random erasing                                  erasing.py
    mixup or CutMix with a partner's view k         mixing.py; by the loader, which has to fetch the partner

There are (2p + 1)^2 crops for padding p, and twice as many views with the flip: the orbit. With anything else views are
drawn, without an end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.data.color import Jitter, jitter, jitter_parameters
from distill.data.draws import Boxes, below, boxes
from distill.data.erasing import erase, erased_boxes
from distill.data.geometry import ViewParameters, crop_and_flip, resized_crop
from distill.data.pixels import in_shares
from distill.data.randaugment import draw_steps, randaugment
from distill.recipe.schema import ViewsRecipe
from distill.seeding import derive, draw


def orbit_size(recipe: ViewsRecipe) -> int:
    """Number of distinct crops with padding, (2p + 1)^2, times 2 with flips."""
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
    top = below(seed, "crop-y", indices, k, side) if recipe.crop_padding else no
    left = below(seed, "crop-x", indices, k, side) if recipe.crop_padding else no
    flip = below(seed, "flip", indices, k, 2) if recipe.flip else no
    return ViewParameters(top=top, left=left, flip=flip.bool())


def crop_boxes(indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, shape: tuple[int, int]) -> Boxes:
    """What the resized crop of view k of each image cuts out; where ten tries do not fit, the largest at the centre.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        recipe: views with a resized crop.
        seed: of the views.
        shape: H and W of the images.
    """
    height, width = shape
    ratio = recipe.resized_crop_ratio
    drawn, found = boxes(seed, "resized-crop", indices, k, shape, recipe.resized_crop, ratio, smaller=False)
    tall, wide = min(height, max(1, round(width / ratio[0]))), min(width, max(1, round(height * ratio[1])))
    centre = Boxes(*(torch.full_like(indices, n) for n in ((height - tall) // 2, (width - wide) // 2, tall, wide)))
    names = ("top", "left", "height", "width")
    return Boxes(*(torch.where(found, getattr(drawn, name), getattr(centre, name)) for name in names))


def make_views(images: Tensor, indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, *, numbered: bool) -> Tensor:
    """View k of each image, before it is mixed with others: a pure function of (image, index, k, seed).

    Args:
        images: uint8 [B, ch, H, W], on any device.
        indices: source indices, int64 [B], on the CPU.
        k: view numbers, int64 [B], on the CPU.
        recipe: the views; with none at all, the images come back as they are.
        seed: of the views.
        numbered: as for `view_parameters`.

    Returns:
        uint8 [B, ch, H, W], on the images' device.
    """
    drawn = draw_views(indices, k, recipe, seed, (images.shape[2], images.shape[3]), numbered=numbered)
    more = any(part is not None for part in (drawn.box, drawn.steps, drawn.jitter, drawn.erased))
    if drawn.crop is None and not more:
        return images
    return in_shares(partial(_changed, recipe=recipe, seed=seed), images, drawn, copying=not more)


@dataclass(frozen=True)
class Drawn:
    """All that is drawn for the views of a batch, something for each image, on the CPU; None: not done."""

    indices: Tensor
    k: Tensor
    flip: Tensor
    crop: ViewParameters | None
    box: Boxes | None
    steps: Tensor | None
    jitter: Jitter | None
    erased: Boxes | None

    def __getitem__(self, rows: slice) -> Drawn:
        """Those of some images."""

        def cut(part: Any) -> Any:
            return None if part is None else part[rows]

        return Drawn(**{field.name: cut(getattr(self, field.name)) for field in fields(self)})


def draw_views(
    indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, shape: tuple[int, int], *, numbered: bool
) -> Drawn:
    """Everything that view k of each image is made with, but for its partner; arguments as for `make_views`."""
    parameters = view_parameters(indices, k, recipe, seed, numbered=numbered)
    jittered = recipe.brightness or recipe.contrast or recipe.saturation or recipe.hue
    return Drawn(
        indices=indices,
        k=k,
        flip=parameters.flip,
        crop=parameters if not recipe.resized_crop and orbit_size(recipe) > 1 else None,
        box=crop_boxes(indices, k, recipe, seed, shape) if recipe.resized_crop else None,
        steps=draw_steps(indices, k, recipe.randaugment, seed) if recipe.randaugment else None,
        jitter=jitter_parameters(indices, k, recipe, seed) if jittered else None,
        erased=erased_boxes(indices, k, recipe, seed, shape) if recipe.erasing else None,
    )


def _changed(images: Tensor, drawn: Drawn, *, recipe: ViewsRecipe, seed: int, out: Tensor | None) -> Tensor:
    """The views of some images: uint8 [n, ch, H, W] -> the same; on the CPU in `out`, if it is given."""
    operations: list[Callable[..., Tensor]] = []
    if drawn.crop is not None:
        operations.append(partial(crop_and_flip, parameters=drawn.crop, padding=recipe.crop_padding))
    if drawn.box is not None:
        operations.append(partial(resized_crop, boxes=drawn.box, flip=drawn.flip))
    if drawn.steps is not None:
        operations.append(partial(randaugment, steps=drawn.steps, magnitude=recipe.randaugment_magnitude))
    if drawn.jitter is not None:
        operations.append(partial(jitter, parameters=drawn.jitter))
    if drawn.erased is not None:
        operations.append(partial(erase, rectangles=drawn.erased, indices=drawn.indices, k=drawn.k, seed=seed))
    *others, last = operations
    for operation in others:
        images = operation(images)
    return last(images, out=out)


def in_words(recipe: ViewsRecipe) -> str:
    """What the views are made of, for people: "crop with padding 4, flip, ..."."""
    parts = []
    if recipe.crop_padding:
        parts.append(f"crop with padding {recipe.crop_padding}")
    if recipe.resized_crop:
        area, ratio = _range(recipe.resized_crop), _range(recipe.resized_crop_ratio)
        parts.append(f"resized crop of {area} of the area, {ratio} times as wide as high")
    if recipe.flip:
        parts.append("flip")
    if recipe.randaugment:
        parts.append(f"RandAugment of {recipe.randaugment} operations at magnitude {recipe.randaugment_magnitude}")
    jittered = [name for name in ("brightness", "contrast", "saturation", "hue") if getattr(recipe, name)]
    parts += [f"{name} +-{getattr(recipe, name):g}" for name in jittered]
    if recipe.erasing:
        area = _range(recipe.erasing_area)
        parts.append(f"erasing of {area} of the area with probability {recipe.erasing:g}")
    mixes = [f"{name} (alpha {getattr(recipe, name):g})" for name in ("mixup", "cutmix") if getattr(recipe, name)]
    if mixes:
        often = "" if recipe.mix_probability == 1 else f" with probability {recipe.mix_probability:g}"
        parts.append(" or ".join(mixes) + often)
    return ", ".join(parts) or "the images as they are"


def _range(bounds: tuple[float, ...]) -> str:
    return f"{bounds[0]:.3g} to {bounds[1]:.3g}"
