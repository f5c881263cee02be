"""Where a student's teaching comes from: stores of one or several teachers, or the teacher network itself.

Both give `Outputs` for a batch, so every loss accepts either, and gives the same value where the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.data.loader import Batch, ImageData
from distill.data.pixels import moved
from distill.errors import StoreError
from distill.losses.feature import draw_negatives
from distill.losses.lesson import Contrast, Lesson, Outputs
from distill.losses.soft import mixed
from distill.models.capture import Inside
from distill.recipe.losses import Need
from distill.recipe.schema import Recipe
from distill.stages.common import as_teacher_sees
from distill.store.labels import LearnedLabels
from distill.store.logits import LogitStore
from distill.store.origin import difference


class Teaching(Protocol):
    """What teaches a student."""

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """Height and width of each attention map; () where there are none."""
        ...

    @property
    def feature_width(self) -> int:
        """D; 0 where there are no features."""
        ...

    def outputs(self, batch: Batch) -> Outputs:
        """Of the pixels that the batch shows, on its device."""
        ...

    def contrast(self, count: int, step: int) -> Contrast:
        """Features of `count` other images, the same for the same step."""
        ...


@dataclass
class StoredTeaching:
    """Rows of stores.

    Args:
        stores: of the same images in the same views; the first is the run's own, whose features and maps are read.
        weights: of each, adding up to 1.
        combine: "logits" averages these; "probabilities" softmax at T = 1, whose logarithm then serves as logits.
        wanted: what the loss needs.
        data: the images, for the given labels of those that are contrasted with.
        device: where the outputs go.
        seed: of the draw of images to contrast with.
    """

    stores: Sequence[LogitStore]
    weights: Sequence[float]
    combine: str
    wanted: frozenset[Need]
    data: ImageData
    device: torch.device
    seed: int

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """See `Teaching`."""
        return tuple(self.stores[0].manifest.maps or ()) if "maps" in self.wanted else ()

    @property
    def feature_width(self) -> int:
        """See `Teaching`."""
        return (self.stores[0].manifest.features or 0) if "features" in self.wanted else 0

    def outputs(self, batch: Batch) -> Outputs:
        """See `Teaching`."""
        first, rows, views = self.stores[0], batch.rows, batch.view
        features = first.features(rows, views) if "features" in self.wanted else None
        maps = first.maps(rows, views) if "maps" in self.wanted else None
        return Outputs(
            self._moved(self._logits(rows, views)),
            None if features is None else self._moved(features),
            None if maps is None else [self._moved(each) for each in maps],
        )

    def _logits(self, rows: Tensor, views: Tensor) -> Tensor:
        if len(self.stores) == 1:
            return self.stores[0].rows(rows, views)
        pairs = [(store.rows(rows, views), weight) for store, weight in zip(self.stores, self.weights, strict=True)]
        if self.combine == "logits":
            return sum((weight * logits for logits, weight in pairs), torch.zeros(()))
        logs = [torch.log_softmax(logits, -1) + torch.tensor(weight).log() for logits, weight in pairs if weight]
        return torch.logsumexp(torch.stack(logs), dim=0)

    def contrast(self, count: int, step: int) -> Contrast:
        """See `Teaching`."""
        store = self.stores[0]
        images, views = draw_negatives(store.indices, store.views, count, seed=self.seed, step=step)
        return Contrast(self._moved(store.features(images, views)), self._moved(self.data.labels.given[images]))

    def _moved(self, tensor: Tensor) -> Tensor:
        return moved(tensor.contiguous(), self.device)  # a map is a part of its row; torch would wait for a copy of it


class OnlineTeaching:
    """The teacher's network on every batch.

    Args:
        model: in eval mode, on the batches' device.
        data: as the student sees it; the teacher's own normalisation is made of it.
        recipe: of the teacher.
        wanted: what the loss needs.
    """

    def __init__(self, model: nn.Module, data: ImageData, recipe: Recipe, wanted: frozenset[Need]) -> None:
        self.model = model
        device, seen = next(model.parameters()).device, as_teacher_sees(data, recipe)
        numbers = (data.mean, data.std, seen.mean, seen.std)
        same = numbers[:2] == numbers[2:]
        self._change = None if same else [torch.tensor(v, device=device).view(-1, 1, 1) for v in numbers]
        few = self._as_seen(torch.zeros(2, *data.shape, device=device))
        self.inside = Inside(model, few, features="features" in wanted, maps="maps" in wanted)

    @property
    def sides(self) -> tuple[tuple[int, int], ...]:
        """See `Teaching`."""
        return self.inside.sizes

    @property
    def feature_width(self) -> int:
        """See `Teaching`."""
        return self.inside.width

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Outputs:
        """See `Teaching`."""
        images = self._as_seen(batch.images)
        with self.inside as inside:
            return Outputs(self.model(images).float(), inside.features, inside.maps)

    def _as_seen(self, images: Tensor) -> Tensor:
        """Images [B, ch, H, W] of the student's normalisation in the teacher's; of one channel perhaps in three."""
        if self._change is None:
            return images
        mean, std, new_mean, new_std = self._change
        return (images * std + mean - new_mean) / new_std

    def contrast(self, count: int, step: int) -> Contrast:
        """Refused by `check_recipe`: there are no stored features to draw from."""
        raise AssertionError(f"no store to draw {count} images from in step {step}")


class LearnedLookup:
    """The labels that a teacher learned, by batch.

    Images that have none (the meta images, unless they joined) keep their given label.

    Args:
        labels: from the store.
        classes: C.
        device: where the labels go.
    """

    def __init__(self, labels: LearnedLabels, classes: int, device: torch.device) -> None:
        self.labels, self.classes, self.device = labels, classes, device
        self._sorted, self._order = labels.indices.sort()
        # A row for each class is little, and lies where the given labels do; one for each image stays on the CPU.
        self._by_class = labels.averaged.to(device) if labels.kind == "class" else None

    def of(self, batch: Batch) -> Tensor:
        """Soft labels [B, C] of the averaged table; of mixed images, mixed in their shares."""
        own = self._rows(batch.rows, batch.given)
        if batch.mix is None:
            return own
        return mixed(own, self._rows(batch.mix.rows, batch.mix.given), batch.mix.share.unsqueeze(1))

    def _rows(self, indices: Tensor, given: Tensor) -> Tensor:
        """Source indices int64 [B] on the CPU, given labels int64 [B] on the device -> [B, C]."""
        if self._by_class is not None:
            return self._by_class[given]
        slots = torch.searchsorted(self._sorted, indices).clamp(max=len(self._sorted) - 1)
        known = moved(self._sorted[slots] == indices, self.device)
        learned = moved(self.labels.averaged[self._order[slots]], self.device)
        onehot = torch.zeros_like(learned).scatter_(1, given.unsqueeze(1), 1.0)
        return torch.where(known.unsqueeze(1), learned, onehot)


def lesson_of(
    batch: Batch, teaching: Teaching | None, labels: LearnedLookup | None, contrast: Contrast | None
) -> Lesson:
    """Everything that a batch is learned from."""
    return Lesson(
        given=batch.given,
        partner=None if batch.mix is None else batch.mix.given,
        share=None if batch.mix is None else batch.mix.share,
        teacher=None if teaching is None else teaching.outputs(batch),
        labels=None if labels is None else labels.of(batch),
        contrast=contrast,
    )


def same_place(own: LogitStore, other: LogitStore, folder: Path) -> None:
    """That two stores hold the same images in the same views.

    Raises:
        StoreError: they do not, and in what they differ.
    """
    ours, theirs = own.manifest.origin, other.manifest.origin
    names = ("data_fingerprint", "given_labels_sha256", "class_names", "views", "view_count", "view_seed")
    different = [name.replace("_", " ") for name in names if getattr(ours, name) != getattr(theirs, name)]
    if not torch.equal(own.indices, other.indices):
        different.append("images")
    different += difference(ours, ours.model_copy(update={"decoders": theirs.decoders}))
    if different:
        raise StoreError(
            f"{folder}: differs from {own.folder} in: {', '.join(different)}",
            cure="Average teachers of one recipe, seed and split: those of `distill compare`, for example.",
        )
