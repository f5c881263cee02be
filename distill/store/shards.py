"""The files of a store of logits, one by one.

A shard is a safetensors file with the tensors of a format: of the logits, features or attention maps of some rows of
one view. It says in its facts which plan it belongs to, which rows it holds and what their sha256 is, so an interrupted
export knows which shards to keep without a list beside them.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import check_regular, sha256_of
from distill.store.formats.encoding import Encoding, half_encoding, logit_encoding
from distill.store.formats.layout import Holds
from distill.store.manifest import EXPORT_AGAIN, INDICES, Digest, Piece, Plan, Shard, shard_name
from distill.store.mapped import MappedFile
from distill.store.tensors import JSON, digest_of, read_tensors, write_tensors


def encodings(plan: Plan) -> dict[Holds, Encoding]:
    """How what a store holds is stored."""
    logits = logit_encoding(plan.format, plan.classes, plan.k)
    return {h: logits if h == "logits" else half_encoding(h, plan.width(h)) for h in plan.holdings}


def write_shard(folder: Path, plan_digest: str, piece: Piece, holds: Holds, parts: Mapping[str, Tensor]) -> Shard:
    """Writes what is stored of a piece.

    Args:
        folder: the store.
        plan_digest: `Plan.digest()`.
        piece: which rows they are.
        holds: what they are: logits, features or maps.
        parts: the tensors of the store's format, on the CPU, each [stop - start, ...].

    Raises:
        StoreError: the file cannot be written.
    """
    path = folder / shard_name(piece, holds)
    sha256 = write_tensors(path, parts, _facts(plan_digest, piece, holds, digest_of(parts)[0]))
    return Shard(
        file=path.name,
        sha256=sha256,
        bytes=check_regular(path),
        view=piece.view,
        start=piece.start,
        stop=piece.stop,
    )


def _facts(plan_digest: str, piece: Piece, holds: Holds, values_sha256: str) -> dict[str, JSON]:
    return {
        "plan": plan_digest,
        "holds": holds,
        "view": piece.view,
        "start": piece.start,
        "stop": piece.stop,
        "values_sha256": values_sha256,
    }


def map_shard(folder: Path, plan: Plan, plan_digest: str, piece: Piece, holds: Holds = "logits") -> MappedFile:
    """What is stored of a piece as a memory map, the tensors of the store's format. Their values are not looked at.

    Raises:
        StoreError: the file is missing, damaged, or holds something else.
    """
    path = folder / shard_name(piece, holds)
    mapped = MappedFile(path)
    claimed = _claimed(mapped)
    if not isinstance(claimed, str) or mapped.facts != _facts(plan_digest, piece, holds, claimed):
        raise StoreError(
            f"{path}: belongs to another store, or to other rows: its facts are {str(mapped.facts)[:300]}",
            cure=EXPORT_AGAIN,
        )
    rows = piece.stop - piece.start
    expected = {
        column.name: (getattr(torch, column.dtype), (rows, column.width) if column.width else (rows,))
        for column in plan.columns(holds)
    }
    _check_tensors(path, mapped.tensors, expected)
    return mapped


def _claimed(mapped: MappedFile) -> object:
    """The digest that a shard's values are said to have."""
    return mapped.facts.get("values_sha256") if isinstance(mapped.facts, dict) else None


def _check_tensors(
    path: Path, tensors: Mapping[str, Tensor], expected: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    """That a file holds these tensors and no others."""
    found = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    if found != expected:
        raise StoreError(f"{path}: holds {str(found)[:300]}, expected {str(expected)[:300]}", cure=EXPORT_AGAIN)


def kept_shard(folder: Path, plan: Plan, plan_digest: str, piece: Piece, holds: Holds) -> Shard | None:
    """The shard of a piece that an earlier run finished; None when there is none, or it is not whole."""
    path = folder / shard_name(piece, holds)
    try:
        mapped = map_shard(folder, plan, plan_digest, piece, holds)
        if digest_of(mapped.tensors)[0] != _claimed(mapped):
            return None
        return Shard(file=path.name, sha256=sha256_of(path), bytes=check_regular(path), **piece._asdict())
    except StoreError as error:
        # A shard that cannot be used is made again. One that cannot be read at all would only be in the way then too.
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.EACCES, errno.EIO):
            raise
        return None


def problem_with(folder: Path, file: Digest, *, content: bool) -> str | None:
    """What is wrong with a file of a store, as a sentence; None when nothing is. `content`: its sha256 too."""
    path = folder / file.file
    try:
        size = check_regular(path)
        if size != file.bytes:
            return f"{path}: has {size} bytes, the manifest says {file.bytes}"
        if content and (found := sha256_of(path)) != file.sha256:
            return f"{path}: is damaged: its sha256 is {found}, the manifest says {file.sha256}"
    except StoreError as error:
        return error.message
    return None


def read_indices(folder: Path, plan: Plan) -> Tensor:
    """Source index of each row, int64 [N], in memory.

    Raises:
        StoreError: the file is missing, damaged, or holds something else.
    """
    path = folder / INDICES
    tensors = read_tensors(path)
    _check_tensors(path, tensors, {"indices": (torch.int64, (plan.rows,))})
    indices = tensors["indices"].clone()
    if problem := problem_with_indices(indices):
        raise StoreError(f"{path}: {problem}", cure=EXPORT_AGAIN)
    return indices


def problem_with_indices(indices: Tensor) -> str | None:
    """What is wrong with source indices [N]; None when nothing is."""
    if indices.dtype != torch.int64 or indices.dim() != 1 or not len(indices):
        return f"indices are {indices.dtype} {tuple(indices.shape)}, expected torch.int64 [N]"
    if int(indices.min()) < 0:
        return f"an index is negative: {int(indices.min())}"
    if len(torch.unique(indices)) < len(indices):
        return "an index stands twice"
    return None
