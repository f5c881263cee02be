"""What a batch holds, and how it is made: which images it needs, their views, and the partners of mixed ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.mixing import Pairs, draw_pairs, mix
from distill.data.pixels import moved
from distill.data.sources import Source
from distill.data.views import make_views
from distill.recipe.schema import ViewsRecipe


@dataclass(frozen=True)
class Mix:
    """What the images of a batch were mixed with. An image that was not is its own partner, with a share of 1.

    Args:
        indices: source indices of the partners, int64 [B], on the device.
        given: their given labels, int64 [B], on the device.
        share: of the image itself, float32 [B], on the device; CutMix's is the share of the area that it kept.
        rows: `indices` on the CPU.
    """

    indices: Tensor
    given: Tensor
    share: Tensor
    rows: Tensor

    def head(self, count: int) -> Mix:
        """Of the first images."""
        return Mix(self.indices[:count], self.given[:count], self.share[:count], self.rows[:count])


@dataclass(frozen=True)
class Batch:
    """Images of one step. True labels are left out on purpose: nothing that trains may see them.

    Args:
        indices: source indices, int64 [B], on the device.
        images: float32 [B, ch, H, W], normalised, on the device.
        given: given labels, int64 [B], on the device.
        rows: `indices` on the CPU, to look up stored logits without waiting for the device.
        view: which view each image shows, int64 [B], on the CPU; -1 for an image as it is.
        mix: the partners, when the views are mixed ones: a hard label's loss is then `losses.soft.mixed`.
    """

    indices: Tensor
    images: Tensor
    given: Tensor
    rows: Tensor
    view: Tensor
    mix: Mix | None = None

    def head(self, count: int) -> Batch:
        """Its first images."""
        return Batch(
            indices=self.indices[:count],
            images=self.images[:count],
            given=self.given[:count],
            rows=self.rows[:count],
            view=self.view[:count],
            mix=self.mix and self.mix.head(count),
        )


@dataclass(frozen=True)
class Augmentation:
    """Which views a batch shows.

    Args:
        recipe: what the views are made of.
        seed: of the views.
        numbered: as for `views.view_parameters`.
        population: source indices that mixed views take their partners from, in a fixed order, int64 [n]; may be empty
            for views that do not mix.
    """

    recipe: ViewsRecipe
    seed: int
    numbered: bool
    population: Tensor


@dataclass(frozen=True)
class Wanted:
    """A batch before its images are there: indices and view numbers int64 [B], and what they are mixed with."""

    indices: Tensor
    k: Tensor
    pairs: Pairs | None

    @property
    def fetched(self) -> Tensor:
        """Source indices of the images that it needs: its own, then the partners', int64 [B + M]."""
        if self.pairs is None:
            return self.indices
        return torch.cat([self.indices, self.pairs.partner[self.pairs.rows]])


def fetched(source: Source, batches: Iterable[Wanted]) -> Iterator[tuple[Wanted, Tensor]]:
    """Each batch with its images. Leaving the iterator ends what the source's threads do ahead."""
    waiting: deque[Wanted] = deque()  # those that the source has been told of

    def told() -> Iterator[Tensor]:
        for wanted in batches:
            waiting.append(wanted)
            yield wanted.fetched

    with closing(source.stream(told())) as stream:
        for images in stream:
            yield waiting.popleft(), images


class Maker:
    """Makes batches: takes uint8 images to the device, and makes views and float images there.

    Args:
        source: the images.
        given: the given labels of all of them, int64 [N].
        mean: per channel, of pixels scaled to 0 to 1.
        std: likewise.
        device: where the batches go.
        augmentation: None: the images as they are.

    Raises:
        ValueError: views that mix, and no population.
    """

    def __init__(
        self,
        source: Source,
        given: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device,
        augmentation: Augmentation | None,
    ) -> None:
        if augmentation is not None and augmentation.recipe.mixes and not augmentation.population.numel():
            raise ValueError("views that mix need the population that partners are taken from")
        deviation, centre = torch.tensor(std, dtype=torch.float64), torch.tensor(mean, dtype=torch.float64)
        # (x / 255 - mean) / std as one multiplication and one addition.
        self.scale = moved((1 / (255 * deviation)).float().view(1, -1, 1, 1), device)
        self.shift = moved((-centre / deviation).float().view(1, -1, 1, 1), device)
        self.source, self.given, self.device, self.augmentation = source, given, device, augmentation

    def want(self, indices: Tensor, k: Tensor) -> Wanted:
        """What view k of these images needs: int64 [B], int64 [B]."""
        views = self.augmentation
        if views is None or not views.recipe.mixes:
            return Wanted(indices, k, None)
        _, height, width = self.source.shape
        return Wanted(indices, k, draw_pairs(indices, k, views.recipe, views.seed, views.population, (height, width)))

    def batches(self, batches: Iterable[Wanted]) -> Iterator[Batch]:
        """All of them, in order."""
        for wanted, images in fetched(self.source, batches):
            yield self.make(wanted, images)

    def pixels(self, wanted: Wanted, images: Tensor) -> Tensor:
        """The views on the device, uint8 [B, ch, H, W], from the images of `wanted.fetched`, uint8 [B + M, ...]."""
        pixels, pairs, views = moved(images, self.device), wanted.pairs, self.augmentation
        if views is None:
            return pixels
        k = wanted.k if pairs is None else torch.cat([wanted.k, wanted.k[pairs.rows]])
        pixels = make_views(pixels, wanted.fetched, k, views.recipe, views.seed, numbered=views.numbered)
        if pairs is None:
            return pixels
        own, partners = torch.split(pixels, [len(wanted.indices), len(pairs.rows)])
        return mix(own, partners, pairs)

    def make(self, wanted: Wanted, images: Tensor) -> Batch:
        """The batch, from the images of `wanted.fetched`, uint8 [B + M, ch, H, W]."""
        pixels, pairs = self.pixels(wanted, images), wanted.pairs
        return Batch(
            indices=moved(wanted.indices, self.device),
            images=torch.addcmul(self.shift, pixels.float(), self.scale),
            given=moved(self.given[wanted.indices], self.device),
            rows=wanted.indices,
            view=wanted.k,
            mix=None if pairs is None else self._mix(pairs),
        )

    def _mix(self, pairs: Pairs) -> Mix:
        of_partners = (pairs.partner, self.given[pairs.partner], pairs.share)
        indices, given, share = (moved(tensor, self.device) for tensor in of_partners)
        return Mix(indices, given, share, pairs.partner)
