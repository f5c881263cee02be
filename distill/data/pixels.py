"""Moving images about: to a device, row by row, box by box, and to several threads."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor

# A thread is worth waking for so many values; for so many where they are no more than copied or blended once.
_THREAD_VALUES = 1 << 16
_COPYING_VALUES = 1 << 20
# So many are taken at a time: they fit a thread's cache.
_SHARE_VALUES = 1 << 19


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on the device, without waiting for it. Memory is pinned first: torch keeps it until then."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def array(tensor: Tensor, count: int | None = None) -> npt.NDArray[Any]:
    """A tensor of the CPU as compiled loops want it, any shape: the same memory if it is contiguous.

    Raises:
        ValueError: when it is not of `count` rows; loops do not look.
    """
    if count is not None and tensor.shape[0] != count:
        raise ValueError(f"{tensor.shape[0]} rows, expected {count}: one for each image")
    return tensor.contiguous().numpy()


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
    return images.index_copy(0, moved(rows, images.device), new)


class Divisible(Protocol):
    """Something for each image of a batch: a tensor, or parameters that can be cut like one."""

    def __getitem__(self, place: slice, /) -> Any:
        """Those of some images."""


def in_shares(change: Callable[..., Tensor], images: Tensor, *others: Divisible, copying: bool = False) -> Tensor:
    """Shares a batch on the CPU out among as many threads as torch has; on a device it is done in one go.

    Each thread takes some images through all operations alone, then some more. torch's own way, all threads on every
    operation, makes them wait for each other thousands of times a second, and on a machine that does other work too
    that wait is long.

    Args:
        change: from some of the images, and of the others, to their views, [n, ch, H, W], which it puts into `out` if
            that is not None; it runs compiled loops, which let other threads run.
        images: uint8 [B, ch, H, W].
        others: what else it needs, something for each image.
        copying: whether it does next to nothing with each value.
    """
    worth = _COPYING_VALUES if copying else _THREAD_VALUES
    threads = min(torch.get_num_threads(), len(images), images.numel() // worth)
    if images.device.type != "cpu" or threads <= 1:
        return change(images, *others, out=None)
    shares = min(len(images), max(threads, images.numel() // _SHARE_VALUES))
    bounds = [len(images) * number // shares for number in range(shares + 1)]
    todo = iter([slice(first, last) for first, last in pairwise(bounds)])
    made = room_for(images)

    def work() -> None:
        for place in todo:  # whoever comes first
            change(images[place], *(part[place] for part in others), out=made[place])

    helpers = [_helpers(threads - 1).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not begun by now, on a busy machine, is not waited for
            helper.result()
    return made


def room_for(images: Tensor, out: Tensor | None = None) -> Tensor:
    """Where the views of images go: `out`, or as much new memory: uint8 [B, ch, H, W], contiguous."""
    return torch.empty_like(images, memory_format=torch.contiguous_format) if out is None else out


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads beside the one that asks; kept, as starting them takes as long as the views of a small batch."""
    return ThreadPoolExecutor(count, thread_name_prefix="views")


# A process that was forked off has none of its parent's threads.
os.register_at_fork(after_in_child=_helpers.cache_clear)
