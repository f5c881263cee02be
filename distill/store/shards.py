"""The files of a store of logits, one by one.

A shard is a safetensors file with one tensor, `logits` [rows, C]. It says in its facts which plan it belongs to, which
rows it holds and what their sha256 is, so an interrupted export knows which shards to keep without a list beside them.
"""

from __future__ import annotations

import errno
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import check_regular, sha256_of
from distill.store.manifest import EXPORT_AGAIN, INDICES, Digest, Piece, Plan, Shard, shard_name
from distill.store.tensors import JSON, read_facts, read_tensors, sha256_of_tensor, write_tensors

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def write_shard(folder: Path, plan_digest: str, piece: Piece, values: Tensor) -> Shard:
    """Writes the logits of a piece.

    Args:
        folder: the store.
        plan_digest: `Plan.digest()`.
        piece: which rows they are.
        values: the logits in the store's format, on the CPU, [stop - start, C].

    Raises:
        StoreError: the file cannot be written.
    """
    path = folder / shard_name(piece)
    sha256 = write_tensors(path, {"logits": values}, _facts(plan_digest, piece, sha256_of_tensor(values)))
    return Shard(
        file=path.name,
        sha256=sha256,
        bytes=check_regular(path),
        view=piece.view,
        start=piece.start,
        stop=piece.stop,
    )


def _facts(plan_digest: str, piece: Piece, values_sha256: str) -> dict[str, JSON]:
    return {
        "plan": plan_digest,
        "view": piece.view,
        "start": piece.start,
        "stop": piece.stop,
        "values_sha256": values_sha256,
    }


def map_shard(folder: Path, plan: Plan, plan_digest: str, piece: Piece) -> Tensor:
    """The logits of a piece as a memory map, [stop - start, C] in the store's format. Their values are not looked at.

    Raises:
        StoreError: the file is missing, damaged, or holds something else.
    """
    values, _ = _mapped(folder, plan, plan_digest, piece)
    return values


def _mapped(folder: Path, plan: Plan, plan_digest: str, piece: Piece) -> tuple[Tensor, str]:
    path = folder / shard_name(piece)
    facts = read_facts(path)
    claimed = facts.get("values_sha256") if isinstance(facts, dict) else None
    if not isinstance(claimed, str) or facts != _facts(plan_digest, piece, claimed):
        raise StoreError(
            f"{path}: belongs to another store, or to other rows: its facts are {str(facts)[:300]}", cure=EXPORT_AGAIN
        )
    return _only(path, "logits", DTYPES[plan.format], (piece.stop - piece.start, plan.classes)), claimed


def _only(path: Path, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    """The one tensor that a file of the store holds."""
    tensors = read_tensors(path)
    found = {key: (value.dtype, tuple(value.shape)) for key, value in tensors.items()}
    if found != {name: (dtype, shape)}:
        raise StoreError(f"{path}: holds {str(found)[:300]}, expected {name!r}, {dtype} {shape}", cure=EXPORT_AGAIN)
    return tensors[name]


def kept_shard(folder: Path, plan: Plan, plan_digest: str, piece: Piece) -> Shard | None:
    """The shard of a piece that an earlier run finished; None when there is none, or it is not whole."""
    path = folder / shard_name(piece)
    try:
        values, claimed = _mapped(folder, plan, plan_digest, piece)
        if sha256_of_tensor(values) != claimed:
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
    indices = _only(path, "indices", torch.int64, (plan.rows,)).clone()
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
