"""Colour operations on batches, with a factor for each image: torchvision's formulas.

Images are float32 [B, ch, H, W] that hold whole grey levels from 0 to 255, and so they are returned: every operation
cuts off what is below a grey level, as torchvision's do on uint8. Each step is one multiplication, addition or division
that IEEE 754 fixes to the last bit, never a fused pair, and sums are of whole numbers: the result depends neither on
the batch nor on the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.data import compiled
from distill.data.draws import uniform
from distill.data.pixels import array, moved, room_for
from distill.recipe.schema import ViewsRecipe

# Luma of red, green and blue, ITU-R 601, as torchvision rounds it.
_LUMA = (0.2989, 0.587, 0.114)
# torchvision goes from hue, saturation and value back to bytes so that 1.0 falls just short of 256.
_TO_BYTES = 255.999 / 255


@dataclass(frozen=True)
class Jitter:
    """Factors of brightness, contrast and saturation, and shifts of the hue: float32 [B] each; None: left out."""

    brightness: Tensor | None
    contrast: Tensor | None
    saturation: Tensor | None
    hue: Tensor | None

    def __getitem__(self, rows: slice) -> Jitter:
        """Those of some images."""

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows]

        return Jitter(cut(self.brightness), cut(self.contrast), cut(self.saturation), cut(self.hue))


def jitter_parameters(indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int) -> Jitter:
    """What colour jitter does to view k of each image; factors are uniform from 1 - strength (0 at least) to 1 + it.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        recipe: the views.
        seed: of the views.
    """

    def factor(name: str, strength: float) -> Tensor | None:
        bounds = (max(0.0, 1 - strength), 1 + strength)
        return uniform(seed, name, indices, k, bounds).float() if strength else None

    hue = uniform(seed, "hue", indices, k, (-recipe.hue, recipe.hue)).float() if recipe.hue else None
    return Jitter(
        brightness=factor("brightness", recipe.brightness),
        contrast=factor("contrast", recipe.contrast),
        saturation=factor("saturation", recipe.saturation),
        hue=hue,
    )


def jitter(images: Tensor, parameters: Jitter, out: Tensor | None = None) -> Tensor:
    """Brightness, contrast, saturation, hue, always in this order: uint8 [B, ch, H, W] -> the same, on any device.

    torchvision draws the order; a fixed one lets the whole batch do the same. Images without three channels have
    neither saturation nor hue and keep what they have. On the CPU the result goes into `out`, if it is given.
    """
    if images.device.type != "cpu":
        return jitter_together(images, parameters)
    given = (parameters.brightness, parameters.contrast, parameters.saturation, parameters.hue)
    factors = np.zeros((len(given), len(images)), np.float32)
    for number, values in enumerate(given):
        if values is not None:
            factors[number] = values.numpy()
    wanted = np.array([values is not None for values in given])
    made = room_for(images, out)
    compiled.color.jitter(array(images.flatten(2)), factors, wanted, made.flatten(2).numpy())
    return made


def jitter_together(images: Tensor, parameters: Jitter) -> Tensor:
    """`jitter`, operation by operation on all images: for devices, and what defines the result."""
    pixels = images.float()
    steps = ((brightness, parameters.brightness), (contrast, parameters.contrast))
    coloured = ((saturation, parameters.saturation), (hue, parameters.hue)) if images.shape[1] == 3 else ()
    for change, factors in (*steps, *coloured):
        if factors is not None:
            pixels = change(pixels, moved(factors, images.device))
    return pixels.to(torch.uint8)


def brightness(pixels: Tensor, factors: Tensor) -> Tensor:
    """Multiplies: float32 [B, ch, H, W], [B] -> [B, ch, H, W]. Works in place."""
    return pixels.mul_(_each(factors)).clamp_(max=255).floor_()


def contrast(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blends with the mean grey of the image, or moves away from it. Arguments as for `brightness`."""
    level = mean_grey(pixels)[:, None, None, None]
    return pixels.mul_(_each(factors)).add_(level * (1 - _each(factors))).clamp_(0, 255).floor_()


def saturation(pixels: Tensor, factors: Tensor) -> Tensor:
    """Blends with the grey image, or moves away from it; three channels. Arguments as for `brightness`."""
    grey = grey_of(pixels).mul_(1 - _each(factors))
    return pixels.mul_(_each(factors)).add_(grey).clamp_(0, 255).floor_()


def hue(pixels: Tensor, shifts: Tensor) -> Tensor:
    """Turns the hue by a part of the circle, -0.5 to 0.5; value and saturation stay. Three channels.

    With M the largest and m the smallest of a pixel's three values, c = M - m, and h its hue from 0 to 6, channel n is
    M - c * max(0, min(k, 4 - k, 1)), where k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.

    Args:
        pixels: float32 [B, 3, H, W].
        shifts: float32 [B].
    """
    red, green, blue = pixels.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    chroma = largest - torch.minimum(torch.minimum(red, green), blue)
    # 1 where a channel is the (first) largest, else 0. Not torch.where, which takes ten times as long as an addition.
    is_red = (red - largest).add_(1).clamp_(min=0)
    is_green = (green - largest).add_(1).clamp_(min=0).mul_(1 - is_red)
    is_blue = (1 - is_red).sub_(is_green)
    sixth = (is_green * 2).add_(is_blue * 4).mul_(chroma)
    sixth += is_red.mul_(green - blue)
    sixth += is_green.mul_(blue - red)
    sixth += is_blue.mul_(red - green)
    sixth /= chroma.clamp(min=1)  # grey pixels have no hue, and chroma 0 leaves them as they are
    sixth += (shifts * 6)[:, None, None]  # from -4 to 8
    sixth -= (sixth / 6).floor_().mul_(6)
    made = torch.empty_like(pixels)
    for channel, n in enumerate((5, 3, 1)):
        # min(k, 4 - k) is 2 - |k - 2|; for n + h from 1 to 11, | |n + h - 5| - 3 | is the distance from 2 on the circle
        distance = (sixth + (n - 5)).abs_().sub_(3).abs_()
        made[:, channel] = distance.sub_(2).clamp_(-1, 0).mul_(chroma).add_(largest)
    return made.mul_(_TO_BYTES).floor_()


def grey_of(pixels: Tensor) -> Tensor:
    """The grey image, cut off to whole levels: float32 [B, 3, H, W] -> [B, 1, H, W], a new tensor."""
    grey = pixels[:, 0:1] * _LUMA[0]
    grey += pixels[:, 1:2] * _LUMA[1]
    grey += pixels[:, 2:3] * _LUMA[2]
    return grey.floor_()


def mean_grey(pixels: Tensor) -> Tensor:
    """The mean of the grey image, or of all values where there are not three channels: float32 [B, ch, H, W] -> [B]."""
    grey = grey_of(pixels) if pixels.shape[1] == 3 else pixels
    total = grey.flatten(1).sum(1, dtype=torch.float64)  # of whole numbers, so exact in any order
    return (total / grey.shape[1:].numel()).float()


def _each(values: Tensor) -> Tensor:
    return values[:, None, None, None]
