"""A judge of host synchronisation that needs no GPU: whatever the host would have to wait for the device for, raises.

What it cannot see is a wait inside a kernel library, and `.tolist()` and `.numpy()` of real tensors on the CPU. Where
there is a GPU, torch has a judge of its own: `gpu_must_not_wait`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
_COPYING = ("_to_copy", "copy_", "copy")


class HostSync(AssertionError):  # noqa: N818
    """The host would have waited for the device."""


@contextmanager
def no_host_sync(device: str = "cpu") -> Iterator[None]:
    """Raises `HostSync` on every operation of the body that makes the host wait.

    Those whose value or shape the host must read: item, bool, equal, nonzero, unique, masked_select, bincount and all
    others that torch tags so; indexing by a mask; copies from one device to another that are not `non_blocking`, the
    number's in `x[rows] = number` too.

    Args:
        device: the type of the device whose tensors count. On "cpu" it is a stand-in for a GPU, and the whole step can
            run. With `fake_cuda` it is "cuda", and reading a number that really lies on the CPU is free.
    """
    with _Watch(device):
        yield


@contextmanager
def fake_cuda() -> Iterator[torch.device]:
    """Tensors made in the body may be on "cuda:0" with no GPU there: they have shapes and devices, and no values.

    Mixed devices raise as on a GPU, and what is done only for CUDA tensors is walked. Without a GPU torch cannot run a
    backward pass of theirs, nor Triton a kernel.
    """
    with FakeTensorMode(), no_host_sync("cuda"):
        yield torch.device("cuda:0")


@contextmanager
def gpu_must_not_wait() -> Iterator[None]:
    """With a GPU: torch raises where the host would wait for it."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Watch(TorchDispatchMode):
    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        target = kwargs.get("device")
        devices = {t.device for t in tensors} | ({torch.device(target)} if target is not None else set())
        if any(d.type == self.device for d in devices) and (why := _why_it_waits(func, args, kwargs, devices)):
            raise HostSync(f"{func}: {why}")
        return func(*args, **kwargs)


def _why_it_waits(func: Any, args: Any, kwargs: Any, devices: set[torch.device]) -> str:
    name = func._schema.name.removeprefix("aten::")
    if name in _INDEXING:
        return _why_indexing_waits(args[0], args[1], args[2] if len(args) > 2 else args[0])
    if torch.Tag.data_dependent_output in func.tags:
        return "the host reads a value"
    if torch.Tag.dynamic_output_shape in func.tags:
        return "the result's shape depends on values"
    if name in _COPYING and len(devices) > 1 and not (kwargs.get("non_blocking") or args[2:] == (True,)):
        return f"a blocking copy between {' and '.join(sorted(map(str, devices)))}"
    return ""


def _why_indexing_waits(indexed: Tensor, indices: Sequence[Tensor | None], values: Tensor) -> str:
    if values.device != indexed.device:
        return f"what is written is on {values.device}, the tensor on {indexed.device}"
    for index in indices:
        if index is not None and index.dtype in (torch.bool, torch.uint8):
            return "indexing by a mask counts its entries"
        if index is not None and index.device != indexed.device:
            return f"the index is on {index.device}, the tensor on {indexed.device}"
    return ""
