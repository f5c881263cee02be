"""Cross-entropies with hard and with soft labels. One value per image; the caller reduces."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.kernels import reference


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)_y. logits [B, C], targets int64 [B] -> [B], in nats, computed in float32 at least."""
    logits = logits.float() if logits.itemsize < 4 else logits
    return torch.nn.functional.cross_entropy(logits, targets, reduction="none")


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_c y_c log softmax(z)_c. logits [B, C], labels [B, C] -> [B], in nats, computed in float32 at least."""
    return reference.soft_cross_entropy(logits, labels)
