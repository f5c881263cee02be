"""float16 and float32: every value, rounded to the nearest."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.store.formats.layout import Column


def encode(values: Tensor, column: Column) -> dict[str, Tensor]:
    """Values [R, C] of any floating type, on any device -> one tensor [R, C] in the column's type, on the CPU."""
    return {column.name: values.detach().to("cpu", getattr(torch, column.dtype))}


def decode(parts: dict[str, Tensor], column: Column) -> Tensor:
    """The inverse of `encode`: float32 [R, C]."""
    return parts[column.name].float()


def problem(parts: dict[str, Tensor], column: Column) -> str:
    """Why no `encode` has made these, or ""."""
    low, high = parts[column.name].aminmax()
    return "" if bool(low.isfinite() & high.isfinite()) else "holds values that are NaN or infinite"


def bound(values: Tensor, dtype: str) -> Tensor:
    """The largest error that storing may make: half a unit in the last place, [R, C] float64 -> [R, C] float64."""
    if dtype == "float32":
        return values.abs() * 2.0**-24 + 2.0**-150
    return values.abs() * 2.0**-11 + 2.0**-25


def excess(parts: dict[str, Tensor], values: Tensor, slack: Tensor, column: Column) -> Tensor:
    """How far what is stored lies beyond the error bound from values that were made again; <= 0: it agrees.

    Args:
        parts: what is stored of R rows.
        values: made again, [R, C].
        slack: how far values that are made again may be off, [R].
        column: how they are stored.

    Returns:
        float64 [R].
    """
    values = values.double()
    off = (decode(parts, column).double() - values).abs()
    return (off - bound(values, column.dtype)).amax(-1) - slack
