"""Reading a store of logits: by source index and view, never by step.

Nothing is believed before it is checked: the manifest, the origin that the opener expects, every file's size and
sha256. Values are read through memory maps, so a store may be larger than memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.atomic import mendable
from distill.store.manifest import (
    EXPORT_AGAIN,
    MANIFEST,
    PARTIAL,
    Manifest,
    Origin,
    Piece,
    difference,
    read_manifest,
)
from distill.store.shards import map_shard, problem_with, read_indices
from distill.store.writer import LogitWriter

__all__ = ["LogitStore", "LogitWriter", "Piece", "verify_store"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LogitStore:
    """The logits of V views of N images, [V, N, C]. Made by `open`.

    It can be pickled; the copy maps its files again when it first needs them.

    Attributes:
        folder: where it is.
        manifest: what it says about itself.
        indices: source index of each row, int64 [N].
    """

    def __init__(self, folder: Path, manifest: Manifest, indices: Tensor) -> None:
        self.folder = folder
        self.manifest = manifest
        self.indices = indices
        self._digest = manifest.digest()
        self._sorted, self._order = indices.sort()
        self._maps: dict[int, Tensor] = {}

    @classmethod
    def open(cls, folder: Path, *, expect: Origin | None = None, verify: bool = True) -> Self:
        """Opens a store.

        Args:
            folder: where it is.
            expect: what its logits have to belong to; None: anything.
            verify: compare every file's sha256 with the manifest. Sizes are always compared.

        Raises:
            StoreError: there is no finished store, it is damaged, or it belongs to something else (and what differs).
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if expect is not None and (sentences := difference(expect, manifest.origin)):
            raise StoreError(
                f"{folder}: belongs to something else: {'; '.join(sentences)}",
                cure="Use the store that was made for it, or export it again: distill export --teacher RUN",
            )
        for file in (manifest.indices, *manifest.shards):
            if problem := problem_with(folder, file, content=verify):
                raise StoreError(problem, cure=f"`distill verify {folder}` names every damaged file. {EXPORT_AGAIN}")
        store = cls(folder, manifest, read_indices(folder, manifest))
        if verify:
            # A manifest that was changed by hand still names the right digests; the shards name the plan they are for.
            for number in range(len(manifest.shards)):
                store._map(number)
        return store

    @property
    def views(self) -> int:
        """Views of each image, V."""
        return self.manifest.origin.view_count

    @property
    def classes(self) -> int:
        """Classes, C."""
        return self.manifest.classes

    def rows(self, indices: Tensor, views: Tensor) -> Tensor:
        """Logits of any images in any views, in any order, repeats allowed.

        Args:
            indices: source indices, integers [B].
            views: the view of each, integers [B].

        Returns:
            float32 [B, C] on the CPU.

        Raises:
            StoreError: the store has no such image or view, or holds a value that is not finite.
            ValueError: not two vectors of integers of the same length.
        """
        positions, views = self._positions(indices, views)
        # In the order of the disk; each shard is visited once.
        order = (views * self.manifest.rows + positions).argsort()
        shards = views * self.manifest.shards_per_view + positions // self.manifest.shard_rows
        within = positions % self.manifest.shard_rows
        numbers, counts = torch.unique_consecutive(shards[order], return_counts=True)
        # Mapped before anything large is allocated: a map made in between would pin the gap that a batch leaves behind.
        maps = [self._map(number) for number in numbers.tolist()]
        logits = torch.empty(len(order), self.classes)
        for values, chosen in zip(maps, torch.split(order, counts.tolist()), strict=False):
            logits[chosen] = values[within[chosen]].float()
        if len(logits) and not torch.isfinite(torch.stack(logits.aminmax())).all():
            raise StoreError(f"{self.folder}: holds values that are NaN or infinite", cure=EXPORT_AGAIN)
        return logits

    def _positions(self, indices: Tensor, views: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [B] of source indices, and the views, as int64 on the CPU."""
        for tensor in (indices, views):
            if tensor.dim() != 1 or len(tensor) != len(indices) or tensor.dtype not in _INTEGERS:
                shapes = f"{tuple(indices.shape)} and {tuple(views.shape)}"
                raise ValueError(f"expected two vectors of integers, not {indices.dtype}, {views.dtype} {shapes}")
        indices, views = indices.to("cpu", torch.int64), views.to("cpu", torch.int64)
        slots = torch.searchsorted(self._sorted, indices).clamp(max=len(self._sorted) - 1)
        unknown = self._sorted[slots] != indices
        if unknown.any():
            raise StoreError(
                f"{self.folder}: has no logits of image {int(indices[unknown][0])} ({int(unknown.sum())} such)",
                cure="The store was made from another split of the data. " + EXPORT_AGAIN,
            )
        outside = (views < 0) | (views >= self.views)
        if outside.any():
            raise StoreError(
                f"{self.folder}: has no view {int(views[outside][0])}; it has {self.views}",
                cure="Export with more views: [views] count.",
            )
        return self._order[slots], views

    def _map(self, number: int) -> Tensor:
        if number not in self._maps:
            piece = self.manifest.shards[number].piece
            self._maps[number] = map_shard(self.folder, self.manifest, self._digest, piece)
        return self._maps[number]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.manifest, self.indices)


def verify_store(folder: Path) -> list[str]:
    """Every problem of a store, a sentence each; empty when it is sound."""
    folder = Path(folder)
    try:
        manifest = read_manifest(folder)
    except StoreError as error:
        return [error.message]
    problems = []
    digest = manifest.digest()
    for file in (manifest.indices, *manifest.shards):
        if problem := problem_with(folder, file, content=True):
            problems.append(problem)
    if not problems:
        problems += _unsound(folder, manifest, digest)
    return problems + _unexpected(folder, manifest)


def _unsound(folder: Path, manifest: Manifest, digest: str) -> list[str]:
    """Files with the right digest may still hold nonsense, when whoever made them also wrote the manifest."""
    problems = []
    try:
        read_indices(folder, manifest)
    except StoreError as error:
        problems.append(error.message)
    for shard in manifest.shards:
        try:
            values = map_shard(folder, manifest, digest, shard.piece)
        except StoreError as error:
            problems.append(error.message)
            continue
        if not torch.isfinite(torch.stack(values.aminmax()).float()).all():
            problems.append(f"{folder / shard.file}: holds values that are NaN or infinite")
    return problems


def _unexpected(folder: Path, manifest: Manifest) -> list[str]:
    """Files that the manifest does not name. A plan beside the manifest is harmless, hidden files are not ours."""
    known = {MANIFEST, PARTIAL, manifest.indices.file, *(shard.file for shard in manifest.shards)}
    try:
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        return [mendable(folder, "read", error).message]
    return [f"{folder / name}: the manifest does not name this file" for name in names if name not in known]
