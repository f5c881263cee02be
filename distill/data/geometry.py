"""Where a view's pixels come from: crop with padding, resized crop, flip.

uint8 in, uint8 out. All arithmetic is on whole numbers, or on floats that hold whole numbers exactly, so the pixels are
the same on every device, in every batch and for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from distill.data.draws import Boxes
from distill.data.pixels import moved, to_bytes

# Bilinear weights are multiples of 1/2048: with 8-bit pixels every sum stays below 2^24, which float32 holds exactly.
_WEIGHT_BITS = 11
_ONE = 1 << _WEIGHT_BITS
_KEPT_BITS = 3  # below a grey level, between the two passes of a resize
_MATRIX_SIDE = 64  # up to this side a resize on the CPU is a product of matrices, above it a loop over images


@dataclass(frozen=True)
class ViewParameters:
    """What makes a crop: the corner in the padded image, int64 [B] from 0 to 2p, and a mirror, bool [B]."""

    top: Tensor
    left: Tensor
    flip: Tensor


def crop_and_flip(images: Tensor, parameters: ViewParameters, padding: int) -> Tensor:
    """Pads with zeros, crops to the old size, mirrors: [B, ch, H, W] -> [B, ch, H, W], same type and device.

    On the CPU each image is copied as a block, on one thread: faster than any batched form, and it does not suffer when
    other processes use the cores. Elsewhere one gather does all images at once. The parameters are on the CPU.
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
    device = images.device
    top, left, flip = (moved(t, device) for t in (parameters.top, parameters.left, parameters.flip))
    across = torch.arange(width, device=device).expand(batch, -1)
    column = torch.where(flip[:, None], width - 1 - across, across) + left[:, None] - padding
    row = torch.arange(height, device=device) + top[:, None] - padding
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None, :]
    pixel = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None, :]
    chosen = images.reshape(batch, channels, -1).gather(2, pixel.view(batch, 1, -1).expand(-1, channels, -1))
    return chosen.view_as(images).mul_(inside[:, None])


def resized_crop(images: Tensor, boxes: Boxes, flip: Tensor) -> Tensor:
    """Crops a box of each image, resizes it bilinearly to the old size, mirrors: uint8 [B, ch, H, W] -> the same.

    Pixel centres are aligned (align_corners=False) and coordinates are clamped inside the crop. A crop is never larger
    than the image, so nothing is shrunk and antialiasing has nothing to do. Within one grey level of torchvision's.

    Args:
        images: on any device.
        boxes: [B], on the CPU, each inside the image and at least one pixel wide and high.
        flip: whether to mirror, bool [B], on the CPU.
    """
    form = gather_taps if images.device.type != "cpu" else loop_taps
    if images.device.type == "cpu" and max(images.shape[2:]) <= _MATRIX_SIDE:
        form = multiply_taps
    return form(images, boxes, flip)


@dataclass(frozen=True)
class Taps:
    """The two pixels that each output pixel along an axis is made of.

    low, high: their numbers, int64 [B, S]. weight: of `high`, in 2048ths, int64 [B, S]; `low` has the rest.
    """

    low: Tensor
    high: Tensor
    weight: Tensor

    @classmethod
    def of(cls, start: Tensor, size: Tensor, length: int, reverse: Tensor) -> Taps:
        """For crops from `start`, `size` pixels long (int64 [B]), that become `length` pixels long."""
        place = torch.arange(length).expand(len(start), -1)
        place = torch.where(reverse[:, None], length - 1 - place, place)
        last = size[:, None] - 1
        # (place + 1/2) * size / length - 1/2, in 2048ths, rounded
        numerator = ((2 * place + 1) * size[:, None] - length) * _ONE + length
        position = torch.div(numerator, 2 * length, rounding_mode="floor").clamp(min=0)
        low = torch.minimum(position >> _WEIGHT_BITS, last)
        weight = torch.where(low == last, 0, position & (_ONE - 1))
        return cls(low + start[:, None], torch.minimum(low + 1, last) + start[:, None], weight)


# The first pass keeps three bits below a grey level, the second rounds to whole ones; ties go to the even number.
_FIRST = 2.0 ** (_KEPT_BITS - _WEIGHT_BITS)
_SECOND = 2.0 ** -(_KEPT_BITS + _WEIGHT_BITS)


def _both_taps(images: Tensor, boxes: Boxes, flip: Tensor) -> tuple[Taps, Taps]:
    """Of the rows, and of the columns."""
    height, width = images.shape[2:]
    rows = Taps.of(boxes.top, boxes.height, height, torch.zeros_like(flip))
    return rows, Taps.of(boxes.left, boxes.width, width, flip)


def gather_taps(images: Tensor, boxes: Boxes, flip: Tensor) -> Tensor:
    """`resized_crop` by four gathers: for devices, and what the other forms are judged by."""
    batch, channels, height, width = images.shape
    device, pixels = images.device, images.float()
    rows, columns = _both_taps(images, boxes, flip)

    def blended(pixels: Tensor, taps: Taps, axis: int) -> Tensor:
        shape = (batch, 1, -1, 1) if axis == 2 else (batch, 1, 1, -1)
        low, high, weight = (moved(t, device).view(shape) for t in (taps.low, taps.high, taps.weight))
        whole = (batch, channels, height, width)
        first = pixels.gather(axis, low.expand(whole)) * (_ONE - weight).float()
        return first.add_(pixels.gather(axis, high.expand(whole)) * weight.float())

    across = blended(pixels, columns, 3).mul_(_FIRST).round_()
    return blended(across, rows, 2).mul_(_SECOND).round_().to(torch.uint8)


def multiply_taps(images: Tensor, boxes: Boxes, flip: Tensor) -> Tensor:
    """`resized_crop` as two products of matrices an image: for small images on the CPU.

    By numpy, whose float32 products are in float32 whatever torch.set_float32_matmul_precision says.
    """
    batch, channels, height, width = images.shape
    pixels = images.reshape(batch, channels * height, width).float().numpy()
    across = np.matmul(pixels, _weights(boxes.left, boxes.width, width, flip, _FIRST).numpy())
    np.rint(across, out=across)
    upright = _weights(boxes.top, boxes.height, height, torch.zeros_like(flip), _SECOND).transpose(1, 2)
    planes = (batch, channels, height, width)
    made = np.matmul(upright[:, None].numpy(), across.reshape(planes), out=pixels.reshape(planes))
    return to_bytes(torch.from_numpy(np.rint(made, out=made)))


def _weights(start: Tensor, size: Tensor, length: int, reverse: Tensor, scale: float) -> Tensor:
    """The weights of `Taps` as matrices: float32 [B, length, length], from the image's pixels to the view's.

    Row r of a crop from `start` is row r - start of one from 0. Rows before it wrap around to rows behind the crop,
    which are 0.
    """
    row = (torch.arange(length) - start[:, None]) % length
    number = (reverse.long() * (length + 1) + size)[:, None] * length + row
    return _weight_rows(length, scale).index_select(0, number.flatten()).view(len(start), length, length)


@lru_cache(maxsize=8)
def _weight_rows(length: int, scale: float) -> Tensor:
    """For crops from 0, of every size from 0 (none) to `length`, plain and reversed: float32 [2 (L + 1) L, L]."""
    size = torch.arange(length + 1).repeat(2)
    reverse = torch.arange(2).repeat_interleave(length + 1) == 1
    taps = Taps.of(torch.zeros_like(size), size.clamp(min=1), length, reverse)
    matrix = torch.zeros(len(size), length, length)
    matrix.scatter_(1, taps.low[:, None], (_ONE - taps.weight).float()[:, None])
    matrix.scatter_add_(1, taps.high[:, None], taps.weight.float()[:, None])
    return matrix.mul_(scale).view(-1, length)


def loop_taps(images: Tensor, boxes: Boxes, flip: Tensor) -> Tensor:
    """`resized_crop` image by image, so that what is worked on stays in the cache: for large images on the CPU."""
    rows, columns = _both_taps(images, boxes, flip)
    made = np.empty(images.shape, np.uint8)
    x_low, x_high, y_low, y_high = (t.numpy() for t in (columns.low, columns.high, rows.low, rows.high))
    x_weight, y_weight = columns.weight.float().numpy(), rows.weight.float().numpy()[:, :, None]
    for number, image in enumerate(images.numpy()):
        first, last = y_low[number, 0], y_high[number, -1] + 1
        band = image[:, first:last]  # only the rows that are needed
        across = band.take(x_low[number], axis=2) * (_ONE - x_weight[number])
        across += band.take(x_high[number], axis=2) * x_weight[number]
        across *= np.float32(_FIRST)
        np.rint(across, out=across)
        out = across.take(y_low[number] - first, axis=1) * (_ONE - y_weight[number])
        out += across.take(y_high[number] - first, axis=1) * y_weight[number]
        out *= np.float32(_SECOND)
        made[number] = np.rint(out, out=out)
    return torch.from_numpy(made)
