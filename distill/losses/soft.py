"""Cross-entropies with hard and with soft labels. One value per image; the caller reduces."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.kernels import reference


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)_y. logits [B, C], targets int64 [B] -> [B], in nats, computed in float32 at least."""
    logits = logits.float() if logits.itemsize < 4 else logits
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def mixed(own: Tensor, partner: Tensor, share: Tensor) -> Tensor:
    """The loss of a mixed image, from its losses with its own target and with its partner's.

        CE(share y + (1 - share) y') = share CE(y) + (1 - share) CE(y')

    Exact for every loss that is linear in the target: cross-entropy with hard, smoothed or learned labels, and with two
    stored rows of *probabilities*, when the target is defined as their mixture (each row with its own temperature
    taken first). KL differs by a constant then, so its gradient in the student is exact too.

    Not exact for the teacher's answer to the mixed image, which no two stored rows hold: mixing the stored *logits*, or
    the probabilities, of two unmixed views is another target. A store of mixed views has the row of the mixed pixels.

    Args:
        own: [B], of each image with its own target.
        partner: [B], of the same logits with the partner's target.
        share: of the image itself, from 0 to 1, [B].

    Returns:
        [B].
    """
    return share * own + (1 - share) * partner


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_c y_c log softmax(z)_c. logits [B, C], labels [B, C] -> [B], in nats, computed in float32 at least."""
    return reference.soft_cross_entropy(logits, labels)
