"""What views are drawn from: numbers, chances and boxes out of the hash of (seed, image, view number).

Every function here looks at one image at a time, whatever the batch. Only operations that IEEE 754 fixes to the last
bit are used on tensors (no exp, log or sin, whose last bit may depend on where in a batch a number stands); what needs
more is read from a table made once, number by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from distill.data import compiled
from distill.data.pixels import array, moved
from distill.seeding import derive

ATTEMPTS = 10  # at a box that fits, as in torchvision and timm
SHARES = 4096  # mixing coefficients are multiples of 1/4096: with 8-bit pixels, exact in float32
_LEVELS = 4096  # of a number that is read from a table
_QUANTILES = 4095  # odd, so that none of a uniform distribution's is half way between two shares
_Range = tuple[float, ...]  # least and most


@dataclass(frozen=True)
class Boxes:
    """A rectangle in each image, int64 [B] each. No height: none."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor

    def __getitem__(self, rows: Tensor | slice) -> Boxes:
        """Those of some images."""
        return Boxes(self.top[rows], self.left[rows], self.height[rows], self.width[rows])

    def mask(self, height: int, width: int, device: torch.device) -> Tensor:
        """255 inside, 0 elsewhere: uint8 [B, 1, H, W] on the device."""
        rows = _inside(height, self.top, self.height, device)
        columns = _inside(width, self.left, self.width, device)
        return (rows[:, :, None] & columns[:, None, :])[:, None]


def _inside(length: int, start: Tensor, size: Tensor, device: torch.device) -> Tensor:
    """uint8 [B, length]: 255 from `start` on, `size` long."""
    place = torch.arange(length, device=device)
    first, last = moved(start, device)[:, None], moved(start + size, device)[:, None]
    return ((place >= first) & (place < last)).to(torch.uint8).mul_(255)


def root(x: Tensor) -> Tensor:
    """The square root, float64 [...] -> [...], by numpy: torch hands it to MKL, which neither promises the last bit nor
    leaves a few numbers to one thread.
    """
    return torch.from_numpy(np.sqrt(x.numpy()))


def draw(seed: int, purpose: str, i: Tensor, k: Tensor) -> Tensor:
    """Uniform integers in [0, 2^63), as `seeding.draw` has them: int64 [B], int64 [B] -> int64 [B]."""
    made = np.empty(i.shape[0], np.int64)
    compiled.draws.draw(_key(seed, purpose), array(i), array(k, i.shape[0]), made)
    return torch.from_numpy(made)


@lru_cache(maxsize=64)
def _key(seed: int, purpose: str) -> np.uint64:
    return np.uint64(derive(seed, purpose))


def uniform(seed: int, purpose: str, i: Tensor, k: Tensor, bounds: _Range = (0.0, 1.0)) -> Tensor:
    """Uniform numbers: float64 [B], from bounds[0] on, below bounds[1] (unless they are equal)."""
    unit = (draw(seed, purpose, i, k) >> 10).double() * 2.0**-53
    return unit * (bounds[1] - bounds[0]) + bounds[0]


def below(seed: int, purpose: str, i: Tensor, k: Tensor, limit: Tensor | int) -> Tensor:
    """Uniform integers: int64 [B], from 0 on, below `limit`, a number or int64 [B]."""
    return draw(seed, purpose, i, k) % limit


def log_uniform(seed: int, purpose: str, i: Tensor, k: Tensor, bounds: _Range) -> Tensor:
    """Numbers whose logarithm is uniform between those of the bounds, on 4,096 levels: float64 [B]."""
    return _log_ladder(*bounds)[below(seed, purpose, i, k, _LEVELS)]


@lru_cache(maxsize=16)
def _log_ladder(low: float, high: float) -> Tensor:
    return torch.tensor([low * (high / low) ** ((j + 0.5) / _LEVELS) for j in range(_LEVELS)], dtype=torch.float64)


def beta_shares(seed: int, purpose: str, i: Tensor, k: Tensor, alpha: float) -> Tensor:
    """Numbers from Beta(alpha, alpha) by its inverse distribution function, in 4,096ths: int64 [B], from 0 to 4,096."""
    return _beta_ladder(alpha)[below(seed, purpose, i, k, _QUANTILES)]


@lru_cache(maxsize=16)
def _beta_ladder(alpha: float) -> Tensor:
    from scipy.special import betaincinv  # here: only mixed views need it, and it takes a while to import

    quantiles = [float(betaincinv(alpha, alpha, (j + 0.5) / _QUANTILES)) for j in range(_QUANTILES)]
    return torch.tensor([round(quantile * SHARES) for quantile in quantiles], dtype=torch.int64)


def boxes(
    seed: int, purpose: str, i: Tensor, k: Tensor, shape: tuple[int, int], area: _Range, ratio: _Range, *, smaller: bool
) -> tuple[Boxes, Tensor]:
    """A rectangle for each image: a share of the area, uniform; width over height, log-uniform; a place, uniform.

    Ten are drawn and the first that fits is taken, as in torchvision's RandomResizedCrop and RandomErasing and in
    timm's; their sides are rounded to whole pixels.

    Args:
        seed: of the views.
        purpose: what the boxes are for.
        i: source indices, int64 [B].
        k: view numbers, int64 [B].
        shape: H and W of the images.
        area: least and most share of the area.
        ratio: least and most width over height.
        smaller: whether a box has to be smaller than the image both ways.

    Returns:
        The boxes, and whether one of the ten fitted, bool [B]; where none did, the box is empty.
    """
    keys = (_key(seed, f"{purpose}-area"), _key(seed, f"{purpose}-ratio"))
    bounds, ratios = (float(area[0]), float(area[1])), _log_ladder(*ratio).numpy()
    sides = np.empty((2, len(i)), np.int64)
    compiled.draws.find_boxes(keys, array(i), array(k, len(i)), ATTEMPTS, bounds, ratios, shape, smaller, sides)
    tall, wide = torch.from_numpy(sides)
    top = below(seed, f"{purpose}-y", i, k, shape[0] - tall + 1)
    left = below(seed, f"{purpose}-x", i, k, shape[1] - wide + 1)
    return Boxes(top, left, tall, wide), tall > 0
