# mypy: disallow-untyped-decorators=False
"""SGD with momentum and Adam on the label rows that a batch touched, and on no others (Triton).

Definitions: `reference.sgd_rows_` and `reference.adam_rows_`. A batch may name a row more than once. Its entries are
ranked by row on the device; the program at the first rank of a row adds up all of that row's gradients, in the batch's
order, and is the only one that reads or writes the row. So there is no race, no atomic, and the same bits every time.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton  # type: ignore[import-untyped,import-not-found,unused-ignore]
import triton.language as tl  # type: ignore[import-untyped,import-not-found,unused-ignore]
from torch import Tensor

from distill.kernels.launch import block_of, compile_options, on_device_of


@triton.jit
def _row_and_lead(
    ranked_ptr: tl.tensor,  # int64 [B], ascending
    rank: tl.tensor,
    R: tl.tensor,
) -> tl.tensor:
    """The row at a rank, and whether this rank is the one to update it."""
    row = tl.load(ranked_ptr + rank)
    before = tl.load(ranked_ptr + rank - 1, mask=rank > 0, other=-1)
    # A row that is not in the table is left out; where it was read, its loss became NaN.
    return row, (row != before) & (row >= 0) & (row < R)


@triton.jit
def _segment_end(
    ranked_ptr: tl.tensor,  # int64 [B], ascending
    rank: tl.tensor,
    row: tl.tensor,
    B: tl.tensor,
) -> tl.tensor:
    """The rank after the last repeat of the row that begins at a rank."""
    end = rank + 1
    while tl.load(ranked_ptr + end, mask=end < B, other=-1) == row:
        end += 1
    return end


@triton.jit
def _combined(
    order_ptr: tl.tensor,  # int64 [B]: rank -> batch entry
    gradient_ptr: tl.tensor,  # [B, C]
    rank: tl.tensor,
    end: tl.tensor,
    cols: tl.tensor,
    C: tl.tensor,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Sum or mean of the gradients at ranks [rank, end), float32 [BLOCK]."""
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for repeat in range(rank, end):
        entry = tl.load(order_ptr + repeat)
        total += tl.load(gradient_ptr + entry * C + cols, mask=cols < C, other=0.0).to(tl.float32)
    if MEAN:
        total = total / (end - rank).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["R", "B"])
def sgd_kernel(
    phi_ptr: tl.tensor,  # [R, C], read and written
    buffer_ptr: tl.tensor,  # m, [R, C], read and written if MOMENTUM > 0
    touched_ptr: tl.tensor,  # uint8 [R], written
    ranked_ptr: tl.tensor,  # int64 [B], ascending
    order_ptr: tl.tensor,  # int64 [B]
    gradient_ptr: tl.tensor,  # [B, C]
    step_ptr: tl.tensor,  # []
    R: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    MOMENTUM: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per rank; those that do not lead a row do nothing."""
    rank = tl.program_id(0)
    row, leads = _row_and_lead(ranked_ptr, rank, R)
    if leads:
        end = _segment_end(ranked_ptr, rank, row, B)
        step = tl.load(step_ptr).to(tl.float32)
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            at = row * C + cols  # int64, because row is
            g = _combined(order_ptr, gradient_ptr, rank, end, cols, C, MEAN, BLOCK)
            if MOMENTUM > 0:
                g += MOMENTUM * tl.load(buffer_ptr + at, mask=cols < C, other=0.0).to(tl.float32)
                tl.store(buffer_ptr + at, g, mask=cols < C)
            phi = tl.load(phi_ptr + at, mask=cols < C, other=0.0).to(tl.float32)
            tl.store(phi_ptr + at, phi - step * g, mask=cols < C)
        tl.store(touched_ptr + row, 1)


@triton.jit(do_not_specialize=["R", "B"])
def adam_kernel(
    phi_ptr: tl.tensor,  # [R, C], read and written
    first_ptr: tl.tensor,  # m, [R, C], read and written
    second_ptr: tl.tensor,  # v, [R, C], read and written
    steps_ptr: tl.tensor,  # t, int32 [R], read and written
    touched_ptr: tl.tensor,  # uint8 [R], written
    ranked_ptr: tl.tensor,  # int64 [B], ascending
    order_ptr: tl.tensor,  # int64 [B]
    gradient_ptr: tl.tensor,  # [B, C]
    step_ptr: tl.tensor,  # []
    R: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    LOG_BETA1: tl.constexpr,
    LOG_BETA2: tl.constexpr,
    EPS: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One program per rank; those that do not lead a row do nothing."""
    rank = tl.program_id(0)
    row, leads = _row_and_lead(ranked_ptr, rank, R)
    if leads:
        end = _segment_end(ranked_ptr, rank, row, B)
        step = tl.load(step_ptr).to(tl.float32)
        t = tl.load(steps_ptr + row) + 1
        # In float64: 1 - b^t in float32 loses four digits at b = .999 and t = 1. Two numbers a row, so it is cheap.
        correction1 = (1.0 - tl.exp(t.to(tl.float64) * LOG_BETA1)).to(tl.float32)
        correction2 = (1.0 - tl.exp(t.to(tl.float64) * LOG_BETA2)).to(tl.float32)
        for start in range(0, C, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            at = row * C + cols  # int64, because row is
            g = _combined(order_ptr, gradient_ptr, rank, end, cols, C, MEAN, BLOCK)
            m = BETA1 * tl.load(first_ptr + at, mask=cols < C, other=0.0).to(tl.float32) + (1.0 - BETA1) * g
            v = BETA2 * tl.load(second_ptr + at, mask=cols < C, other=0.0).to(tl.float32) + (1.0 - BETA2) * g * g
            phi = tl.load(phi_ptr + at, mask=cols < C, other=0.0).to(tl.float32)
            change = (m / correction1) / (tl.sqrt(v / correction2) + EPS)
            tl.store(first_ptr + at, m, mask=cols < C)
            tl.store(second_ptr + at, v, mask=cols < C)
            tl.store(phi_ptr + at, phi - step * change, mask=cols < C)
        tl.store(steps_ptr + row, t)
        tl.store(touched_ptr + row, 1)


def sgd_rows_(
    phi: Tensor,
    buffer: Tensor | None,
    touched: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    step: Tensor,
    momentum: float,
    mean: bool,
) -> None:
    """See `reference.sgd_rows_`; tables contiguous, rows outside the table left out."""
    state = (phi, phi if buffer is None else buffer, touched)
    _launch(sgd_kernel, state, rows, gradient, step, MOMENTUM=momentum, MEAN=mean)


def adam_rows_(
    phi: Tensor,
    first: Tensor,
    second: Tensor,
    steps: Tensor,
    touched: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    step: Tensor,
    betas: tuple[float, float],
    eps: float,
    mean: bool,
) -> None:
    """See `reference.adam_rows_`; tables contiguous, rows outside the table left out."""
    constants = {"BETA1": betas[0], "BETA2": betas[1], "LOG_BETA1": _log(betas[0]), "LOG_BETA2": _log(betas[1])}
    _launch(adam_kernel, (phi, first, second, steps, touched), rows, gradient, step, **constants, EPS=eps, MEAN=mean)


def _launch(
    kernel: Any, state: tuple[Tensor, ...], rows: Tensor, gradient: Tensor, step: Tensor, **constants: float
) -> None:
    """One program per batch entry, the entries ranked by row; `state` opens with phi and ends with touched."""
    phi, *others, touched = state
    count, classes = phi.shape
    ranked, order = torch.sort(rows, stable=True)
    block = block_of(classes)
    with on_device_of(phi):
        kernel[(rows.numel(),)](
            phi,
            *others,
            touched.view(torch.uint8),
            ranked,
            order,
            gradient.contiguous(),
            step,
            count,
            rows.numel(),
            classes,
            **constants,
            BLOCK=block,
            **compile_options(block),
        )


def _log(beta: float) -> float:
    """log(beta); at beta = 0 a number whose exponential is 0."""
    return math.log(beta) if beta > 0 else -1e6
