"""RandAugment: some operations one after the other, drawn for each image, all at one magnitude.

Cubuk et al., "RandAugment", arXiv 1909.13719. The set is the paper's fourteen, with torchvision's magnitudes (0 to 30),
nearest neighbours and black outside: the set that torchvision's and timm's share, and one that can be checked against
torchvision operation by operation. timm's `rand-m9-mstd0.5-inc1` is another: magnitudes to 10, drawn around 9, two more
operations. On the CPU a compiled loop takes image by image through its operations. On a device a batch is done layer by
layer: first all that move pixels in one gather, then all that recolour by a table in another, then the two that need
their neighbours or all three channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from distill.data import color, compiled
from distill.data.draws import below
from distill.data.pixels import array, moved, room_for, rows_of

MOVES = ("shear-x", "shear-y", "translate-x", "translate-y", "rotate")
TABLES = ("brightness", "posterize", "solarize")  # the same table for every image
OPERATIONS = ("identity", *MOVES, *TABLES, "contrast", "autocontrast", "equalize", "color", "sharpness")
_LARGEST = 30  # magnitude
_EDGE = 1e-9  # pixels: what comes from the edge between two is the latter's, whatever the last bit of a sine
_STEPS = 2 * len(OPERATIONS)  # each operation, at its magnitude and against it


def step_code(operation: str, negative: bool = False) -> int:
    """The number that `draw_steps` has for an operation; `negative` matters to those whose magnitude has a sign."""
    return 2 * OPERATIONS.index(operation) + int(negative)


def draw_steps(indices: Tensor, k: Tensor, layers: int, seed: int) -> Tensor:
    """The operations of view k of each image: indices int64 [B], k int64 [B] -> int64 [B, layers], see `step_code`."""
    return torch.stack([below(seed, f"randaugment-{layer}", indices, k, _STEPS) for layer in range(layers)], dim=1)


def randaugment(images: Tensor, steps: Tensor, magnitude: int, out: Tensor | None = None) -> Tensor:
    """Applies each layer's operations.

    Images without three channels have no colour to change, those of two pixels or less no neighbours to sharpen.

    Args:
        images: uint8 [B, ch, H, W], on any device.
        steps: int64 [B, layers], on the CPU, see `step_code`.
        magnitude: from 0 to 30.
        out: where the result goes, on the CPU only; None: to new memory.

    Returns:
        uint8 [B, ch, H, W].
    """
    if images.device.type != "cpu":
        return randaugment_together(images, steps, magnitude)
    made = room_for(images, out)
    height, width = images.shape[2:]
    tables, factors = _fixed_tables(magnitude).numpy(), _factors(torch.arange(2), magnitude).numpy()
    compiled.color.randaugment(
        array(images.flatten(2)),
        array(steps, len(images)),
        _narrow_sources(height, width, magnitude),
        tables,
        factors,
        width,
        made.flatten(2).numpy(),
    )
    return made


def randaugment_together(images: Tensor, steps: Tensor, magnitude: int) -> Tensor:
    """`randaugment`, layer by layer on all images: for devices, and what defines the result."""
    for layer in steps.unbind(1):
        images = _apply_layer(images, layer, magnitude)
    return images


def _apply_layer(images: Tensor, steps: Tensor, magnitude: int) -> Tensor:
    """Sorts the images by what is done to them, does it group by group, and puts them back in order."""
    group = _group_of_steps()[steps]
    order = group.argsort(stable=True)
    sizes = torch.bincount(group, minlength=len(_GROUPS)).tolist()
    sorted_images = torch.split(rows_of(images, order), sizes)
    made = [
        apply(some, codes, magnitude)
        for (_, apply), some, codes in zip(_GROUPS, sorted_images, torch.split(steps[order], sizes), strict=True)
        if len(codes)
    ]
    return rows_of(torch.cat(made), order.argsort()) if made else images


@lru_cache(maxsize=1)
def _group_of_steps() -> Tensor:
    """The number in `_GROUPS` of each step code: int64 [28]."""
    groups = {name: number for number, (names, _) in enumerate(_GROUPS) for name in names}
    return torch.tensor([groups[name] for name in OPERATIONS for _ in range(2)])


def _factors(codes: Tensor, magnitude: int) -> Tensor:
    """1 + .9 m / 30, or 1 - .9 m / 30: int64 [B] -> float32 [B]."""
    size = 0.9 * magnitude / _LARGEST
    return torch.where(codes % 2 == 1, 1 - size, 1 + size).float()


def move_pixels(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    """Shears, translates or rotates each image: uint8 [B, ch, H, W], int64 [B] on the CPU -> uint8 [B, ch, H, W]."""
    batch, channels, height, width = images.shape
    device = images.device
    first = step_code(MOVES[0])
    source = _source_pixels_on(device, height, width, magnitude).index_select(0, moved(codes - first, device))
    outside = torch.zeros(batch, channels, 1, dtype=images.dtype, device=device)
    padded = torch.cat([images.flatten(2), outside], dim=2)
    return padded.gather(2, source[:, None].expand(-1, channels, -1)).view_as(images)


@lru_cache(maxsize=8)
def _source_pixels_on(device: torch.device, height: int, width: int, magnitude: int) -> Tensor:
    return moved(source_pixels(height, width, magnitude), device)


@lru_cache(maxsize=8)
def _narrow_sources(height: int, width: int, magnitude: int) -> npt.NDArray[np.uint32]:
    return source_pixels(height, width, magnitude).numpy().astype(np.uint32)


def source_pixels(height: int, width: int, magnitude: int) -> Tensor:
    """Which pixel each pixel comes from, for every movement and sign: int64 [10, H * W]; H * W stands for black."""
    y, x = np.mgrid[0:height, 0:width] + 0.5  # of the centres of pixels
    found = []
    for operation in MOVES:
        for sign in (1, -1):
            source_y, source_x = _source(operation, sign * magnitude, y, x)
            row, column = (np.floor(part + _EDGE).astype(np.int64) for part in (source_y, source_x))
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            found.append(np.where(inside, row * width + column, height * width).ravel())
    return torch.from_numpy(np.stack(found))


def _source(operation: str, magnitude: int, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels at y and x come from. Translations are by whole pixels, cut off towards zero."""
    height, width = y.shape
    share = magnitude / _LARGEST
    if operation == "shear-x":
        return y, x + 0.3 * share * y
    if operation == "shear-y":
        return y + 0.3 * share * x, x
    if operation == "translate-x":
        return y, x - int(150 * width * magnitude / (331 * _LARGEST))
    if operation == "translate-y":
        return y - int(150 * height * magnitude / (331 * _LARGEST)), x
    angle = math.radians(30 * share)
    sine, cosine = math.sin(angle), math.cos(angle)
    from_y, from_x = y - height / 2, x - width / 2
    return sine * from_x + cosine * from_y + height / 2, cosine * from_x - sine * from_y + width / 2


def look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replaces each value by its entry: uint8 [B, ch, H, W], uint8 [B, ch, 256] -> uint8 [B, ch, H, W]."""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def _same(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    return images


def _by_fixed_tables(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    table = _fixed_tables(magnitude).index_select(0, codes - step_code(TABLES[0]))
    return look_up(images, moved(table, images.device)[:, None].expand(-1, images.shape[1], -1))


def _contrast(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    factors = moved(_factors(codes, magnitude), images.device)[:, None]
    level = color.mean_grey(images.float())[:, None]
    levels = torch.arange(256, device=images.device) * factors
    table = levels.add_(level * (1 - factors)).clamp_(0, 255).floor_().to(torch.uint8)
    return look_up(images, table[:, None].expand(-1, images.shape[1], -1))


def _autocontrast(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    return look_up(images, autocontrast_table(images))


def _equalize(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    return look_up(images, equalize_table(images))


def _color(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    if images.shape[1] != 3:
        return images
    return color.saturation(images.float(), moved(_factors(codes, magnitude), images.device)).to(torch.uint8)


def _sharpness(images: Tensor, codes: Tensor, magnitude: int) -> Tensor:
    return sharpness(images.float(), moved(_factors(codes, magnitude), images.device)).to(torch.uint8)


@lru_cache(maxsize=8)
def _fixed_tables(magnitude: int) -> Tensor:
    """uint8 [6, 256]: the table of each of `TABLES` and sign."""
    levels = torch.arange(256)
    bright = (levels * _factors(torch.tensor([0, 1]), magnitude)[:, None]).clamp_(max=255).long()
    lost = round(magnitude / (_LARGEST / 4))  # bits
    solarized = torch.where(levels >= 255 * (1 - magnitude / _LARGEST), 255 - levels, levels)
    others = (levels >> lost << lost, solarized)
    return torch.cat([bright, *(table.expand(2, -1) for table in others)]).to(torch.uint8)


def autocontrast_table(images: Tensor) -> Tensor:
    """Stretches each channel to 0 to 255, unless it is of one level: uint8 [B, ch, H, W] -> uint8 [B, ch, 256]."""
    darkest, brightest = (t.float() for t in torch.aminmax(images.flatten(2), dim=2, keepdim=True))
    flat = darkest == brightest
    scale = torch.where(flat, 1.0, (brightest - darkest).mul_(1 / 255))
    levels = torch.arange(256, device=images.device, dtype=torch.float32) - torch.where(flat, 0.0, darkest)
    return levels.div(scale).clamp_(0, 255).floor_().to(torch.uint8)


def equalize_table(images: Tensor) -> Tensor:
    """Spreads each channel's levels by their cumulative histogram, as PIL and torchvision do; shapes as above."""
    batch, channels = images.shape[:2]
    values = images.reshape(batch * channels, -1).long()
    histogram = torch.zeros(batch * channels, 256, dtype=torch.int64, device=images.device)
    histogram.scatter_add_(1, values, torch.ones((), dtype=torch.int64, device=images.device).expand_as(values))
    at_most = histogram.cumsum(1)
    brightest = images.reshape(batch * channels, -1).amax(1, keepdim=True).long()
    step = torch.div(values.shape[1] - histogram.gather(1, brightest), 255, rounding_mode="floor")
    before = at_most - histogram  # pixels that are darker than each level
    made = torch.div(before + step // 2, step.clamp(min=1), rounding_mode="floor").clamp_(max=255)
    made = torch.where(step == 0, torch.arange(256, device=images.device), made)
    return made.to(torch.uint8).view(batch, channels, 256)


def sharpness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blends with the smoothed image, or moves away from it; the outermost pixels stay.

    Smoothed: 5 of 13 parts from the pixel, one from each of its eight neighbours, rounded.

    Args:
        pixels: float32 [B, ch, H, W], whole grey levels; worked on in place.
        factors: float32 [B].
    """
    if min(pixels.shape[2:]) <= 2:
        return pixels
    factors = factors[:, None, None, None]
    across = pixels[..., :-2] + pixels[..., 1:-1] + pixels[..., 2:]
    centre = pixels[..., 1:-1, 1:-1]
    smooth = across[:, :, :-2] + across[:, :, 1:-1] + across[:, :, 2:]
    smooth.add_(centre * 4).div_(13).round_()  # a sum of whole numbers is never half way between two thirteenths
    blended = smooth.sub_(centre).mul_(1 - factors).add_(centre)
    centre.copy_(blended.clamp_(0, 255).floor_())
    return pixels


# Together in one go: what moves pixels, what has a fixed table, and each of the others.
_GROUPS: tuple[tuple[tuple[str, ...], Callable[[Tensor, Tensor, int], Tensor]], ...] = (
    (("identity",), _same),
    (MOVES, move_pixels),
    (TABLES, _by_fixed_tables),
    (("contrast",), _contrast),
    (("autocontrast",), _autocontrast),
    (("equalize",), _equalize),
    (("color",), _color),
    (("sharpness",), _sharpness),
)
