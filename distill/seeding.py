"""Randomness as a pure function of (seed, purpose, numbers).

Nothing here keeps state, so the same draw can be made again at any time, in any order and in any process: resuming
needs no generator state, and dropout masks are replayed by seeding again with the same key.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# splitmix64's constants (Steele, Lea, Flood 2014), written as the signed 64-bit integers that torch has.
_GOLDEN = -7046029254386353131
_MIX_1 = -4658895280553007687
_MIX_2 = -7723592293110705685


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A seed in [0, 2^63) for one purpose: `derive(0, "order", epoch)`."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """A fresh CPU generator for one purpose."""
    return torch.Generator().manual_seed(derive(seed, purpose, *numbers))


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """`x >> bits` as if x were unsigned; torch's shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def draw(key: int, i: Tensor, k: Tensor) -> Tensor:
    """Uniform integers in [0, 2^63), one for each pair of image index and view number.

    Args:
        key: what the draw is for, from `derive`.
        i: image indices, int64 [B].
        k: view numbers, int64 [B] or broadcastable to it.

    Returns:
        int64 [B], the same for the same (key, i, k) whatever the batch.
    """
    if i.device.type == "cpu":
        drawn = (_array_state(key, i, k) >> np.uint64(1)).view(np.int64)
        return torch.from_numpy(drawn).view(np.broadcast_shapes(tuple(i.shape), tuple(k.shape)))
    return _logical_shift(_state(key, i, k), 1)


def draw_bytes(key: int, i: Tensor, k: Tensor, count: int) -> Tensor:
    """Uniform bytes, `count` for each pair of image index and view number: noise for pixels.

    Args:
        key: what the draw is for, from `derive`.
        i: image indices, int64 [B].
        k: view numbers, int64 [B].
        count: bytes for each.

    Returns:
        uint8 [B, count], on the device of `i`; fewer bytes are the first of more.
    """
    words = -(-count // 8)
    if i.device.type == "cpu":
        block = np.arange(1, words + 1, dtype=np.uint64) * _unsigned(_GOLDEN)
        mixed = _array_mix(_array_state(key, i, k)[:, None] + block)
        return torch.from_numpy(mixed.view(np.uint8))[:, :count]
    block_on_device = torch.arange(1, words + 1, device=i.device) * _GOLDEN
    return _mix(_state(key, i, k)[:, None] + block_on_device).view(torch.uint8)[:, :count]


def _state(key: int, i: Tensor, k: Tensor) -> Tensor:
    state = _mix(i * _GOLDEN + key)
    return _mix(state + (k + 1) * _GOLDEN)


# The same with numpy, on the CPU: it has unsigned integers, and a call of it on a batch costs a fifth of torch's.
def _unsigned(number: int) -> np.uint64:
    return np.uint64(number % 2**64)


def _array_mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * _unsigned(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * _unsigned(_MIX_2)
    return x ^ (x >> np.uint64(31))


def _array_state(key: int, i: Tensor, k: Tensor) -> npt.NDArray[np.uint64]:
    golden = _unsigned(_GOLDEN)
    # At least one axis: on a single number numpy warns of what wraps around.
    state = _array_mix(np.atleast_1d(i.numpy().view(np.uint64)) * golden + _unsigned(key))
    return _array_mix(state + (np.atleast_1d(k.numpy().view(np.uint64)) + np.uint64(1)) * golden)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Runs the body with the device's default generator at `seed`, and puts the generator back afterwards."""
    source = _default_generator(device)
    before = source.get_state()
    source.manual_seed(seed)
    try:
        yield
    finally:
        source.set_state(before)


def _default_generator(device: torch.device) -> torch.Generator:
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index if device.index is not None else torch.cuda.current_device()]
    return torch.default_generator
