"""Reading a store of logits: by source index and view, never by step.

Nothing is believed before it is checked: the manifest, the origin that the opener expects, every file's size and
sha256. Only the rows that are asked for are read, so a store may be larger than memory.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from distill.errors import StoreError
from distill.store.carried import check_classes, problems_with_labels
from distill.store.formats.encoding import Parts
from distill.store.formats.layout import Holds
from distill.store.labels import LearnedLabels, read_labels
from distill.store.manifest import (
    EXPORT_AGAIN,
    LABELS,
    LABELS_FOLDER,
    MANIFEST,
    Manifest,
    Piece,
    read_manifest,
)
from distill.store.mapped import MappedFile
from distill.store.origin import Origin, cure, difference
from distill.store.seen import remember, seen, stamps
from distill.store.shards import encodings, map_shard, problem_with, read_indices
from distill.store.writer import LogitWriter

__all__ = ["LogitStore", "LogitWriter", "Piece"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
# Stores up to so many bytes are indexed as memory maps; of larger ones, rows are read.
_MAPPED = 2**28
_MOST_HANDLES = 256


class LogitStore:
    """The logits of V views of N images, [V, N, C], and where they were exported features [V, N, D] and attention maps.

    Made by `open`.

    It can be pickled; the copy maps its files again when it first needs them.

    Attributes:
        folder: where it is.
        manifest: what it says about itself.
        indices: source index of each row, int64 [N].
        reconstruct: whether `rows` may give what a top-k store makes up for the classes that it did not keep.
    """

    def __init__(self, folder: Path, manifest: Manifest, indices: Tensor, reconstruct: bool = False) -> None:
        self.folder = folder
        self.manifest = manifest
        self.indices = indices
        self.reconstruct = reconstruct
        self._digest = manifest.digest()
        self._encodings = encodings(manifest)
        self._sorted, self._order = indices.sort()
        self._maps: dict[tuple[Holds, int], MappedFile] = {}
        self._small = {holds: sum(s.bytes for s in manifest.shards_of(holds)) <= _MAPPED for holds in self._encodings}
        self._in_use: OrderedDict[Path, MappedFile] = OrderedDict()  # files that are open, the latest last

    @classmethod
    def open(
        cls, folder: Path, *, expect: Origin | None = None, verify: bool = True, reconstruct: bool = False
    ) -> Self:
        """Opens a store.

        Args:
            folder: where it is.
            expect: what its logits have to belong to; None: anything.
            verify: compare every file's sha256 with the manifest, unless that was done before and no file has changed
                since. Sizes are always compared.
            reconstruct: let `rows` reconstruct logits from a top-k store.

        Raises:
            StoreError: there is no finished store, it is damaged, or it belongs to something else (and what differs).
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if expect is not None and (sentences := difference(expect, manifest.origin)):
            raise StoreError(
                f"{folder}: belongs to something else: {'; '.join(sentences)}",
                cure=cure(expect, manifest.origin),
            )
        before = stamps(folder, file_names(manifest))
        content = verify and not seen(folder, before)
        problems = (problem_with(folder, file, content=content) for file in manifest.files)
        problem = next(filter(None, problems), None)
        for sentence in [problem] if problem else problems_with_labels(folder, manifest.labels, content=content):
            raise StoreError(sentence, cure=f"`distill verify {folder}` names every damaged file. {EXPORT_AGAIN}")
        store = cls(folder, manifest, read_indices(folder, manifest), reconstruct)
        if verify:
            # A manifest that was changed by hand still names the right digests; the shards name the plan they are for.
            for holds in manifest.holdings:
                for number in range(len(manifest.shards)):
                    store._map(holds, number)
        if content:
            remember(folder, before)
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
        """Logits of any images in any views, in any order, repeats allowed. Nothing else is read or decoded.

        Args:
            indices: source indices, integers [B].
            views: the view of each, integers [B].

        Returns:
            float32 [B, C] on the CPU. From a top-k store: the reconstruction, whose tail is spread evenly.

        Raises:
            StoreError: the store has no such image or view, holds nonsense there, or would have to reconstruct and was
                opened without leave to.
            ValueError: not two vectors of integers of the same length.
        """
        if self.manifest.format == "topk" and not self.reconstruct:
            raise StoreError(
                f"{self.folder}: holds the {self.manifest.k} largest logits of each row only, not all {self.classes}",
                cure='Export with [export] format = "float16" or "int8", or open it with reconstruct=True.',
            )
        return self._values("logits", indices, views)

    def features(self, indices: Tensor, views: Tensor) -> Tensor:
        """What the teacher's last layer was given, of any images in any views; arguments and errors as for `rows`.

        Returns:
            float32 [B, D] on the CPU.

        Raises:
            StoreError: also when the store holds no features.
        """
        return self._values("features", indices, views)

    def maps(self, indices: Tensor, views: Tensor) -> list[Tensor]:
        """The attention maps of the teacher's stages, of any images in any views; arguments and errors as for `rows`.

        Returns:
            Of each stage float32 [B, h * w] on the CPU, of length 1; (h, w) are in `manifest.maps`.

        Raises:
            StoreError: also when the store holds no maps.
        """
        sizes = [height * width for height, width in self.manifest.maps or ()]
        return list(torch.split(self._values("maps", indices, views), sizes, dim=1))

    def parts(self, holds: Holds, indices: Tensor, views: Tensor) -> Parts:
        """What is stored of some rows, as it is stored; arguments and errors as for `rows`."""
        positions, views = self._positions(indices, views)
        # In the order of the disk; each shard is visited once.
        order = (views * self.manifest.rows + positions).argsort()
        shards = views * self.manifest.shards_per_view + positions // self.manifest.shard_rows
        within = positions % self.manifest.shard_rows
        numbers, counts = torch.unique_consecutive(shards[order], return_counts=True)
        # Mapped before anything large is allocated: a map made in between would pin the gap that a batch leaves behind.
        maps = [self._map(holds, number) for number in numbers.tolist()]
        parts = self._encodings[holds].room(len(order))
        pieces: dict[str, list[bytes]] = {name: [] for name in parts}
        for mapped, chosen in zip(maps, torch.split(order, counts.tolist()), strict=False):
            if self._small[holds]:
                for name, part in parts.items():
                    part[chosen] = mapped.tensors[name][within[chosen]]
            else:
                for name, read in self._read(mapped, within[chosen].tolist()).items():
                    pieces[name] += read
        for name, part in parts.items():
            if pieces[name]:
                part[order] = torch.frombuffer(bytearray().join(pieces[name]), dtype=part.dtype).view(part.shape)
        return parts

    def labels(self) -> LearnedLabels:
        """The labels that the teacher learned.

        Raises:
            StoreError: it learned none, or they are damaged, or of other classes.
        """
        if self.manifest.labels is None:
            rule = self.manifest.origin.label_rule
            raise StoreError(f"{self.folder}: its teacher learned no labels: it was trained with {rule!r} ones")
        check_classes(self.folder, self.classes)
        return read_labels(self.folder / LABELS_FOLDER)

    def _values(self, holds: Holds, indices: Tensor, views: Tensor) -> Tensor:
        if holds not in self._encodings:
            raise StoreError(f"{self.folder}: holds no {holds}", cure=f"Export them: [export] {holds} = true.")
        parts = self.parts(holds, indices, views)
        encoding = self._encodings[holds]
        if len(indices) and (problem := encoding.problem(parts)):
            raise StoreError(f"{self.folder}: {problem}", cure=EXPORT_AGAIN)
        return encoding.decode(parts)

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

    def _map(self, holds: Holds, number: int) -> MappedFile:
        if (holds, number) not in self._maps:
            piece = self.manifest.shards_of(holds)[number].piece
            self._maps[holds, number] = map_shard(self.folder, self.manifest, self._digest, piece, holds)
        return self._maps[holds, number]

    def _read(self, mapped: MappedFile, rows: list[int]) -> dict[str, list[bytes]]:
        """The bytes of rows of a file, which stays open until many others were read."""
        self._in_use[mapped.path] = mapped
        self._in_use.move_to_end(mapped.path)
        if len(self._in_use) > _MOST_HANDLES:
            self._in_use.popitem(last=False)[1].close()
        return mapped.read(rows)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.folder, self.manifest, self.indices, self.reconstruct)


def file_names(manifest: Manifest) -> list[str]:
    """Every file of a store, relative to its folder."""
    labels = [f"{LABELS_FOLDER}/{name}" for name in (MANIFEST, LABELS)] if manifest.labels else []
    return [MANIFEST, *(file.file for file in manifest.files), *labels]
