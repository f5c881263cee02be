"""Means of the network's answers over the last epochs, in as few tables as they can be had from exactly."""

from __future__ import annotations

import torch
from torch import Tensor


class Answers:
    """Sums of the network's answers to each image, epoch by epoch, so that old epochs can be left out again.

    Means are taken after each epoch from `first` to `last`, over `window` epochs each. An epoch needs a table [N, C] of
    its own only if it leaves the window before the last mean is taken; those that never leave share one, and what no
    mean looks at is not kept. That makes `window` tables at most, one more than epochs that leave where that is fewer,
    and one for a window over all epochs: exact, since nothing is ever subtracted. Each takes 4 N (C + 1) bytes in
    float32: for 10 epochs 22 MB of CIFAR-10, 202 MB of CIFAR-100.

    Args:
        like: a table [N, C]: shape, type and device.
        window: epochs that a mean is taken over, at least 1; fewer at first.
        first: the first epoch, counted from 1, after which a mean is taken.
        last: the last one; before `first`: none is.
    """

    def __init__(self, like: Tensor, *, window: int, first: int, last: int) -> None:
        self.first = max(first, 1)
        self.last = last
        self.window = window
        self._oldest = max(1, self.first - window + 1)  # epoch that a mean looks at
        self._staying = last - window + 1  # first epoch that is in the window of the last mean
        tables = min(window, max(self._staying - self._oldest, 0) + 1) if self.first <= last else 0
        self.sums = like.new_zeros(tables, *like.shape)
        self.counts = torch.zeros(tables, like.shape[0], dtype=torch.int32, device=like.device)

    def add(self, epoch: int, rows: Tensor, answers: Tensor) -> None:
        """Takes in answers [B, C] to the images of some rows int64 [B], repeats allowed, in an epoch from 1 on."""
        if self._kept(epoch):
            table = self._table(epoch)
            self.sums[table].index_add_(0, rows, answers.to(self.sums.dtype))
            self.counts[table].index_add_(0, rows, torch.ones_like(rows, dtype=torch.int32))

    def end_epoch(self, epoch: int, otherwise: Tensor) -> tuple[Tensor, Tensor] | None:
        """The means after an epoch, or None where none is taken; the oldest epoch then leaves.

        Args:
            epoch: counted from 1.
            otherwise: what an image has that was not answered in all the window, [N, C].

        Returns:
            The means [N, C], every answer counting alike, and which images have one, bool [N].
        """
        if not self.first <= epoch <= self.last:
            return None
        counts = self.counts.sum(0)
        answered = counts > 0
        means = self.sums.sum(0) / counts.clamp(min=1).unsqueeze(1)
        leaving = epoch - self.window + 1
        if self._kept(leaving) and leaving < self._staying:
            self.sums[self._table(leaving)].zero_()
            self.counts[self._table(leaving)].zero_()
        return torch.where(answered.unsqueeze(1), means, otherwise), answered

    def _kept(self, epoch: int) -> bool:
        """Whether any mean looks at an epoch."""
        return self._oldest <= epoch <= self.last and len(self.sums) > 0

    def _table(self, epoch: int) -> int:
        return min(epoch, self._staying) % len(self.sums)
