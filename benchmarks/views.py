"""Views a second: `make_views` on whole batches against torchvision's v2 transforms in a torch DataLoader.

Both start from the same uint8 images in memory and end with uint8 batches. The DataLoader applies the transforms image
by image, as its users do, with 0, 1 and 2 workers; the best of the three counts. Without workers torch has one thread,
as in each worker: with more it is slower on small images. Every round times both sides, ours first, and takes a ratio;
reported are the medians. The second ratio is of processor time an image, all threads counted, against the DataLoader
without workers, its cheapest form: it says much the same on a busy machine. Mixup and CutMix are torchvision's too, on
whole batches after the loader: one coefficient a batch, and the batch's own views as partners, where ours draws a pair
for each image and makes the partner's own view.

Run: python benchmarks/views.py [--threads 2] [--rounds 3] [--only NAME]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from distill.data.batches import Augmentation, Maker
from distill.data.memory import MemorySource
from distill.recipe.schema import ViewsRecipe

WORKERS = (0, 1, 2)
# shape, batch, images an epoch of ours, images an epoch of the DataLoader's
SHAPES = (((3, 32, 32), 256, 8192, 2048), ((1, 28, 28), 256, 8192, 2048), ((3, 224, 224), 32, 256, 128))


@dataclass(frozen=True)
class Pipeline:
    """The same augmentation for both."""

    name: str
    fields: dict[str, Any]
    theirs: Callable[[int], list[Any]]
    on_batches: Callable[[], Any] | None = None


RESIZED = {"resized_crop": (0.08, 1.0), "flip": True}
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


def cropped(side: int) -> list[Any]:
    """The KD literature's."""
    return [v2.RandomCrop(side, padding=side // 8), v2.RandomHorizontalFlip()]


def resized(side: int) -> list[Any]:
    """ImageNet's."""
    return [v2.RandomResizedCrop(side, antialias=True), v2.RandomHorizontalFlip()]


PIPELINES = (
    Pipeline("crop, flip", {"flip": True}, cropped),
    Pipeline("resized crop, flip", RESIZED, resized),
    Pipeline(
        "resized crop, flip, jitter", RESIZED | JITTER, lambda s: [*resized(s), v2.ColorJitter(0.4, 0.4, 0.4, 0.1)]
    ),
    Pipeline(
        "resized crop, flip, RandAugment", RESIZED | {"randaugment": 2}, lambda s: [*resized(s), v2.RandAugment()]
    ),
    Pipeline(
        "resized crop, flip, RandAugment, erasing",
        RESIZED | {"randaugment": 2, "erasing": 0.25},
        lambda s: [*resized(s), v2.RandAugment(), v2.RandomErasing(0.25, value=0)],
    ),
    Pipeline("crop, flip, mixup", {"flip": True, "mixup": 0.8}, cropped, lambda: v2.MixUp(alpha=0.8, num_classes=10)),
    Pipeline(
        "crop, flip, cutmix", {"flip": True, "cutmix": 1.0}, cropped, lambda: v2.CutMix(alpha=1.0, num_classes=10)
    ),
)


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory with torchvision's transforms, one at a time."""

    def __init__(self, images: Tensor, transforms: list[Any]) -> None:
        self.images = images
        self.transform = v2.Compose(transforms)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), index % 10


def ours(images: Tensor, pipeline: Pipeline, batch: int) -> Iterator[Tensor]:
    """An epoch of our batches, uint8: indices in, views out, partners fetched where views are mixed."""
    side = images.shape[-1]
    fields = pipeline.fields if "resized_crop" in pipeline.fields else pipeline.fields | {"crop_padding": side // 8}
    recipe = ViewsRecipe.model_validate(fields)
    everything = torch.arange(len(images))
    source = MemorySource("random", tuple("0123456789"), images, everything % 10)
    channels = images.shape[1]
    maker = Maker(
        source,
        source.targets,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        device=torch.device("cpu"),
        augmentation=Augmentation(recipe, 0, False, everything),
    )
    for indices in everything.split(batch):
        wanted = maker.want(indices, torch.zeros_like(indices))
        pixels = maker.pixels(wanted, source.fetch(wanted.fetched))
        yield pixels


def per_second(epoch: Callable[[], Iterator[Tensor]]) -> tuple[float, float]:
    """Images a second, and processor seconds of this process an image, over an epoch but for its first batch."""
    batches = epoch()
    next(batches)  # workers take a while to start
    began, processor, count = time.perf_counter(), time.process_time(), 0
    for images in batches:
        count += len(images)
    return count / (time.perf_counter() - began), (time.process_time() - processor) / count


def one_loader(images: Tensor, pipeline: Pipeline, batch: int, workers: int) -> tuple[float, float]:
    """`per_second` of one DataLoader; the workers' processor time is not in it."""
    dataset = Images(images, pipeline.theirs(images.shape[-1]))
    mixer = pipeline.on_batches() if pipeline.on_batches else None

    def epoch() -> Iterator[Tensor]:
        for pixels, labels in DataLoader(dataset, batch_size=batch, num_workers=workers):
            yield mixer(pixels.float(), labels)[0] if mixer else pixels

    threads = torch.get_num_threads()
    torch.set_num_threads(1 if workers == 0 else threads)
    try:
        return per_second(epoch)
    finally:
        torch.set_num_threads(threads)


def one_round(images: Tensor, few: int, batch: int, pipeline: Pipeline) -> tuple[float, float, int, float, float]:
    """Ours and theirs an image a second, their best number of workers, and the two ratios."""
    fast, processor = per_second(lambda: ours(images, pipeline, batch))
    slow = {workers: one_loader(images[:few], pipeline, batch, workers) for workers in WORKERS}
    best = max(slow, key=lambda workers: slow[workers][0])
    return fast, slow[best][0], best, fast / slow[best][0], slow[0][1] / processor


def main() -> None:
    """Prints one line for each shape and pipeline."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="pipelines whose name ends so")
    parser.add_argument("--shape", type=int, default=None, help="number of one shape, from 0")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load = os.getloadavg()[0]
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.rounds} rounds, load before {load:.1f}")
    print(f"{'shape':12}{'pipeline':42}{'ours img/s':>11}{'DataLoader':>11}{'workers':>8}{'ratio':>7}{'by CPU':>8}")
    for number, (shape, batch, many, few) in enumerate(SHAPES):
        if arguments.shape not in (None, number):
            continue
        images = torch.randint(0, 256, (many, *shape), dtype=torch.uint8)
        for pipeline in PIPELINES:
            if pipeline.name.endswith(arguments.only):
                rounds = [one_round(images, few, batch, pipeline) for _ in range(arguments.rounds)]
                fast, slow, workers, ratio, by_cpu = (statistics.median(column) for column in zip(*rounds, strict=True))
                what = f"{'x'.join(map(str, shape)):12}{pipeline.name:42}"
                print(f"{what}{fast:11,.0f}{slow:11,.0f}{workers:8.0f}{ratio:7.1f}{by_cpu:8.1f}", flush=True)


if __name__ == "__main__":
    main()
