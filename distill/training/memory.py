"""Peak memory of live tensors, counted alike on every device."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the storages that operations make and that are still alive.

    A process's resident size says little on a CPU, where the allocator keeps what it got. So storages are counted,
    those that autograd saved included; a kernel's own scratch space is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and counts what it made."""
        # What comes in unseen was there before: a view of it is no new memory.
        self._meet((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self._meet(result, new=True)
        return result

    def _meet(self, tree: Any, *, new: bool) -> None:
        for tensor in tree_leaves(tree):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._seen:
                    self._count(storage, storage.nbytes() if new else 0)

    def _count(self, storage: Any, size: int) -> None:
        key = storage._cdata
        self._seen.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@contextmanager
def peak_bytes() -> Iterator[PeakBytes]:
    """Counts in the body; what was alive before is the floor and is not counted."""
    with PeakBytes() as counter:
        yield counter
