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

# A thread is worth waking for so many values.
_SHARE_VALUES = 1 << 16


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
    if count is not None and len(tensor) != count:
        raise ValueError(f"{len(tensor)} rows, expected {count}: one for each image")
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


def in_shares(change: Callable[..., Tensor], images: Tensor, *others: Divisible) -> Tensor:
    """Shares a batch on the CPU out among as many threads as torch has; on a device it is done in one go.

    Each thread takes its images through all operations alone. torch's own way, all threads on every operation, makes
    them wait for each other thousands of times a second, and on a machine that does other work too that wait is long.

    Args:
        change: from some of the images, and of the others, to their views, [n, ch, H, W]; it runs compiled loops, which
            let other threads run.
        images: uint8 [B, ch, H, W].
        others: what else it needs, something for each image.
    """
    shares = max(1, min(torch.get_num_threads(), len(images), images.numel() // _SHARE_VALUES))
    if images.device.type != "cpu" or shares == 1:
        return change(images, *others)
    bounds = [len(images) * number // shares for number in range(shares + 1)]
    made = torch.empty_like(images, memory_format=torch.contiguous_format)
    target = made.numpy()

    def work(first: int, last: int) -> None:
        place = slice(first, last)
        target[place] = change(images[place], *(part[place] for part in others)).numpy()

    mine, *theirs = pairwise(bounds)
    waiting = [_helpers(shares - 1).submit(work, *share) for share in theirs]
    work(*mine)
    for helper in waiting:
        helper.result()
    return made


@lru_cache(maxsize=1)
def _helpers(count: int) -> ThreadPoolExecutor:
    """Threads beside the one that asks; kept, as starting them takes as long as the views of a small batch."""
    return ThreadPoolExecutor(count, thread_name_prefix="views")


# A process that was forked off has none of its parent's threads.
os.register_at_fork(after_in_child=_helpers.cache_clear)
