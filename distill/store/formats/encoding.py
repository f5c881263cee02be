"""The formats of a store by name: how what a store holds becomes the tensors of a shard, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from distill.store.formats import int8, plain, topk
from distill.store.formats.layout import Column, Format, Holds, half_columns, logit_columns

Parts: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Encoding:
    """Pure functions; R rows at a time, each row on its own.

    Attributes:
        columns: the tensors that hold the rows.
        limit: the largest magnitude that can be stored.
        encode: values [R, C] -> parts, on the CPU.
        decode: parts -> float32 [R, C].
        problem: what is wrong with parts that nobody vouches for, or "".
        excess: parts, values made again [R, C], slack [R] -> how far they disagree [R]; <= 0: they agree.
    """

    columns: tuple[Column, ...]
    limit: float
    encode: Callable[[Tensor], Parts]
    decode: Callable[[Parts], Tensor]
    problem: Callable[[Parts], str]
    excess: Callable[[Parts, Tensor, Tensor], Tensor]

    def room(self, rows: int) -> Parts:
        """Where so many rows are gathered as they are stored; not filled."""
        shapes = {column.name: (rows, column.width) if column.width else (rows,) for column in self.columns}
        return {c.name: torch.empty(shapes[c.name], dtype=getattr(torch, c.dtype)) for c in self.columns}


def logit_encoding(format: Format, classes: int, k: int | None) -> Encoding:
    """How logits [R, C] are stored; `k` is for `topk` only."""
    columns = logit_columns(format, classes, k)
    if format == "int8":
        return Encoding(columns, int8.LIMIT, int8.encode, int8.decode, int8.problem, int8.excess)
    if format == "topk":
        assert k is not None
        return Encoding(
            columns,
            topk.LIMIT,
            partial(topk.encode, k=k),
            partial(topk.decode, classes=classes),
            partial(topk.problem, classes=classes),
            partial(topk.excess, classes=classes),
        )
    return _plain(columns)


def half_encoding(holds: Holds, width: int) -> Encoding:
    """How features or attention maps [R, width] are stored."""
    return _plain(half_columns(holds, width))


def _plain(columns: tuple[Column, ...]) -> Encoding:
    (column,) = columns
    return Encoding(
        columns,
        torch.finfo(getattr(torch, column.dtype)).max,
        partial(plain.encode, column=column),
        partial(plain.decode, column=column),
        partial(plain.problem, column=column),
        partial(plain.excess, column=column),
    )
