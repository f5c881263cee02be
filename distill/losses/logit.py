"""Distillation losses on logits: one function per paper, one value per image, in log space."""

from __future__ import annotations

import torch
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) for each image.

    The factor T^2 keeps the gradient's size when T changes. Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", arXiv 1503.02531, section 2.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        [B], in nats times T^2.
    """
    # Not F.kl_div: its 'mean' is 1/C of the KL divergence, and forward-mode has no rule for it under vmap.
    log_p = torch.log_softmax(teacher.detach() / temperature, dim=-1)
    log_q = torch.log_softmax(student / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(-1)
