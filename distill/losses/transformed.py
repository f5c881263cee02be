"""Transformed teacher matching: only the teacher has a temperature. See `logit.py` for what all losses share."""

from __future__ import annotations

import torch
from torch import Tensor

from distill.losses.logit import divergence, log_probabilities


def ttm(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """KL(w || softmax(student)) with w_c = p_c^(1/T) / Z, p = softmax(teacher): transformed teacher matching.

    w is softmax(teacher/T). At T = 1 this is `kd`. Otherwise it has a gradient where student and teacher agree, since
    the student is to match the smoothed teacher. No factor T^2: the student's gradient does not shrink with T. The
    paper tunes T by the pair of networks; 4 is ours. An image's value does not depend on its batch. Zheng, Yang,
    "Knowledge Distillation Based on Transformed Teacher Matching", arXiv 2402.11148, section 3.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        [B], in nats.
    """
    log_w, _ = _transformed(teacher, temperature)
    return divergence(log_w, log_probabilities(student, 1.0))


def wttm(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Z KL(w || softmax(student)) with Z = sum_c p_c^(1/T): `ttm`, where images of unsure teachers weigh more.

    Z is 1 for a teacher that is sure and C^(1 - 1/T) for one that knows nothing (for T > 1), so the loss is larger than
    `ttm` by a factor that depends on C; weights are not normalised over the batch, and an image's value does not depend
    on it. Zheng, Yang, arXiv 2402.11148, section 4.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        [B], in nats times Z.
    """
    log_w, log_z = _transformed(teacher, temperature)
    return log_z.exp() * divergence(log_w, log_probabilities(student, 1.0))


def _transformed(teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log w [B, C] and log Z [B] of the teacher's logits [B, C]."""
    powers = log_probabilities(teacher.detach(), 1.0) / temperature
    log_z = torch.logsumexp(powers, dim=-1)
    return powers - log_z.unsqueeze(-1), log_z
