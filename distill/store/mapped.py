"""A safetensors file as a memory map whose pages can be given back.

Pages of a map that were read count as the process's memory until the kernel wants them, so random reads of a large
store look like a leak. `release` gives them back at once; they stay in the page cache, and nothing has to be opened or
checked again. The map holds no file handle, so a store may have more files than a process may open.
"""

from __future__ import annotations

import ctypes
import json
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import check_regular
from distill.store.tensors import DTYPES, opened, parsed_facts

_MADVISE = ctypes.CDLL(None).madvise
_MADVISE.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
PAGES_BESIDE = 2**16
"""Bytes that Linux maps around a byte that is read, as far as they are in the page cache (fault_around_bytes)."""


class MappedFile:
    """Maps the file; only what is indexed is read. Writing to the tensors is not allowed: `release` would undo it.

    Attributes:
        tensors: by name, on the CPU.
        facts: the JSON that was stored with them, None when there is none.

    Raises:
        StoreError: the file is missing, truncated, or no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        path = Path(path)
        with opened(path) as file:  # the library checks the header: offsets, shapes, nothing left over
            self.facts: Any = parsed_facts(path, file)
        try:
            self._bytes = torch.from_file(str(path), shared=False, size=check_regular(path), dtype=torch.uint8)
            length = int.from_bytes(self._bytes[:8].numpy().tobytes(), "little")
            header = json.loads(self._bytes[8 : 8 + length].numpy().tobytes())
            header.pop("__metadata__", None)
            self.tensors = {name: self._tensor(entry, 8 + length) for name, entry in sorted(header.items())}
        except (RuntimeError, ValueError, KeyError) as error:
            raise StoreError(f"{path}: cannot be mapped: {error}", cure="The file is damaged.") from error
        self._advise(mmap.MADV_RANDOM)

    def _tensor(self, entry: dict[str, Any], base: int) -> Tensor:
        start, stop = entry["data_offsets"]
        return self._bytes[base + start : base + stop].view(DTYPES[entry["dtype"]]).view(entry["shape"])

    def release(self) -> None:
        """Gives back the memory of all pages that were read; reading them again costs what a page fault costs."""
        self._advise(mmap.MADV_DONTNEED)

    def _advise(self, advice: int) -> None:
        # `_bytes` is a private map of the whole file that nobody has written to, so dropping its pages loses nothing.
        _MADVISE(self._bytes.data_ptr(), self._bytes.numel(), advice)
