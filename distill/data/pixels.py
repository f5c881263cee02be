"""Moving images about: to a device, into bytes, row by row, box by box. Always the form that is fast where they lie."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# Values that are worked on at a time on the CPU: a few floats for each still fit the cache.
_PART_VALUES = 1 << 17
# A thread is worth starting for so many values.
_SHARE_VALUES = 1 << 17


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for it. Memory is pinned first: torch keeps it until then."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def to_bytes(pixels: Tensor) -> Tensor:
    """Whole grey levels as uint8, any shape. numpy's cast is seven times as fast as torch's on the CPU."""
    if pixels.device.type != "cpu":
        return pixels.to(torch.uint8)
    return torch.from_numpy(pixels.numpy().astype(np.uint8))


def chosen(inside: Tensor, there: Tensor, elsewhere: Tensor) -> Tensor:
    """`there` where `inside` is 255, `elsewhere` where it is 0, all uint8. Bits, as torch.where is slow on bytes."""
    return (there & inside) | (elsewhere & ~inside)


def rows_of(images: Tensor, rows: Tensor) -> Tensor:
    """Some of the images: [B, ch, H, W], int64 [n] on the CPU -> [n, ch, H, W].

    By numpy on the CPU: torch would share out even this little among its threads, which on a busy machine wait for each
    other much longer than the copy takes.
    """
    if images.device.type != "cpu":
        return images.index_select(0, moved(rows, images.device))
    return torch.from_numpy(images.numpy().take(rows.numpy(), axis=0))


def with_rows(images: Tensor, rows: Tensor, new: Tensor) -> Tensor:
    """A copy with some images replaced: uint8 [B, ch, H, W], int64 [n] on the CPU, uint8 [n, ch, H, W] -> [B, ...]."""
    if len(rows) == len(images):  # all of them, in order
        return new
    if images.device.type != "cpu":
        return images.index_copy(0, moved(rows, images.device), new)
    made = images.numpy().copy()
    made[rows.numpy()] = new.numpy()  # by whole rows, where torch goes value by value
    return torch.from_numpy(made)


class Divisible(Protocol):
    """Something for each image of a batch: a tensor, or parameters that can be cut like one."""

    def __getitem__(self, place: slice, /) -> Any:
        """Those of some images."""


def in_parts(change: Callable[..., Tensor], images: Tensor, *others: Divisible, values: int = _PART_VALUES) -> Tensor:
    """Works on a few images of the CPU at a time, so that what is worked on stays in its cache; on a device on all.

    Args:
        change: from some of the images, and of the others, to their views, [n, ch, H, W].
        images: uint8 [B, ch, H, W].
        others: what else it needs, something for each image.
        values: to work on at a time, about.
    """
    size = max(1, values // max(1, images.shape[1:].numel()))
    if images.device.type != "cpu" or len(images) <= size:
        return change(images, *others)
    made = torch.empty_like(images)
    for start in range(0, len(images), size):
        place = slice(start, start + size)
        made[place] = change(images[place], *(other[place] for other in others))
    return made


def in_shares(change: Callable[..., Tensor], images: Tensor, *others: Divisible) -> Tensor:
    """Shares a batch on the CPU out among as many threads as torch has; arguments as for `in_parts`.

    Each thread takes its images through all operations alone. torch's own way, all threads on every operation, makes
    them wait for each other thousands of times a second, and on a machine that does other work too that wait is long.
    """
    if images.device.type != "cpu":
        return change(images, *others)
    threads = torch.get_num_threads()
    shares = max(1, min(threads, len(images), images.numel() // _SHARE_VALUES))
    bounds = [len(images) * number // shares for number in range(shares + 1)]
    places = [slice(first, last) for first, last in pairwise(bounds)]
    # A thread that begins while torch has one thread keeps to one; that others have more is put back at the end.
    torch.set_num_threads(1)
    try:
        if shares == 1:
            return change(images, *others)
        with ThreadPoolExecutor(shares, thread_name_prefix="views") as pool:
            every = (images, *others)
            return torch.cat(list(pool.map(lambda place: change(*(part[place] for part in every)), places)))
    finally:
        torch.set_num_threads(threads)
