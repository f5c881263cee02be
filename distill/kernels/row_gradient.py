# mypy: disallow-untyped-decorators=False
"""From dL/dy to dL/dphi for y = softmax(phi) (Triton). Definition: `reference.row_gradient`."""

from __future__ import annotations

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from distill.kernels.launch import block_of, compile_options, on_device_of


@triton.jit
def row_gradient_kernel(
    labels_ptr: tl.tensor,  # y, [B, C]
    derivative_ptr: tl.tensor,  # a, [B, C]
    scale_ptr: tl.tensor,  # []
    gradient_ptr: tl.tensor,  # float32 [B, C], written
    C: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """One program per batch entry."""
    first = tl.program_id(0).to(tl.int64) * C
    scale = tl.load(scale_ptr).to(tl.float32)
    expected = 0.0  # sum_c y_c a_c
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        y = tl.load(labels_ptr + first + cols, mask=cols < C, other=0.0).to(tl.float32)
        a = tl.load(derivative_ptr + first + cols, mask=cols < C, other=0.0).to(tl.float32)
        expected += tl.sum(y * a, axis=0)
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        y = tl.load(labels_ptr + first + cols, mask=cols < C, other=0.0).to(tl.float32)
        a = tl.load(derivative_ptr + first + cols, mask=cols < C, other=0.0).to(tl.float32)
        tl.store(gradient_ptr + first + cols, y * (a - expected) * scale, mask=cols < C)


def row_gradient(labels: Tensor, derivative: Tensor, scale: Tensor) -> Tensor:
    """scale * y * (a - sum_c y_c a_c).

    Args:
        labels: y, [B, C].
        derivative: a, [B, C].
        scale: [], on the device; it is read there, so the host does not wait.

    Returns:
        float32 [B, C].
    """
    labels, derivative = labels.contiguous(), derivative.contiguous()
    batch, classes = labels.shape
    gradient = torch.empty_like(labels, dtype=torch.float32)
    block = block_of(classes)
    with on_device_of(labels):
        row_gradient_kernel[(batch,)](
            labels,
            derivative,
            scale,
            gradient,
            classes,
            BLOCK=block,
            **compile_options(block),
        )
    return gradient
