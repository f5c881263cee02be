"""The operations on label rows in plain torch: the definition that every faster form is judged by."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-sum_c y_c log softmax(z)_c for each image.

    Args:
        logits: [B, C].
        labels: soft labels, [B, C].

    Returns:
        [B], in nats; the caller reduces.
    """
    return -(labels * torch.log_softmax(logits, dim=-1)).sum(-1)


def softmax_row_gradient(labels: Tensor, derivative: Tensor) -> Tensor:
    """From dL/dy to dL/dphi for y = softmax(phi): y * (a - sum_c y_c a_c).

    Args:
        labels: y, [B, C].
        derivative: a = dL/dy, [B, C].

    Returns:
        [B, C]; every row sums to zero.
    """
    return labels * (derivative - (labels * derivative).sum(-1, keepdim=True))


def reduce_rows(rows: Tensor, gradient: Tensor, *, mean: bool) -> tuple[Tensor, Tensor]:
    """Gathers what repeated rows received, so that each row is written once.

    Args:
        rows: row numbers, int64 [B], repeats allowed.
        gradient: [B, C].
        mean: divide by the number of repeats (class tables) or not (instance tables).

    Returns:
        The distinct rows in ascending order, int64 [U], and their gradient [U, C].
    """
    unique, inverse, counts = torch.unique(rows, return_inverse=True, return_counts=True)
    total = torch.zeros(unique.numel(), gradient.shape[1], dtype=gradient.dtype, device=gradient.device)
    total.index_add_(0, inverse, gradient)
    return unique, total / counts.unsqueeze(1) if mean else total
