"""How a row lies in a shard: which tensors, of which types, how many bytes. Nothing here imports torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

Format = Literal["float16", "float32", "int8", "topk"]
Holds = Literal["logits", "features", "maps"]
HOLDS: tuple[Holds, ...] = ("logits", "features", "maps")

_BYTES = {"uint8": 1, "int8": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4}


class Column(NamedTuple):
    """One tensor of a shard: [rows, width], or [rows] where `width` is 0."""

    name: str
    dtype: str
    width: int = 0

    @property
    def row_bytes(self) -> int:
        """Bytes that it takes for each row."""
        return _BYTES[self.dtype] * max(1, self.width)


def class_dtype(classes: int) -> str:
    """The smallest of uint8, int16 and int32 that holds the numbers 0 to C - 1."""
    return "uint8" if classes <= 2**8 else "int16" if classes <= 2**15 else "int32"


def logit_columns(format: Format, classes: int, k: int | None) -> tuple[Column, ...]:
    """The tensors that hold the logits of a row.

    Args:
        format: how logits are stored.
        classes: C.
        k: of `topk`: values kept of each row.
    """
    if format == "int8":
        return Column("codes", "int8", classes), Column("centre", "float32"), Column("scale", "float32")
    if format == "topk":
        assert k is not None
        return Column("values", "float16", k), Column("classes", class_dtype(classes), k), Column("tail", "float32")
    return (Column("logits", format, classes),)


def half_columns(holds: Holds, width: int) -> tuple[Column, ...]:
    """The tensor that holds the features of a row, D of them, or its attention maps, one after the other."""
    return (Column(holds, "float16", width),)


def row_bytes(columns: tuple[Column, ...]) -> int:
    """Bytes that a row takes in a shard."""
    return sum(column.row_bytes for column in columns)
