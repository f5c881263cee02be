"""What a student gives and what it is taught with: the two sides that every term of a loss is handed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from distill.losses.soft import mixed


@dataclass(frozen=True)
class Outputs:
    """What a network gives for a batch.

    Args:
        logits: [B, C].
        features: what its last layer was given, [B, D]; None where nobody asked.
        maps: attention maps of its stages, each [B, P]; None where nobody asked.
    """

    logits: Tensor
    features: Tensor | None = None
    maps: Sequence[Tensor] | None = None

    def part(self, rows: slice) -> Outputs:
        """Of some images."""
        return Outputs(
            self.logits[rows],
            None if self.features is None else self.features[rows],
            None if self.maps is None else [each[rows] for each in self.maps],
        )


@dataclass(frozen=True)
class Contrast:
    """What a batch's features are held against, for crd.

    Args:
        features: of other stored images, [K, D].
        given: their given labels, int64 [K].
    """

    features: Tensor
    given: Tensor


@dataclass(frozen=True)
class Lesson:
    """What a batch is learned from.

    Args:
        given: given labels, int64 [B].
        partner: those of the images that they were mixed with, int64 [B]; None: unmixed.
        share: of the image itself in the mixture, [B].
        teacher: the teacher's outputs of the same pixels; None: nobody asked for them.
        labels: soft labels that the teacher learned, [B, C]; of mixed images, mixed.
        contrast: for crd.
    """

    given: Tensor
    partner: Tensor | None = None
    share: Tensor | None = None
    teacher: Outputs | None = None
    labels: Tensor | None = None
    contrast: Contrast | None = None

    def over_targets(self, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """A loss that needs a class: with the image's own, or in a mixed image's shares. int64 [B] -> [B]."""
        own = loss(self.given)
        if self.partner is None or self.share is None:
            return own
        return mixed(own, loss(self.partner), self.share)

    def parts(self, count: int) -> Iterator[tuple[slice, Lesson]]:
        """The lesson in `count` parts of nearly equal size, none empty, with the images that each is about."""
        for rows in slices(len(self.given), count):
            yield (
                rows,
                replace(
                    self,
                    given=self.given[rows],
                    partner=None if self.partner is None else self.partner[rows],
                    share=None if self.share is None else self.share[rows],
                    teacher=None if self.teacher is None else self.teacher.part(rows),
                    labels=None if self.labels is None else self.labels[rows],
                ),
            )


def slices(size: int, count: int) -> Iterator[slice]:
    """`size` things in at most `count` runs of nearly equal length, none empty."""
    edges = [size * number // min(count, size) for number in range(min(count, size) + 1)]
    for start, stop in pairwise(edges):
        yield slice(start, stop)


def taught(value: Tensor | None, what: str) -> Tensor:
    """A part of the lesson that a term cannot do without; its absence is a fault of ours."""
    assert value is not None, f"the lesson holds no {what}"
    return value


def same_class(own: Tensor, others: Tensor) -> Tensor:
    """Which of the others share an image's class: int64 [B], int64 [K] -> bool [B, K]."""
    return torch.eq(own.unsqueeze(1), others.unsqueeze(0))
