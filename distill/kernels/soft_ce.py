# mypy: disallow-untyped-decorators=False
"""Gather label rows -> softmax -> soft cross-entropy and its gradient, in one launch (Triton).

Definition: `reference.soft_cross_entropy_rows` and `reference.soft_cross_entropy_gradient`. The table is only read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from distill.errors import BilevelError
from distill.kernels.launch import block_of, compile_options, on_device_of


@triton.jit
def _max_and_sum(row_ptr: tl.tensor, C: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """max_c x_c and sum_c exp(x_c - max) of a row, block by block; -inf entries add exactly 0."""
    highest = float("-inf")
    total = 0.0
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + cols, mask=cols < C, other=float("-inf")).to(tl.float32)
        new = tl.maximum(highest, tl.max(x, axis=0))
        # While all is -inf so far, -inf - (-inf) would be NaN.
        pivot = tl.where(new == float("-inf"), 0.0, new)
        total = total * tl.exp(highest - pivot) + tl.sum(tl.exp(x - pivot), axis=0)
        highest = new
    return tl.where(highest == float("-inf"), 0.0, highest), total


@triton.jit(do_not_specialize=["R"])
def soft_ce_kernel(
    logits_ptr: tl.tensor,  # z, [B, C]
    phi_ptr: tl.tensor,  # [R, C]
    rows_ptr: tl.tensor,  # int64 [B]
    loss_ptr: tl.tensor,  # float32 [B], written
    gradient_ptr: tl.tensor,  # float32 [B, C], written if WRITE_GRADIENT
    labels_ptr: tl.tensor,  # float32 [B, C], written if WRITE_LABELS
    R: tl.tensor,
    C: tl.tensor,
    WRITE_GRADIENT: tl.constexpr,
    WRITE_LABELS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per image."""
    image = tl.program_id(0).to(tl.int64)
    row = tl.load(rows_ptr + image)
    # A row that is not in the table reads nothing: its labels become 0 / 0 and its loss NaN.
    phi_C = tl.where((row >= 0) & (row < R), C, 0)
    z_row = logits_ptr + image * C
    phi_row = phi_ptr + row * C
    z_max, z_sum = _max_and_sum(z_row, C, BLOCK)
    phi_max, phi_sum = _max_and_sum(phi_row, phi_C, BLOCK)
    z_log_sum = tl.log(z_sum)
    loss = 0.0
    for start in range(0, C, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        z = tl.load(z_row + cols, mask=cols < C, other=float("-inf")).to(tl.float32)
        phi = tl.load(phi_row + cols, mask=cols < phi_C, other=float("-inf")).to(tl.float32)
        y = tl.exp(phi - phi_max) / phi_sum
        # The maximum is subtracted before log_sum is added: with large logits the sum would swallow it.
        surprise = z_log_sum + (z_max - z)
        loss += tl.sum(y * tl.where(y == 0.0, 0.0, surprise), axis=0)
        out = image * C + cols
        if WRITE_GRADIENT:
            tl.store(gradient_ptr + out, tl.exp(z - z_max) / z_sum - y, mask=cols < C)
        if WRITE_LABELS:
            tl.store(labels_ptr + out, y, mask=cols < C)
    tl.store(loss_ptr + image, loss)


def soft_ce(
    logits: Tensor, phi: Tensor, rows: Tensor, *, want_gradient: bool, want_labels: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The kernel as it is, without autograd.

    Args:
        logits: z, [B, C].
        phi: [R, C], contiguous.
        rows: int64 [B]. A row outside [0, R) gives NaN.
        want_gradient: return softmax(z) - y.
        want_labels: return y.

    Returns:
        Loss [B], gradient [B, C] (of each image's own loss, not of their mean), labels [B, C]; all float32.
    """
    logits, rows = logits.contiguous(), rows.contiguous()
    batch, classes = logits.shape
    loss = torch.empty(batch, dtype=torch.float32, device=logits.device)
    gradient = torch.empty_like(logits, dtype=torch.float32) if want_gradient else None
    labels = torch.empty_like(logits, dtype=torch.float32) if want_labels else None
    block = block_of(classes)
    with on_device_of(logits):
        soft_ce_kernel[(batch,)](
            logits,
            phi,
            rows,
            loss,
            loss if gradient is None else gradient,
            loss if labels is None else labels,
            phi.shape[0],
            classes,
            WRITE_GRADIENT=want_gradient,
            WRITE_LABELS=want_labels,
            BLOCK=block,
            **compile_options(block),
        )
    return loss, gradient, labels


class SoftCrossEntropyRows(torch.autograd.Function):
    """`soft_ce` under autograd: the gradient goes to the logits and to nothing else, once."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, phi: Tensor, rows: Tensor, keep_labels: bool) -> tuple[Tensor, Tensor | None]:
        """-> loss [B], and the labels [B, C] if they are to be kept."""
        loss, gradient, labels = soft_ce(
            logits, phi, rows, want_gradient=ctx.needs_input_grad[0], want_labels=keep_labels
        )
        ctx.dtype = logits.dtype
        ctx.set_materialize_grads(False)  # else zeros [B, C] would be made for the labels
        if gradient is not None:
            ctx.save_for_backward(gradient)
        if labels is not None:
            ctx.mark_non_differentiable(labels)
        return loss, labels

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, _labels: None) -> tuple[Tensor, None, None, None]:
        """dL/d loss [B] -> dL/dz [B, C], in the logits' dtype."""
        # once_differentiable would not do: it lets a second derivative through as a constant.
        if torch.is_grad_enabled():
            raise BilevelError(
                "kernels: the Triton soft cross-entropy has no second derivative (create_graph=True)",
                cure='set the backend to "reference" where the step is unrolled.',
            )
        (gradient,) = ctx.saved_tensors
        return (gradient * loss_gradient.unsqueeze(1)).to(ctx.dtype), None, None, None


def apply(logits: Tensor, phi: Tensor, rows: Tensor, *, keep_labels: bool) -> tuple[Tensor, Tensor | None]:
    """`SoftCrossEntropyRows`, typed: loss [B], and labels [B, C] or None."""
    loss: Tensor
    labels: Tensor | None
    loss, labels = SoftCrossEntropyRows.apply(logits, phi, rows, keep_labels)
    return loss, labels
