"""Stores of every kind, small enough to be damaged byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.store.labels import LearnedLabels, write_labels
from distill.store.origin import Origin
from distill.store.writer import LogitWriter

ROWS, CLASSES, VIEWS, WIDTH = 11, 3, 4, 5
SIZES = ((3, 2), (1, 2))

ORIGIN = Origin(
    teacher_digest="t" * 64,
    recipe_digest="r" * 64,
    data_source="digits",
    data_fingerprint="d" * 64,
    given_labels_sha256="0" * 64,
    label_rule="instance",
    class_names=("cat", "dog", "eel"),
    views={"crop_padding": 4, "flip": True},
    view_count=VIEWS,
    view_seed=7,
    mean=(0.5,),
    std=(0.25,),
)

INDICES = torch.tensor([40, 3, 17, 5, 99, 0, 12, 64, 8, 21, 33])
"""Source indices [11], neither dense nor sorted."""

# What the writer is given; `labels` stands for a folder of learned labels.
KINDS: dict[str, dict[str, Any]] = {
    "float16": {},
    "float32": {"format": "float32"},
    "int8": {"format": "int8", "shard_rows": 5},
    "topk": {"format": "topk", "k": 2},
    "topk all": {"format": "topk", "k": CLASSES},
    "labels": {"labels": True, "shard_rows": 100},
    "features": {"features": WIDTH},
    "maps": {"maps": SIZES, "shard_rows": 5},
    "everything": {"format": "int8", "features": WIDTH, "maps": SIZES, "labels": True},
}


def logits() -> Tensor:
    """[V, N, C], exact in float16."""
    return torch.randn(VIEWS, ROWS, CLASSES, generator=torch.Generator().manual_seed(0)).half().float()


def features() -> Tensor:
    """[V, N, D], exact in float16."""
    return torch.rand(VIEWS, ROWS, WIDTH, generator=torch.Generator().manual_seed(1)).half().float()


def maps() -> Tensor:
    """[V, N, P], exact in float16."""
    pixels = sum(height * width for height, width in SIZES)
    return torch.rand(VIEWS, ROWS, pixels, generator=torch.Generator().manual_seed(4)).half().float()


def learned() -> LearnedLabels:
    """An instance table for the rows, with a trajectory."""
    table = (4 * torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(2))).softmax(-1)
    given = torch.arange(ROWS) % CLASSES
    touched = torch.ones(ROWS, dtype=torch.bool)
    return LearnedLabels("instance", table, table, INDICES.sort().values, given, touched, {1: table.half()})


def begin(folder: Path, **changes: Any) -> LogitWriter:
    """A writer of such a store; learned labels, when asked for with `labels=True`, are written beside its folder."""
    arguments: dict[str, Any] = {
        "origin": ORIGIN,
        "indices": INDICES,
        "classes": CLASSES,
        "views": VIEWS,
        "format": "float16",
        "shard_rows": 4,
    }
    arguments |= changes
    if arguments.get("labels") is True:
        arguments["labels"] = folder.parent / f"{folder.name}-teacher" / "labels"
        if not arguments["labels"].exists():
            write_labels(arguments["labels"], learned(), {"teacher_digest": "t"})
    return LogitWriter(folder, **arguments)


def fill(writer: LogitWriter, limit: int | None = None) -> None:
    """Writes what is missing, or the first few pieces of it."""
    values = {"logits": logits(), "features": features(), "maps": maps()}
    for piece in writer.missing()[:limit]:
        rows = slice(piece.start, piece.stop)
        stored = (values[holds][piece.view, rows] if holds in writer.plan.holdings else None for holds in values)
        writer.write(piece, *stored)


def export(folder: Path, **changes: Any) -> Path:
    """A finished store."""
    writer = begin(folder, **changes)
    fill(writer)
    writer.finish()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file, by its path in the folder; hidden ones (what was verified before) are no part of a store."""
    files = (path for path in sorted(folder.rglob("[!.]*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
