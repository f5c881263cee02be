"""From a recipe to batches on the device, each a pure function of (seed, epoch, number)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.batches import Augmentation, Batch, Maker
from distill.data.contents import Progress
from distill.data.corrections import corrected
from distill.data.folder import FolderSource
from distill.data.noise import Labels, plant_noise
from distill.data.sources import Source, open_source
from distill.data.split import Splits, shuffled, split, without
from distill.data.views import view_of_epoch
from distill.errors import DataError
from distill.recipe.schema import Recipe, ViewsRecipe

__all__ = [
    "Batch",
    "ImageData",
    "make_batch",
    "open_data",
    "ordered_batches",
    "steps_per_epoch",
    "training_batches",
]

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
        corrected: labels that `data.corrections` made others.
    """

    source: Source
    splits: Splits
    labels: Labels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    corrected: int = 0

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


def open_data(recipe: Recipe, *, progress: Progress | None = None, quick: bool = False) -> ImageData:
    """Opens the source, divides it, plants the noise, corrects labels and measures mean and deviation.

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
    planted = labels.given
    if recipe.data.corrections:
        files = source.files if isinstance(source, FolderSource) else ()
        given = corrected(recipe.data.corrections, labels.given, source.classes, files)
        # What somebody has looked at is what is known to be right, but where noise was planted.
        labels = Labels(given, given if recipe.data.noise.kind == "none" else labels.true)
    rest = without(splits, source.unreadable, source.targets, source.classes)
    if source.undecided:  # some of the images that would be measured may be unreadable; a plan needs no statistics
        mean, std = (0.0,) * source.shape[0], (1.0,) * source.shape[0]
    else:
        mean, std = _mean_and_std(source, splits.train, recipe.seed)
    changed = int((labels.given != planted).sum())
    return ImageData(source=source, splits=rest, labels=labels, mean=mean, std=std, corrected=changed)


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
    if not any(variances):
        raise DataError(
            f"{source.name}: the {len(chosen)} images that were measured are all of one and the same colour",
            cure="look at a few of the files: transparency is dropped, so that what is drawn by it alone is gone.",
        )
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
        rows: source indices to train on, int64 [n]; mixed views take their partners from these, too.
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
    steps = range(start, steps_per_epoch(len(rows), batch_size))
    chunks = (order[step * size : (step + 1) * size] for step in steps)
    pixel_seed = seed if view_seed is None else view_seed
    maker = _maker(data, device, Augmentation(views, pixel_seed, numbered, rows))
    wanted = (maker.want(indices, view_of_epoch(indices, epoch, views, seed, numbered)) for indices in chunks)
    yield from maker.batches(wanted)


def ordered_batches(
    data: ImageData,
    rows: Tensor,
    *,
    batch_size: int,
    device: torch.device | str,
    view: int | None = None,
    views: ViewsRecipe | None = None,
    seed: int = 0,
    population: Tensor | None = None,
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
        population: source indices that mixed views take their partners from, in a fixed order, int64; views that mix
            need it, and with another one they are other pixels.

    Raises:
        DataError: from the source, in the thread of the caller.
    """
    if batch_size < 1 or (view is not None and views is None):
        raise ValueError(f"batch_size = {batch_size}, view = {view}, views = {views}")
    shown = Augmentation(views, seed, True, _population(population)) if views and view is not None else None
    maker = _maker(data, device, shown)
    chunks = torch.split(rows, batch_size) if len(rows) else ()
    yield from maker.batches(maker.want(part, torch.full_like(part, -1 if view is None else view)) for part in chunks)


def make_batch(
    data: ImageData,
    indices: Tensor,
    *,
    view: int,
    views: ViewsRecipe,
    seed: int,
    device: torch.device | str,
    population: Tensor | None = None,
) -> Batch:
    """One batch of chosen images, augmented without an end of views: int64 [B] source indices -> `Batch`.

    Raises:
        DataError: from the source.
        ValueError: views that mix, and no population to mix with.
    """
    maker = _maker(data, device, Augmentation(views, seed, False, _population(population)))
    wanted = maker.want(indices, torch.full_like(indices, view))
    return maker.make(wanted, data.source.fetch(wanted.fetched))


def _population(rows: Tensor | None) -> Tensor:
    return torch.empty(0, dtype=torch.int64) if rows is None else rows


def _maker(data: ImageData, device: torch.device | str, augmentation: Augmentation | None) -> Maker:
    return Maker(
        data.source,
        data.labels.given,
        mean=data.mean,
        std=data.std,
        device=torch.device(device),
        augmentation=augmentation,
    )
