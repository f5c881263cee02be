"""Crop and flip of a batch: `distill.data.views.make_views` against torchvision's v2 functions, one image at a time.

Run: python benchmarks/views.py [--threads 2]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from distill.data.views import make_views, view_parameters
from distill.recipe.schema import ViewsRecipe

CASES = ((128, (3, 32, 32), 4), (512, (3, 32, 32), 4), (128, (1, 28, 28), 2), (32, (3, 224, 224), 28))


def one_by_one(images: Tensor, indices: Tensor, k: Tensor, views: ViewsRecipe) -> Tensor:
    """The same views, each image padded, cropped and mirrored by torchvision."""
    drawn = view_parameters(indices, k, views, 0, numbered=False)
    height, width = images.shape[2:]
    made = []
    for image, top, left, flip in zip(
        images, drawn.top.tolist(), drawn.left.tolist(), drawn.flip.tolist(), strict=True
    ):
        view = tv.crop(tv.pad(image, [views.crop_padding] * 4), top, left, height, width)
        made.append(tv.horizontal_flip(view) if flip else view)
    return torch.stack(made)


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one that is not counted."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Prints one line a case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, median of {arguments.repeats}")
    print("batch  shape         make_views img/s  torchvision v2 img/s  ratio")
    for batch, shape, padding in CASES:
        views = ViewsRecipe(crop_padding=padding, flip=True)
        images = torch.randint(0, 256, (batch, *shape), dtype=torch.uint8)
        indices = torch.arange(batch)

        def ours(images: Tensor = images, indices: Tensor = indices, views: ViewsRecipe = views) -> Tensor:
            return make_views(images, indices, indices, views, 0, numbered=False)

        def theirs(images: Tensor = images, indices: Tensor = indices, views: ViewsRecipe = views) -> Tensor:
            return one_by_one(images, indices, indices, views)

        assert torch.equal(ours(), theirs())
        fast, slow = (batch / seconds(call, arguments.repeats) for call in (ours, theirs))
        print(f"{batch:5}  {shape!s:12}  {fast:16,.0f}  {slow:20,.0f}  {fast / slow:5.1f}")


if __name__ == "__main__":
    main()
