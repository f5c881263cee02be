"""Writing a store of logits, in any order, with as many interruptions as it takes.

`partial.json` is written first and says what the store is going to be; each shard appears whole or not at all;
`manifest.json` comes last. Whatever was finished before an interruption is kept, if it is the very same export.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import is_temporary, mendable, writable_folder, write_json
from distill.store.manifest import (
    INDICES,
    MANIFEST,
    PARTIAL,
    Digest,
    Format,
    Manifest,
    Origin,
    Piece,
    Plan,
    Shard,
    difference,
    installed_versions,
    read_plan,
)
from distill.store.shards import DTYPES, kept_shard, problem_with, problem_with_indices, write_shard
from distill.store.tensors import digest_of, write_tensors

_SHARD = re.compile(r"view\d{4,}-rows\d{9,}\.safetensors")
_OVERWRITE = "Choose another folder, or overwrite it on purpose."


class LogitWriter:
    """Writes the logits of V views of N images, [V, N, C], as shards.

    Args:
        folder: where; made if need be.
        origin: what the logits belong to.
        indices: source index of each row, int64 [N], unique.
        classes: C.
        views: V, as in `origin`.
        format: type of the stored values.
        shard_rows: rows in a shard, at most.
        overwrite: when the folder holds another export, remove its files (and no other file) and start afresh. The very
            same export is continued all the same.

    Raises:
        StoreError: the folder cannot be written to, or holds something else; the classes do not fit.
        ValueError: the views do not fit, or the indices are not unique.
    """

    def __init__(
        self,
        folder: Path,
        *,
        origin: Origin,
        indices: Tensor,
        classes: int,
        views: int,
        format: Format,
        shard_rows: int,
        overwrite: bool = False,
    ) -> None:
        if views != origin.view_count:
            raise ValueError(f"{views} views, but the origin has {origin.view_count}")
        if problem := problem_with_indices(indices):
            raise ValueError(problem)
        self.folder = Path(folder)
        if classes != len(origin.class_names):
            raise StoreError(
                f"{self.folder}: the teacher has {classes} outputs, the data set has {len(origin.class_names)} classes",
                cure="Use a teacher that was trained on this data set.",
            )
        tensors = {"indices": indices}
        sha256, size = digest_of(tensors)
        self.plan = Plan(
            origin=origin,
            format=format,
            rows=len(indices),
            classes=classes,
            shard_rows=shard_rows,
            indices=Digest(file=INDICES, sha256=sha256, bytes=size),
            versions=installed_versions(),
        )
        self._digest = self.plan.digest()
        self._done: dict[Piece, Shard] = {}
        writable_folder(self.folder)
        if self._continues(overwrite):
            self._keep()
        if self.missing() or problem_with(self.folder, self.plan.indices, content=True):
            self._begin(tensors)

    def missing(self) -> list[Piece]:
        """What is still to be written, in order."""
        return [piece for piece in self.plan.pieces() if piece not in self._done]

    def write(self, piece: Piece, logits: Tensor) -> None:
        """Writes a shard.

        Args:
            piece: one of `missing()`.
            logits: floating point, on any device, [stop - start, C].

        Raises:
            StoreError: a value is not finite or does not fit the format, or the file cannot be written.
            ValueError: not a piece of this store, or another shape.
        """
        piece = Piece(*piece)
        if not self._is_ours(piece):
            raise ValueError(f"{piece} is no piece of this store")
        expected = (piece.stop - piece.start, self.plan.classes)
        if tuple(logits.shape) != expected or not logits.is_floating_point():
            raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}, expected floating point {expected}")
        self._check_values(piece, logits)
        values = logits.detach().to("cpu", DTYPES[self.plan.format])
        self._done[piece] = write_shard(self.folder, self._digest, piece, values)

    def finish(self) -> Manifest:
        """Writes the manifest, which makes the store whole.

        Raises:
            StoreError: pieces are missing, or the file cannot be written.
        """
        if missing := self.missing():
            raise StoreError(f"{self.folder}: the export is not finished: {len(missing)} shards, first {missing[0]}")
        shards = tuple(self._done[piece] for piece in self.plan.pieces())
        manifest = Manifest(**dict(self.plan), shards=shards)
        write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        leftovers = [path for path in self._entries() if is_temporary(path.name)]
        self._remove([*leftovers, self.folder / PARTIAL])
        return manifest

    def _continues(self, overwrite: bool) -> bool:
        """Whether the folder holds this very export, begun or finished; makes room for it otherwise."""
        try:
            problem = self._conflict(read_plan(self.folder))
            if not problem:
                return problem is None
        except StoreError as error:
            problem = error.message
        if not overwrite:
            raise StoreError(problem, cure=_OVERWRITE)
        # The manifest goes first, so that no moment shows a whole store; the plan goes last, so that what is left of
        # this after a kill is still known to be ours.
        ours = [path for path in self._entries() if _SHARD.fullmatch(path.name) or is_temporary(path.name)]
        self._remove([self.folder / MANIFEST, *ours, self.folder / INDICES, self.folder / PARTIAL])
        return False

    def _conflict(self, found: Plan | None) -> str | None:
        """Why the folder cannot be continued; empty when it is empty, None when it can."""
        if found is None:
            names = sorted(path.name for path in self._entries() if not path.name.startswith("."))
            return f"{self.folder}: is not empty and holds no export: {', '.join(names[:5])}" if names else ""
        if found == self.plan:
            return None
        differences = difference(self.plan.origin, found.origin)
        for name in ("format", "rows", "classes", "shard_rows", "indices", "versions"):
            theirs, ours = getattr(found, name), getattr(self.plan, name)
            if theirs != ours:
                differences.append(f"{name} differs: store has {theirs!r}, expected {ours!r}")
        return f"{self.folder}: holds another export: {'; '.join(differences)}"

    def _keep(self) -> None:
        """Takes over the shards that are whole."""
        for piece in self.plan.pieces():
            if shard := kept_shard(self.folder, self.plan, self._digest, piece):
                self._done[piece] = shard

    def _begin(self, tensors: dict[str, Tensor]) -> None:
        """Marks the folder as an export under way."""
        write_json(self.folder / PARTIAL, self.plan.model_dump(mode="json"))
        self._remove([self.folder / MANIFEST])
        write_tensors(self.folder / INDICES, tensors)

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError as error:
            raise mendable(self.folder, "read", error) from error

    def _remove(self, paths: list[Path]) -> None:
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise mendable(path, "removed", error) from error

    def _is_ours(self, piece: Piece) -> bool:
        view, start, stop = piece
        return (
            0 <= view < self.plan.origin.view_count
            and 0 <= start < self.plan.rows
            and start % self.plan.shard_rows == 0
            and stop == min(start + self.plan.shard_rows, self.plan.rows)
        )

    def _check_values(self, piece: Piece, logits: Tensor) -> None:
        """Minimum and maximum carry every NaN and infinity, without a second tensor of the shard's size."""
        low, high = (float(value) for value in logits.detach().aminmax())
        where = f"{self.folder}: the teacher's logits of view {piece.view}, rows {piece.start} to {piece.stop},"
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~logits.isfinite()).sum())
            raise StoreError(
                f"{where} hold {bad} values that are NaN or infinite",
                cure="The teacher diverged, or overflows in its precision: train it again, or use precision float32.",
            )
        limit = torch.finfo(DTYPES[self.plan.format]).max
        if max(-low, high) > limit:
            raise StoreError(
                f"{where} reach from {low:g} to {high:g}; {self.plan.format} ends at {limit:g}",
                cure='Set [export] format = "float32".',
            )
