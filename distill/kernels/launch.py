"""How the kernels are launched: one program per row of C classes, walked block by block, on the tensors' device."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor

LARGEST = 2048  # classes that one program holds at once; a longer row is walked in pieces


def block_of(classes: int) -> int:
    """The block for rows of C classes: a power of two, C or more unless C is above `LARGEST`."""
    return min(1 << (classes - 1).bit_length(), LARGEST)


def compile_options(block: int) -> dict[str, int | bool]:
    """Triton's compile options for a block: at most eight classes per thread."""
    return {
        "num_warps": max(1, min(block // 256, 8)),
        "num_stages": 1,  # the loops mostly run once: nothing to pipeline
        "enable_fp_fusion": False,  # products and sums round as in the reference; the cost is memory, not arithmetic
    }


def on_device_of(tensor: Tensor) -> AbstractContextManager[None]:
    """Triton launches on torch's current device, which need not be the tensor's. Nothing happens on the CPU."""
    guard: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return guard
