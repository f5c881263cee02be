"""The operations on label rows in plain torch: the definition that every faster form is judged by.

Half precision is widened to float32 before any arithmetic; float64 stays float64, which is the tests' oracle. Nothing
here waits for the device.
"""

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
    return -(labels * torch.log_softmax(wide(logits), dim=-1)).sum(-1)


def soft_cross_entropy_rows(logits: Tensor, phi: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Soft cross-entropy with labels y = softmax(phi) gathered from a table. Differentiable in the logits.

    A class that a row masks (phi = -inf) has label 0 and adds 0 to the loss, whatever its logit is.

    Args:
        logits: z, [B, C].
        phi: label logits, [R, C]; rows need not be normalised.
        rows: each image's row, int64 [B], in [0, R).

    Returns:
        The loss [B] in nats, and the labels y [B, C].
    """
    labels = torch.softmax(wide(phi[rows]).detach(), dim=-1)
    log_probabilities = torch.log_softmax(wide(logits), dim=-1)
    return -torch.where(labels == 0, 0, labels * log_probabilities).sum(-1), labels


def soft_cross_entropy_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """d loss_i / d z_ic = softmax(z)_ic - y_ic, for labels that sum to one: [B, C], [B, C] -> [B, C]."""
    return torch.softmax(wide(logits), dim=-1) - labels


def row_gradient(labels: Tensor, derivative: Tensor, scale: Tensor) -> Tensor:
    """From dL/dy to scale * dL/dphi for y = softmax(phi): scale * y * (a - sum_c y_c a_c).

    Args:
        labels: y, [B, C].
        derivative: a = dL/dy, [B, C].
        scale: [], for example B / lr.

    Returns:
        [B, C]; every row sums to zero.
    """
    y, a = wide(labels), wide(derivative)
    gradient = y * (a - (y * a).sum(-1, keepdim=True))
    return gradient * scale.to(gradient.dtype)


def combine_repeats(rows: Tensor, gradient: Tensor, *, mean: bool) -> Tensor:
    """Gives every batch entry the sum (or mean) over all entries of the same row.

    Entries of one row then agree, so writing a row more than once writes the same value: an update needs no list of
    distinct rows, whose length the host would have to wait for.

    Args:
        rows: int64 [B], repeats allowed.
        gradient: [B, C].
        mean: divide by the number of repeats (class tables) or not (instance tables).

    Returns:
        [B, C], float32 at least, in the batch's order. Repeats are added in the batch's order too, except on CUDA,
        where torch adds them in any order unless `torch.use_deterministic_algorithms` is on.
    """
    gradient = wide(gradient)
    ranked, order = torch.sort(rows, stable=True)
    starts = torch.ones_like(ranked)
    starts[1:] = ranked[1:] != ranked[:-1]
    segment = torch.empty_like(rows).scatter_(0, order, starts.cumsum(0) - 1)
    total = torch.zeros_like(gradient).index_add_(0, segment, gradient)
    if mean:
        ones = torch.ones_like(gradient[:, :1])
        count = torch.zeros_like(ones).index_add_(0, segment, ones)
        total = total / count.clamp(min=1)  # fewer segments than entries: the rest is empty
    return total[segment]


def sgd_rows_(
    phi: Tensor,
    buffer: Tensor | None,
    touched: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    step: Tensor,
    momentum: float,
    mean: bool,
) -> None:
    """SGD on the rows of a batch, in place: m <- momentum * m + g, phi <- phi - step * m. No other row is written.

    Args:
        phi: [R, C].
        buffer: m, [R, C]; None without momentum.
        touched: bool [R]; set for the rows of the batch.
        rows: int64 [B], in [0, R), repeats allowed.
        gradient: one per batch entry, [B, C].
        step: [].
        momentum: in [0, 1).
        mean: repeats are averaged, else summed.
    """
    g = combine_repeats(rows, gradient, mean=mean)
    if momentum > 0:
        assert buffer is not None
        g = wide(buffer[rows]) * momentum + g
        buffer[rows] = g.to(buffer.dtype)
    phi[rows] = (wide(phi[rows]) - step.to(g.dtype) * g).to(phi.dtype)
    touched.index_fill_(0, rows, True)  # `touched[rows] = True` copies the value to a GPU, and waits


def adam_rows_(
    phi: Tensor,
    first: Tensor,
    second: Tensor,
    steps: Tensor,
    touched: Tensor,
    rows: Tensor,
    gradient: Tensor,
    *,
    step: Tensor,
    betas: tuple[float, float],
    eps: float,
    mean: bool,
) -> None:
    """Adam (Kingma and Ba, arXiv 1412.6980, algorithm 1) on the rows of a batch, in place, each row on its own clock.

        t <- t + 1;  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        phi <- phi - step * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Args:
        phi: [R, C].
        first: m, [R, C].
        second: v, [R, C].
        steps: t, how often each row was updated, int32 [R].
        touched: bool [R]; set for the rows of the batch.
        rows: int64 [B], in [0, R), repeats allowed; a repeat counts as one step.
        gradient: one per batch entry, [B, C].
        step: [].
        betas: b1, b2 in [0, 1).
        eps: above 0.
        mean: repeats are averaged, else summed.
    """
    g = combine_repeats(rows, gradient, mean=mean)
    b1, b2 = betas
    t = steps[rows] + 1
    m = b1 * wide(first[rows]) + (1 - b1) * g
    v = b2 * wide(second[rows]) + (1 - b2) * g.square()
    # 1 - b^t in float64: in float32 it loses four digits at b = .999 and t = 1.
    correction1 = (1 - b1 ** t.double()).to(g.dtype).unsqueeze(1)
    correction2 = (1 - b2 ** t.double()).to(g.dtype).unsqueeze(1)
    change = (m / correction1) / ((v / correction2).sqrt() + eps)
    steps[rows] = t
    first[rows] = m.to(first.dtype)
    second[rows] = v.to(second.dtype)
    phi[rows] = (wide(phi[rows]) - step.to(g.dtype) * change).to(phi.dtype)
    touched.index_fill_(0, rows, True)  # `touched[rows] = True` copies the value to a GPU, and waits


def wide(tensor: Tensor) -> Tensor:
    """Half precision as float32, everything else as it is."""
    return tensor.float() if tensor.itemsize < 4 else tensor
