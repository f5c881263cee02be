"""Writing a store of logits, in any order, with as many interruptions as it takes.

`partial.json` is written first and says what the store is going to be; each shard appears whole or not at all;
`manifest.json` comes last. Whatever was finished before an interruption is kept, if it is the very same export.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from typing import TypeAlias

from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import is_temporary, mendable, writable_folder
from distill.store.carried import carry_labels, describe_labels, problems_with_labels
from distill.store.formats.layout import HOLDS, Format, Holds
from distill.store.json_files import write_json
from distill.store.manifest import (
    INDICES,
    LABELS,
    LABELS_FOLDER,
    MANIFEST,
    PARTIAL,
    SHARDS_OF,
    Digest,
    Manifest,
    Piece,
    Plan,
    Shard,
    installed_versions,
    read_plan,
)
from distill.store.origin import Origin, difference
from distill.store.seen import SEEN
from distill.store.shards import encodings, kept_shard, problem_with, problem_with_indices, write_shard
from distill.store.tensors import digest_of, write_tensors

_SHARD = re.compile(r"((features|maps)-)?view\d{4,}-rows\d{9,}\.safetensors")
_OVERWRITE = "Choose another folder, or overwrite it on purpose."
_WRITERS_CHOICE = ("format", "k", "features", "maps", "rows", "classes", "shard_rows", "indices", "labels", "versions")
_LARGE = (
    "Few steps of training leave BatchNorm's running statistics far off, and a step too large does the same: train "
    'longer or lower teacher.optimizer.lr. Or keep such logits with [export] format = "float32".'
)

Batch: TypeAlias = Sequence[Tensor | None]
"""Logits [b, C], features [b, D] and maps [b, P] of consecutive rows; None, or left out at the end: not stored."""


class LogitWriter:
    """Writes the logits of V views of N images, [V, N, C], perhaps features [V, N, D] and maps [V, N, P], as shards.

    Args:
        folder: where; made if need be.
        origin: what the logits belong to.
        indices: source index of each row, int64 [N], unique.
        classes: C.
        views: V, as in `origin`.
        format: how logits are stored.
        shard_rows: rows in a shard, at most.
        k: of `topk`: values kept of each row.
        features: D; None: features are not stored.
        maps: (h, w) of each attention map of an image, of P pixels in all; None: they are not stored.
        labels: the teacher's folder of learned labels, which the store is to carry; None: it has none.
        device: kind of the device that the logits are computed on.
        overwrite: when the folder holds another export, remove its files (and no other file) and start afresh. The very
            same export is continued all the same.
        cleared: called when the folder has no manifest of another export any more, and is not yet marked as this one's:
            for who says elsewhere which export is there, as a kill may come at any moment.

    Raises:
        StoreError: the folder cannot be written to, or holds something else; the classes do not fit; the labels are
            damaged.
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
        k: int | None = None,
        features: int | None = None,
        maps: Sequence[tuple[int, int]] | None = None,
        labels: Path | None = None,
        device: str = "cpu",
        overwrite: bool = False,
        cleared: Callable[[], None] | None = None,
    ) -> None:
        if views != origin.view_count:
            raise ValueError(f"{views} views, but the origin has {origin.view_count}")
        if problem := problem_with_indices(indices):
            raise ValueError(problem)
        self.folder = Path(folder)
        if classes != len(origin.class_names):
            raise StoreError(
                f"{self.folder}: the teacher has {classes} outputs, the data set has {len(origin.class_names)} classes",
                cure="Export a teacher that was trained on these classes.",
            )
        if k is not None and k > classes:
            raise StoreError(
                f"{self.folder}: k is {k}, but there are {classes} classes", cure="Set a smaller [export] k."
            )
        self._tensors = {"indices": indices}
        self._labels = labels
        sha256, size = digest_of(self._tensors)
        self.plan = Plan(
            origin=origin,
            format=format,
            k=k,
            features=features,
            maps=None if maps is None else tuple(maps),
            rows=len(indices),
            classes=classes,
            shard_rows=shard_rows,
            indices=Digest(file=INDICES, sha256=sha256, bytes=size),
            labels=None if labels is None else describe_labels(labels),
            # Another kind of device rounds in another way: an export that one began is not gone on with by another.
            versions={**installed_versions(), "device": device},
        )
        self._digest = self.plan.digest()
        self._encodings = encodings(self.plan)
        self._done: dict[Piece, dict[Holds, Shard]] = {}
        writable_folder(self.folder)
        if self._continues(overwrite):
            self._keep()
        if cleared is not None:
            cleared()
        if self.missing() or self._incomplete():
            self._begin()

    def missing(self) -> list[Piece]:
        """What is still to be written, in order."""
        return [piece for piece in self.plan.pieces() if piece not in self._done]

    def write(self, piece: Piece, *values: Tensor | None) -> None:
        """Writes a piece from one batch of all its rows; see `write_batches`."""
        self.write_batches(piece, [values])

    def write_batches(self, piece: Piece, batches: Iterable[Batch]) -> None:
        """Writes a piece batch by batch: what is held in memory is one batch, and the piece as it is stored.

        Args:
            piece: one of `missing()`.
            batches: consecutive rows, from the first of the piece to its last; floating point, on any device.

        Raises:
            StoreError: a value is not finite or does not fit the format, or the file cannot be written.
            ValueError: not a piece of this store, or another shape.
        """
        piece = Piece(*piece)
        if not self._is_ours(piece):
            raise ValueError(f"{piece} is no piece of this store")
        at, total = 0, piece.stop - piece.start
        stored = {holds: encoding.room(total) for holds, encoding in self._encodings.items()}
        for batch in batches:
            rows = 0 if batch[0] is None else len(batch[0])
            for holds, values in zip_longest(HOLDS, batch):
                self._check(piece, holds, values, rows)
                if values is not None and at + rows <= total:
                    for name, part in self._encodings[holds].encode(values).items():
                        stored[holds][name][at : at + rows] = part
            at += rows
        if at != total:
            raise ValueError(f"{at} rows of logits, expected {total}")
        self._done[piece] = {
            holds: write_shard(self.folder, self._digest, piece, holds, parts) for holds, parts in stored.items()
        }

    def finish(self) -> Manifest:
        """Writes the manifest, which makes the store whole.

        Raises:
            StoreError: pieces are missing, or the file cannot be written.
        """
        if missing := self.missing():
            raise StoreError(f"{self.folder}: the export is not finished: {len(missing)} pieces, first {missing[0]}")
        shards = {
            SHARDS_OF[holds]: tuple(self._done[piece][holds] for piece in self.plan.pieces())
            for holds in self.plan.holdings
        }
        manifest = Manifest(**{"feature_shards": (), **dict(self.plan), **shards})
        write_json(self.folder / MANIFEST, manifest.model_dump(mode="json"))
        self._remove([*self._leftovers(), self.folder / PARTIAL])
        return manifest

    def _continues(self, overwrite: bool) -> bool:
        """Whether the folder holds this very export, begun or finished; makes room for it otherwise."""
        try:
            problem = self._conflict(read_plan(self.folder))
            if not problem:
                return problem is None
        except StoreError as error:
            if not overwrite:
                raise
            problem = error.message
        if not overwrite:
            raise StoreError(problem, cure=_OVERWRITE)
        # The manifest goes first, so that no moment shows a whole store; the plan goes last, so that what is left of
        # this after a kill is still known to be ours.
        ours = [path for path in self._entries() if _SHARD.fullmatch(path.name)] + self._leftovers()
        ours += [self.folder / SEEN, *(self.folder / LABELS_FOLDER / name for name in (MANIFEST, LABELS))]
        self._remove([self.folder / MANIFEST, *ours, self.folder / INDICES, self.folder / PARTIAL])
        with suppress(OSError):  # it holds other things
            (self.folder / LABELS_FOLDER).rmdir()
        return False

    def _conflict(self, found: Plan | None) -> str | None:
        """Why the folder cannot be continued; empty when it is empty, None when it can."""
        if found is None:
            names = sorted(path.name for path in self._entries() if not path.name.startswith("."))
            return f"{self.folder}: is not empty and holds no export: {', '.join(names[:5])}" if names else ""
        if found == self.plan:
            return None
        differences = difference(self.plan.origin, found.origin)
        for name in _WRITERS_CHOICE:
            theirs, ours = getattr(found, name), getattr(self.plan, name)
            if theirs != ours:
                differences.append(f"{name} differs: store has {theirs!r}, expected {ours!r}")
        differences = differences or ["it does not say what decoded its images"]
        return f"{self.folder}: holds another export: {'; '.join(differences)}"

    def _keep(self) -> None:
        """Takes over the pieces that are whole."""
        for piece in self.plan.pieces():
            found = {h: kept_shard(self.folder, self.plan, self._digest, piece, h) for h in self.plan.holdings}
            whole = {holds: shard for holds, shard in found.items() if shard is not None}
            if len(whole) == len(found):
                self._done[piece] = whole

    def _incomplete(self) -> bool:
        """Whether something is missing or damaged besides the shards."""
        indices = problem_with(self.folder, self.plan.indices, content=True)
        return bool(indices or problems_with_labels(self.folder, self.plan.labels, content=True))

    def _begin(self) -> None:
        """Marks the folder as an export under way."""
        write_json(self.folder / PARTIAL, self.plan.model_dump(mode="json"))
        self._remove([self.folder / MANIFEST])
        write_tensors(self.folder / INDICES, self._tensors)
        if self._labels is not None and self.plan.labels is not None:
            carry_labels(self._labels, self.folder, self.plan.labels)

    def _entries(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError as error:
            raise mendable(self.folder, "read", error) from error

    def _leftovers(self) -> list[Path]:
        """What killed writes left over."""
        inside = self.folder / LABELS_FOLDER
        found = [*self._entries(), *(inside.iterdir() if inside.is_dir() else ())]
        return [path for path in found if is_temporary(path.name)]

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

    def _check(self, piece: Piece, holds: Holds, values: Tensor | None, rows: int) -> None:
        """That values fit the store. Minimum and maximum carry every NaN and infinity, without a second tensor."""
        wanted = holds in self._encodings
        if values is None or not wanted:
            if wanted or values is not None:
                raise ValueError(f"{holds} are {'missing' if wanted else 'given, but not stored'}")
            return
        expected = (rows, self.plan.width(holds))
        if tuple(values.shape) != expected or not values.is_floating_point() or not rows:
            raise ValueError(f"{holds} are {values.dtype} {tuple(values.shape)}, expected floating point {expected}")
        low, high = (float(value) for value in values.detach().aminmax())
        where = f"{self.folder}: the teacher's {holds} of view {piece.view}, rows {piece.start} to {piece.stop},"
        if not (math.isfinite(low) and math.isfinite(high)):
            bad = int((~values.isfinite()).sum())
            raise StoreError(
                f"{where} hold {bad} values that are NaN or infinite",
                cure="The teacher diverged, or overflows in its precision: train it again, or use precision float32.",
            )
        limit = self._encodings[holds].limit
        if max(-low, high) > limit:
            format = self.plan.format if holds == "logits" else "float16"
            cure = _LARGE if holds == "logits" else f"Set [export] {holds} = false."
            raise StoreError(f"{where} reach from {low:g} to {high:g}; {format} ends at {limit:g}", cure=cure)
