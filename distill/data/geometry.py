"""Where a view's pixels come from: crop with padding, resized crop, flip.

uint8 in, uint8 out. All arithmetic is on whole numbers, or on floats that hold whole numbers exactly, so the pixels are
the same on every device, in every batch and for any number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data import compiled
from distill.data.draws import Boxes
from distill.data.pixels import array, moved, room_for

# Bilinear weights are multiples of 1/2048: with 8-bit pixels every sum stays below 2^24, which float32 holds exactly.
_WEIGHT_BITS = 11
_ONE = 1 << _WEIGHT_BITS
_KEPT_BITS = 3  # below a grey level, between the two passes of a resize


@dataclass(frozen=True)
class ViewParameters:
    """What makes a crop: the corner in the padded image, int64 [B] from 0 to 2p, and a mirror, bool [B]."""

    top: Tensor
    left: Tensor
    flip: Tensor

    def __getitem__(self, rows: slice) -> ViewParameters:
        """Those of some images."""
        return ViewParameters(self.top[rows], self.left[rows], self.flip[rows])


def crop_and_flip(images: Tensor, parameters: ViewParameters, padding: int, out: Tensor | None = None) -> Tensor:
    """Pads with zeros, crops to the old size, mirrors: uint8 [B, ch, H, W] -> the same, on the same device.

    On the CPU a compiled loop copies rows, into `out` if it is given; elsewhere one gather does all images at once. The
    parameters are on the CPU.
    """
    if images.device.type != "cpu":
        return gather_views(images, parameters, padding)
    made = room_for(images, out)
    top, left, flip = (array(part, len(images)) for part in (parameters.top, parameters.left, parameters.flip))
    compiled.geometry.crop_and_flip(array(images), top, left, flip, padding, made.numpy())
    return made


def gather_views(images: Tensor, parameters: ViewParameters, padding: int) -> Tensor:
    """`crop_and_flip` as one gather over pixel numbers: for devices, and what defines the result.

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


def resized_crop(images: Tensor, boxes: Boxes, flip: Tensor, out: Tensor | None = None) -> Tensor:
    """Crops a box of each image, resizes it bilinearly to the old size, mirrors: uint8 [B, ch, H, W] -> the same.

    Pixel centres are aligned (align_corners=False) and coordinates are clamped inside the crop. A crop is never larger
    than the image, so nothing is shrunk and antialiasing has nothing to do. Within one grey level of torchvision's.

    Args:
        images: on any device.
        boxes: [B], on the CPU, each inside the image and at least one pixel wide and high.
        flip: whether to mirror, bool [B], on the CPU.
        out: where the result goes, on the CPU only; None: to new memory.
    """
    if images.device.type != "cpu":
        return gather_taps(images, boxes, flip)
    made = room_for(images, out)
    corners = (boxes.top, boxes.left, boxes.height, boxes.width)
    top, left, tall, wide = (array(part, len(images)) for part in corners)
    compiled.geometry.resized_crop(array(images), top, left, tall, wide, array(flip, len(images)), made.numpy())
    return made


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
    """`resized_crop` by four gathers: for devices, and what defines the result."""
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
