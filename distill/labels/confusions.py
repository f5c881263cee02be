"""Which class is given as which: likelihoods of the given labels, learned from what the images are believed to be.

    T[k, g] = P(given g | true k)

The M step of expectation maximisation for wrong labels, Bekker and Goldberger, "Training deep neural-networks based on
unreliable labels", ICASSP 2016, whose E step is the posterior that labels are pulled to (`learned.py`). Where two
classes are given for each other and the others are not, a label of one of the two says little, and of another much.
"""

from __future__ import annotations

import torch
from torch import Tensor

PRIOR = 10.0  # images of each true class, shared among given ones as at first, that are counted beside those seen


class Confusions:
    """T, [C, C], estimated anew after each epoch from the epoch's posteriors.

    Of instance labels the images that are known to be right do not count. A label of a class is that of all its images,
    and so T is then of all of them.

    Args:
        classes: C.
        mass: T[k, k] at first; the rest is shared equally.
        device: where it lives.
    """

    def __init__(self, classes: int, mass: float, device: torch.device) -> None:
        others = (1 - mass) / max(classes - 1, 1)
        self.matrix = torch.full((classes, classes), others, device=device).fill_diagonal_(mass)
        self.counts = torch.zeros_like(self.matrix)
        self._prior = PRIOR * self.matrix

    def likelihood(self, given: Tensor) -> Tensor:
        """Of given labels, for each true class: [B] -> [B, C], T[k, given]."""
        return self.matrix[:, given].T

    def count(self, posterior: Tensor, given: Tensor, counted: Tensor | None = None) -> None:
        """Adds a batch.

        Args:
            posterior: what each image is believed to be, [B, C].
            given: its given label, int64 [B].
            counted: images that count, bool [B]; None: all.
        """
        if counted is not None:
            posterior = posterior * counted.unsqueeze(1)
        self.counts.index_add_(1, given, posterior.T.to(self.counts))

    def end_epoch(self) -> None:
        """T from what was counted, which is then forgotten; as it was, where nothing was."""
        seen = self.counts + self._prior
        estimate = seen / seen.sum(1, keepdim=True)
        self.matrix.copy_(torch.where(self.counts.sum() > 0, estimate, self.matrix))
        self.counts.zero_()

    def tensors(self) -> dict[str, Tensor]:
        """What a resumed run needs, to be written into."""
        return {"confusions": self.matrix, "confusion_counts": self.counts}
