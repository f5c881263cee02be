"""From a recipe to batches on the device, each a pure function of (seed, epoch, number)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.contents import Progress
from distill.data.noise import Labels, plant_noise
from distill.data.sources import Source, open_source
from distill.data.split import Splits, shuffled, split, without
from distill.data.views import make_views, view_of_epoch
from distill.errors import DataError
from distill.recipe.schema import Recipe, ViewsRecipe

# Images that mean and deviation are taken from, at most; fewer where each has to be decoded first.
_STATISTICS_IMAGES = 10_000
_STATISTICS_DECODED = 1_000
_STATISTICS_CHUNK = 64
# A quarter of one grey level: a constant channel must not divide by 0.
_SMALLEST_STD = 1e-3


@dataclass(frozen=True)
class ImageData:
    """A data set, divided and labelled.

    Args:
        source: the images.
        splits: indices of the parts.
        labels: given and true labels of all N images.
        mean: per channel, of pixels scaled to 0 to 1, over the training part.
        std: likewise, at least 1e-3.
    """

    source: Source
    splits: Splits
    labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """The C class names."""
        return self.source.classes

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.source.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        return self.source.shape


@dataclass(frozen=True)
class Batch:
    """Images of one step. True labels are left out on purpose: nothing that trains may see them.

    Args:
        indices: source indices, int64 [B], on the device.
        images: float32 [B, ch, H, W], normalised, on the device.
        given: given labels, int64 [B], on the device.
        rows: `indices` on the CPU, to look up stored logits without waiting for the device.
        view: which view each image shows, int64 [B], on the CPU; -1 for an image as it is.
    """

    indices: Tensor
    images: Tensor
    given: Tensor
    rows: Tensor
    view: Tensor


def open_data(recipe: Recipe, *, progress: Progress | None = None, quick: bool = False) -> ImageData:
    """Opens the source, divides it, plants the noise and measures mean and deviation.

    Images that are left out as unreadable are in no part; all else is as it would be if they could be read.

    Args:
        recipe: what to open.
        progress: told how many files of a folder were read, of how many, when they have to be.
        quick: for a plan only: read no more files of a folder than takes seconds.

    Raises:
        DataError: when the data set is missing or damaged, or cannot be divided or labelled as asked.
    """
    source = open_source(recipe.data, progress=progress, quick=quick)
    padding, side = recipe.views.crop_padding, min(source.shape[1:])
    if padding >= side:
        raise DataError(
            f"views.crop_padding = {padding}, but the images are {source.shape[1]}x{source.shape[2]} pixels: "
            "some views would show nothing of the image",
            cure=f"Set it below {side}; an eighth of the side is usual.",
        )
    splits = split(source.targets, source.test_start, recipe.data, source.classes, recipe.seed)
    labels = plant_noise(
        source.targets, splits, source.classes, recipe.data.noise, recipe.seed, test_start=source.test_start
    )
    rest = without(splits, source.unreadable, source.targets, source.classes)
    if source.undecided:  # some of the images that would be measured may be unreadable; a plan needs no statistics
        mean, std = (0.0,) * source.shape[0], (1.0,) * source.shape[0]
    else:
        mean, std = _mean_and_std(source, splits.train, recipe.seed)
    return ImageData(source=source, splits=rest, labels=labels, mean=mean, std=std)


def _mean_and_std(source: Source, train: Tensor, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel, in units of the full range. Sums of integers, so the result depends on no order and no thread."""
    most = _STATISTICS_DECODED if source.decodes else _STATISTICS_IMAGES
    order = shuffled(train, seed, "statistics")
    readable = ~torch.isin(order, torch.tensor(list(source.unreadable), dtype=torch.int64))
    chosen = order[readable][:most].sort().values
    channels, height, width = source.shape
    sums, squares = torch.zeros(channels, dtype=torch.int64), torch.zeros(channels, dtype=torch.int64)
    for indices in torch.split(chosen, _STATISTICS_CHUNK):
        pixels = source.fetch(indices).to(torch.int32)
        sums += pixels.sum(dim=(0, 2, 3), dtype=torch.int64)
        squares += pixels.square_().sum(dim=(0, 2, 3), dtype=torch.int64)
    n = len(chosen) * height * width
    means = tuple(total / (255 * n) for total in sums.tolist())
    variances = [n * square - total * total for total, square in zip(sums.tolist(), squares.tolist(), strict=True)]
    return means, tuple(max(math.sqrt(variance) / (255 * n), _SMALLEST_STD) for variance in variances)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Full batches in `rows` images; a batch size above that number is lowered to it.

    Raises:
        ValueError: when either is less than 1.
    """
    if rows < 1 or batch_size < 1:
        raise ValueError(f"{rows} rows in batches of {batch_size}")
    return rows // min(batch_size, rows)


def training_batches(
    data: ImageData,
    rows: Tensor,
    *,
    batch_size: int,
    epoch: int,
    seed: int,
    views: ViewsRecipe,
    numbered: bool,
    device: torch.device | str,
    start: int = 0,
    view_seed: int | None = None,
) -> Iterator[Batch]:
    """One epoch of training batches.

    The order is a pure function of (seed, epoch); the last partial batch is dropped. Begun at `start`, the batches
    before it are not produced. Where images are decoded, the next batches are fetched while this one is trained on.

    Args:
        data: the data set.
        rows: source indices to train on, int64 [n].
        batch_size: B, lowered to n when larger.
        epoch: from 0.
        seed: of the order, and of which numbered view an image begins with.
        views: the augmentation.
        numbered: True: only a store's V views are shown, each as often as the others. False: a new view every epoch.
        device: where the batches go.
        start: number of the first batch.
        view_seed: of the views' pixels: a store's, when its logits are used; default: `seed`.

    Raises:
        DataError: from the source, in the thread of the caller.
    """
    if start < 0:
        raise ValueError(f"start = {start}")
    size = min(batch_size, len(rows))
    order = shuffled(rows, seed, "order", epoch)
    chunks = [order[step * size : (step + 1) * size] for step in range(start, steps_per_epoch(len(rows), batch_size))]
    pixel_seed = seed if view_seed is None else view_seed
    to_device = _Normalise(data, torch.device(device))
    for indices, images in _fetched(data.source, chunks):
        k = view_of_epoch(indices, epoch, views, seed, numbered)
        yield to_device(indices, images, k, views, pixel_seed, numbered=numbered)


def ordered_batches(
    data: ImageData,
    rows: Tensor,
    *,
    batch_size: int,
    device: torch.device | str,
    view: int | None = None,
    views: ViewsRecipe | None = None,
    seed: int = 0,
) -> Iterator[Batch]:
    """All of `rows`, in their order, for evaluation and export; the last batch may be smaller.

    Args:
        data: the data set.
        rows: source indices, int64 [n].
        batch_size: B.
        device: where the batches go.
        view: None: the images as they are. A number: this numbered view of all of them; needs `views`.
        views: the augmentation.
        seed: of the views' pixels.

    Raises:
        DataError: from the source, in the thread of the caller.
    """
    if batch_size < 1 or (view is not None and views is None):
        raise ValueError(f"batch_size = {batch_size}, view = {view}, views = {views}")
    to_device = _Normalise(data, torch.device(device))
    for indices, images in _fetched(data.source, list(torch.split(rows, batch_size)) if len(rows) else []):
        k = torch.full_like(indices, -1 if view is None else view)
        yield to_device(indices, images, k, None if view is None else views, seed, numbered=True)


def make_batch(
    data: ImageData, indices: Tensor, *, view: int, views: ViewsRecipe, seed: int, device: torch.device | str
) -> Batch:
    """One batch of chosen images, augmented without an end of views: int64 [B] source indices -> `Batch`.

    Raises:
        DataError: from the source.
    """
    k = torch.full_like(indices, view)
    return _Normalise(data, torch.device(device))(indices, data.source.fetch(indices), k, views, seed, numbered=False)


def _fetched(source: Source, chunks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Indices and images of each chunk. Leaving the iterator ends what the source's threads do ahead."""
    with closing(source.stream(chunks)) as stream:
        yield from zip(chunks, stream, strict=True)


class _Normalise:
    """Takes uint8 batches to the device, and makes views and float images there."""

    def __init__(self, data: ImageData, device: torch.device) -> None:
        std = torch.tensor(data.std, dtype=torch.float64)
        mean = torch.tensor(data.mean, dtype=torch.float64)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale = (1 / (255 * std)).float().to(device).view(1, -1, 1, 1)
        self.shift = (-mean / std).float().to(device).view(1, -1, 1, 1)
        self.given = data.labels.given
        self.device = device

    def move(self, tensor: Tensor) -> Tensor:
        """To the device without waiting. Memory is pinned first: torch then keeps it until the copy is done."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def __call__(
        self, indices: Tensor, images: Tensor, k: Tensor, views: ViewsRecipe | None, seed: int, *, numbered: bool
    ) -> Batch:
        pixels = self.move(images)
        if views is not None:
            pixels = make_views(pixels, indices, k, views, seed, numbered=numbered)
        return Batch(
            indices=self.move(indices),
            images=torch.addcmul(self.shift, pixels.float(), self.scale),
            given=self.move(self.given[indices]),
            rows=indices,
            view=k,
        )
