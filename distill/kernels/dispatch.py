"""The operations on label rows as the step calls them: checked, and on the backend that was asked for.

`auto` takes Triton where it can run and the reference elsewhere; an explicit one is taken or refused, never replaced.
Triton is imported when it is first used, so that the package works where there is none.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import Literal

import torch
from torch import Tensor

from distill.errors import BilevelError
from distill.kernels import reference

Backend = Literal["auto", "reference", "triton"]
Chosen = Literal["reference", "triton"]
SUPPORTED = (torch.float32, torch.bfloat16, torch.float16)  # of the Triton kernels, which compute in float32
_OTHERWISE = 'set the backend (teacher.labels.backend) to "auto" or "reference".'
_PER_ROW = {"touched": torch.bool, "steps": torch.int32}


def choose(backend: Backend, *tensors: Tensor) -> Chosen:
    """The backend that these tensors will be worked on with, for the operations below and for the run's record.

    Raises:
        BilevelError: Triton was asked for and cannot work on them.
    """
    if backend == "reference":
        return "reference"
    obstacle = _obstacle(tensors, interpreted=backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1")
    if obstacle is None:
        return "triton"
    if backend == "auto":
        return "reference"
    found, cure = obstacle
    raise BilevelError(f'kernels: backend = "triton" was asked for, but {found}', cure=f"{cure}, or {_OTHERWISE}")


def _obstacle(tensors: tuple[Tensor, ...], *, interpreted: bool) -> tuple[str, str] | None:
    """What keeps Triton from these tensors, and what to do about it."""
    if not _has_triton():
        return "the package triton is not installed", "pip install triton (Linux only)"
    devices = sorted({str(t.device) for t in tensors if not t.is_cuda})
    if devices and not interpreted:
        return f"the tensors are on {', '.join(devices)}, expected a CUDA device", "train on a GPU"
    dtypes = sorted({str(t.dtype) for t in tensors if t.is_floating_point() and t.dtype not in SUPPORTED})
    if dtypes:
        return f"found {', '.join(dtypes)}, expected float32, bfloat16 or float16", "use one of these"
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def soft_cross_entropy_rows(
    logits: Tensor, phi: Tensor, rows: Tensor, *, keep_labels: bool, backend: Backend = "auto"
) -> tuple[Tensor, Tensor | None]:
    """Soft cross-entropy with labels y = softmax(phi) gathered from a table. The gradient goes to the logits only.

    Args:
        logits: z, [B, C].
        phi: label logits, [R, C], contiguous. -inf masks a class; a row needs one finite entry.
        rows: each image's row, int64 [B], in [0, R). The host does not look at them: the reference raises as torch
            indexing does (and counts negative ones from the end), Triton returns NaN.
        keep_labels: return the labels too, for the label step.
        backend: see `choose`.

    Returns:
        The loss [B] in nats and the labels [B, C] or None; float32 at least.

    Raises:
        BilevelError: the backend cannot be used.
        ValueError: shapes, dtypes or layouts that do not fit.
    """
    _check_batch(rows, logits=logits)
    _check_tables(logits.shape[1], phi=phi)
    _check_devices(phi=phi, logits=logits, rows=rows)
    if phi.requires_grad:
        raise ValueError("phi: requires a gradient, which this operation does not give; expected a detached table")
    if choose(backend, logits, phi, rows) == "reference":
        loss, labels = reference.soft_cross_entropy_rows(logits, phi, rows)
        return loss, labels if keep_labels else None
    from distill.kernels import soft_ce

    return soft_ce.apply(logits, phi, rows, keep_labels=keep_labels)


def row_gradient(labels: Tensor, derivative: Tensor, scale: Tensor, *, backend: Backend = "auto") -> Tensor:
    """From dL/dy to scale * dL/dphi, for y = softmax(phi): scale * y * (a - sum_c y_c a_c).

    Args:
        labels: y, [B, C].
        derivative: a, [B, C].
        scale: [], on the same device; the host does not read it.
        backend: see `choose`.

    Returns:
        [B, C], float32 at least.

    Raises:
        BilevelError: the backend cannot be used.
        ValueError: shapes that do not fit.
    """
    if labels.ndim != 2 or labels.shape != derivative.shape:
        raise ValueError(f"derivative: found {list(derivative.shape)}, expected the labels' {list(labels.shape)}")
    _check_number(scale=scale)
    _check_devices(labels=labels, derivative=derivative, scale=scale)
    if choose(backend, labels, derivative, scale) == "reference":
        return reference.row_gradient(labels, derivative, scale)
    from distill.kernels import row_gradient as kernel

    return kernel.row_gradient(labels, derivative, scale)


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
    backend: Backend = "auto",
) -> None:
    """`reference.sgd_rows_`, which see for the arguments, on a backend (see `choose`). The tables are contiguous.

    Raises:
        BilevelError: the backend cannot be used.
        ValueError: shapes, dtypes or layouts that do not fit.
    """
    if (buffer is None) != (momentum == 0):
        raise ValueError(f"buffer: momentum is {momentum}; expected a buffer with momentum and None without")
    tables = {"phi": phi} if buffer is None else {"phi": phi, "buffer": buffer}
    if _for_update(backend, tables, {"touched": touched}, rows, gradient, step) == "reference":
        update = reference.sgd_rows_
    else:
        from distill.kernels import row_update

        update = row_update.sgd_rows_
    update(phi, buffer, touched, rows, gradient, step=step, momentum=momentum, mean=mean)


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
    backend: Backend = "auto",
) -> None:
    """`reference.adam_rows_`, which see for the arguments, on a backend (see `choose`). The tables are contiguous.

    Raises:
        BilevelError: the backend cannot be used.
        ValueError: shapes, dtypes or layouts that do not fit; eps is not above 0 (untouched entries would be 0 / 0).
    """
    if eps <= 0:
        raise ValueError(f"eps: found {eps}, expected a number above 0")
    tables, per_row = {"phi": phi, "first": first, "second": second}, {"touched": touched, "steps": steps}
    if _for_update(backend, tables, per_row, rows, gradient, step) == "reference":
        update = reference.adam_rows_
    else:
        from distill.kernels import row_update

        update = row_update.adam_rows_
    update(phi, first, second, steps, touched, rows, gradient, step=step, betas=betas, eps=eps, mean=mean)


def _for_update(
    backend: Backend,
    tables: dict[str, Tensor],
    per_row: dict[str, Tensor],
    rows: Tensor,
    gradient: Tensor,
    step: Tensor,
) -> Chosen:
    """Checks what every row update is given, and chooses its backend."""
    _check_batch(rows, gradient=gradient)
    _check_tables(gradient.shape[1], **tables)
    _check_per_row(tables["phi"].shape[0], per_row)
    _check_number(step=step)
    tensors = {**tables, **per_row, "rows": rows, "gradient": gradient, "step": step}
    _check_devices(**tensors)
    return choose(backend, *tensors.values())


def _check_batch(rows: Tensor, **matrix: Tensor) -> None:
    if rows.ndim != 1 or rows.dtype != torch.int64:
        raise ValueError(f"rows: found {rows.dtype} {list(rows.shape)}, expected int64 [B]")
    for name, tensor in matrix.items():
        if tensor.ndim != 2 or tensor.shape[0] != rows.numel() or tensor.shape[1] < 1:
            raise ValueError(f"{name}: found {list(tensor.shape)}, expected [{rows.numel()}, C]")


def _check_tables(classes: int, **tables: Tensor) -> None:
    count = next(iter(tables.values())).shape[0]
    for name, table in tables.items():
        if table.shape != (count, classes):
            raise ValueError(f"{name}: found {list(table.shape)}, expected [{count}, {classes}]")
        if not table.is_contiguous():  # copying a table for every batch would be worse than saying so
            raise ValueError(f"{name}: found strides {table.stride()}, expected a contiguous table")


def _check_per_row(count: int, per_row: dict[str, Tensor]) -> None:
    for name, tensor in per_row.items():
        dtype = _PER_ROW[name]
        if tensor.shape != (count,) or tensor.dtype != dtype or not tensor.is_contiguous():
            expected = f"{dtype} [{count}], contiguous"
            raise ValueError(f"{name}: found {tensor.dtype} {list(tensor.shape)}, expected {expected}")


def _check_number(**numbers: Tensor) -> None:
    for name, number in numbers.items():
        if number.ndim != 0 or not number.is_floating_point():
            raise ValueError(
                f"{name}: found {number.dtype} {list(number.shape)}, expected one floating-point number, []"
            )


def _check_devices(**tensors: Tensor) -> None:
    (first, anchor), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != anchor.device:
            raise ValueError(f"{name}: found on {tensor.device}, expected {anchor.device}, where {first} is")
