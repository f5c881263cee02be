"""Accuracy, negative log-likelihood and calibration error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill.data.loader import Batch

BINS = 15  # Guo et al., "On Calibration of Modern Neural Networks", arXiv 1706.04599


@dataclass(frozen=True)
class Bins:
    """Sums over the images of each bin of confidence, the least confident bin first."""

    count: tuple[int, ...] = ()
    confidence: tuple[float, ...] = ()
    correct: tuple[int, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Accuracy and ECE in [0, 1], NLL in nats."""

    accuracy: float
    nll: float
    ece: float
    count: int
    bins: Bins = Bins()

    def named(self, prefix: str) -> dict[str, float]:
        """For the metrics file: `test_accuracy` and so on."""
        return {f"{prefix}_accuracy": self.accuracy, f"{prefix}_nll": self.nll, f"{prefix}_ece": self.ece}


class Scorer:
    """Adds up scores batch by batch; memory does not grow with the data set."""

    def __init__(self) -> None:
        self._nll = 0.0
        self._bins = torch.zeros(BINS, 3, dtype=torch.float64)  # per confidence bin: count, confidence, correct

    def add(self, logits: Tensor, targets: Tensor) -> None:
        """logits [B, C] and int64 targets [B], on any device."""
        log_p = torch.log_softmax(logits.double(), dim=-1).cpu()
        targets = targets.cpu()
        self._nll += float(-log_p.gather(1, targets.unsqueeze(1)).sum())
        confidence, predicted = log_p.exp().max(dim=-1)
        bins = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
        row = torch.stack([torch.ones_like(confidence), confidence, (predicted == targets).double()], dim=1)
        self._bins.index_add_(0, bins, row)

    def scores(self) -> Scores:
        """The totals. With no image at all the scores are NaN."""
        count, _, correct = self._bins.sum(0).tolist()
        if not count:
            return Scores(float("nan"), float("nan"), float("nan"), 0)
        ece = float((self._bins[:, 1] - self._bins[:, 2]).abs().sum()) / count
        return Scores(correct / count, self._nll / count, ece, int(count), self._sums())

    def _sums(self) -> Bins:
        count, confidence, correct = self._bins.T.tolist()
        return Bins(tuple(map(int, count)), tuple(confidence), tuple(map(int, correct)))


def evaluate(model: nn.Module, batches: Iterable[Batch], targets: Tensor, *, temperature: float = 1.0) -> Scores:
    """Scores of a model in eval mode, which is put back to its own mode afterwards.

    Args:
        model: images [B, ch, H, W] -> logits [B, C].
        batches: un-augmented images with their source indices.
        targets: int64 [N] by source index: what counts as right.
        temperature: that logits are divided by.
    """
    scorer = Scorer()
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                scorer.add(model(batch.images) / temperature, targets[batch.rows])
    finally:
        model.train(was_training)
    return scorer.scores()
