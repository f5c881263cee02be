"""Images for tests: noise, which has every contrast there is, and smooth ones, which have few."""

from __future__ import annotations

import torch
from torch import Tensor

SHAPES = [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 28, 28), (1, 33, 33), (3, 33, 33)]


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """uint8 [count, *shape]. No pixel is 0, so padding can be told from the image."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=generator)


def varied(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """uint8 [count, *shape]: by turns noise, a smooth picture, a flat one, a dim one, and black and white only."""
    channels, height, width = shape
    noise = pictures(count, shape, seed)
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 3, width), indexing="ij")
    phase = torch.arange(channels)[:, None, None] + torch.arange(count)[:, None, None, None]
    smooth = (127.5 + 127.5 * torch.sin(x + phase) * torch.cos(y - phase)).round().to(torch.uint8)
    flat = torch.full_like(noise, 77)
    dim = (noise // 8) + 40
    extreme = (noise > 128).to(torch.uint8) * 255
    kinds = torch.stack([noise, smooth, flat, dim, extreme])
    return kinds[torch.arange(count) % len(kinds), torch.arange(count)]


def off_by(a: Tensor, b: Tensor) -> int:
    """The largest difference in grey levels."""
    return int((a.int() - b.int()).abs().max())
