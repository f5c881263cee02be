"""What a teacher's stored answers are like: how soft, how often right, how far apart its classes lie.

Students differ in these answers and in nothing else, so this is where a reason for a difference between them is sought.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from distill.store.logits import LogitStore

LIMIT = 65_536  # rows that are looked at, evenly spaced; ImageNet's 1.3 million by 1,000 would take minutes
_CHUNK = 4_000_000  # logits at a time
_CLASSES = 4096  # at most, for the separation: a mean for each class is C x C doubles, 134 MB here
MEASURED = "answers_entropy"  # what every store has


def answers_of(store: LogitStore, given: Tensor, true: Tensor) -> dict[str, float]:
    """Measures of the first view's rows, at most `LIMIT` of them.

    Args:
        store: opened with leave to reconstruct.
        given: int64 [N] by source index, the labels that were trained on.
        true: int64 [N] by source index. Only reported: nothing is chosen by them.

    Returns:
        As `measured`.
    """
    rows = store.indices[:: -(-len(store.indices) // LIMIT)]
    chunks = torch.split(rows, max(1, _CHUNK // store.classes))
    return measured(
        ((store.rows(chunk, torch.zeros_like(chunk)), given[chunk], true[chunk]) for chunk in chunks), store.classes
    )


def measured(batches: Iterable[tuple[Tensor, Tensor, Tensor]], classes: int) -> dict[str, float]:
    """Measures of answers.

    Args:
        batches: logits [B, C], given labels int64 [B], true labels int64 [B].
        classes: C.

    Returns:
        `answers_entropy`: mean entropy of softmax(logits), in nats.
        `answers_right`: share whose likeliest class is the true one.
        `answers_repeated`: of the rows that were given a wrong label, the share whose likeliest class it is; left out
        where no label is wrong.
        `answers_separation`: 1 - (mean cosine distance within a class) / (mean cosine distance), every class weighted
        alike, of logits less their mean, which softmax does not see (Kornblith et al., arXiv 2010.16402, who take it of
        features); 1 where a class has one answer, 0 where classes are not told apart. Left out where all answers are
        alike, and for more than 4,096 classes.
    """
    entropy, right, wrong, repeated, rows = 0.0, 0, 0, 0, 0
    separation = _Separation(classes) if classes <= _CLASSES else None
    for logits, given, true in batches:
        log_p = torch.log_softmax(logits.double(), dim=-1)
        likeliest, mistaken = log_p.argmax(dim=-1), given != true
        entropy -= float((log_p.exp() * log_p).nansum())  # 0 * log 0 is 0
        rows += len(true)
        right += int((likeliest == true).sum())
        wrong += int(mistaken.sum())
        repeated += int((mistaken & (likeliest == given)).sum())
        if separation is not None:
            separation.add(logits.double(), true)
    found = {"answers_entropy": entropy / rows, "answers_right": right / rows}
    if wrong:
        found["answers_repeated"] = repeated / wrong
    if separation is not None and not math.isnan(value := separation.value()):
        found["answers_separation"] = value
    return found


class _Separation:
    """Sums of unit vectors by class: the mean cosine of two images of a class is the squared length of its mean."""

    def __init__(self, classes: int) -> None:
        self._sums = torch.zeros(classes, classes, dtype=torch.float64)
        self._counts = torch.zeros(classes, dtype=torch.float64)

    def add(self, logits: Tensor, true: Tensor) -> None:
        """Logits float64 [B, C] and their classes int64 [B]."""
        centred = logits - logits.mean(dim=-1, keepdim=True)
        self._sums.index_add_(0, true, nn.functional.normalize(centred, dim=-1))
        self._counts.index_add_(0, true, torch.ones_like(true, dtype=torch.float64))

    def value(self) -> float:
        """NaN where all answers are alike."""
        present = self._counts > 0
        means = self._sums[present] / self._counts[present].unsqueeze(1)
        within = float((1 - means.square().sum(dim=1)).mean())
        overall = float(1 - means.mean(dim=0).square().sum())
        return 1 - within / overall if overall > 1e-12 else math.nan
