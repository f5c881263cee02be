"""Distillation losses that treat the target class and the other classes apart. See `logit.py` for what all share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from distill.kernels.reference import wide
from distill.losses.logit import divergence, log_probabilities


def dkd(
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float = 4.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """T^2 (alpha KL(b_t || b_s) + beta KL(q_t || q_s)): decoupled knowledge distillation, without its cross-entropy.

    b = (p_y, 1 - p_y) of p = softmax(z/T), and q = softmax of z/T without class y. With alpha = 1 and beta = 1 - p_y of
    the teacher this would be `kd`. The paper takes beta 8, 2 or 6 by the pair of networks, and raises the
    weight linearly over 20 epochs; both are the caller's. With C = 2 the second part is 0, with C = 1 both are. An
    image's value does not depend on its batch. Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", arXiv
    2203.08679, section 3.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        targets: int64 [B].
        temperature: T > 0.
        alpha: weight of the target class against the rest.
        beta: weight of the classes of the rest.

    Returns:
        [B], in nats times T^2.
    """
    s, t = wide(student) / temperature, wide(teacher.detach()) / temperature
    if s.shape[-1] == 1:
        return _nothing(s, t)
    is_target = _is_target(s, targets)
    s_odds, t_odds = _log_odds(s, is_target, targets), _log_odds(t, is_target, targets)
    # log p_y = logsigmoid(odds) and log(1 - p_y) = logsigmoid(-odds): 1 - p_y itself is 0 once p_y rounds to 1.
    target_part = sum(
        logsigmoid(sign * t_odds).exp() * (logsigmoid(sign * t_odds) - logsigmoid(sign * s_odds)) for sign in (1, -1)
    )
    rest_part = divergence(_log_rest(t, is_target), _log_rest(s, is_target))
    return temperature**2 * (alpha * target_part + beta * rest_part)


def nkd(student: Tensor, teacher: Tensor, targets: Tensor, *, temperature: float = 1.0, gamma: float = 1.5) -> Tensor:
    """-t_y log s_y - gamma T^2 sum_{c != y} q^t_c log q^s_c: normalised distillation, without its hard cross-entropy.

    t_y and s_y are of the plain softmax (T = 1); q is softmax(z/T) without class y. Both parts are cross-entropies, so
    neither is 0 where student and teacher agree; the second has no gradient there, but the first asks for more mass on
    the target always. The paper adds -log s_y, the hard cross-entropy, which is the caller's. With C = 2 the second
    part is 0, with C = 1 both are. An image's value does not depend on its batch. Yang et al., "From Knowledge
    Distillation to Self-Knowledge Distillation", arXiv 2303.13005, section 3.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        targets: int64 [B].
        temperature: T > 0, of the second part.
        gamma: weight of the second part.

    Returns:
        [B], in nats.
    """
    s, t = wide(student), wide(teacher.detach())
    if s.shape[-1] == 1:
        return _nothing(s, t)
    at_target = targets.unsqueeze(-1)
    log_s, log_t = (log_probabilities(z, 1.0).gather(-1, at_target).squeeze(-1) for z in (s, t))
    is_target = _is_target(s, targets)
    log_q_s, log_q_t = _log_rest(s / temperature, is_target), _log_rest(t / temperature, is_target)
    # The target itself adds exp(0) * 0 to the sum.
    rest_part = -(log_q_t.exp() * log_q_s).sum(-1)
    return -log_t.exp() * log_s + gamma * temperature**2 * rest_part


def _is_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Bool [B, C], true at each row's target."""
    return torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)


def _log_odds(z: Tensor, is_target: Tensor, targets: Tensor) -> Tensor:
    """log p_y / (1 - p_y) = z_y - logsumexp of the rest: [B, C], C > 1 -> [B]."""
    rest = z.masked_fill(is_target, -torch.inf).logsumexp(-1)
    return z.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - rest


def _log_rest(z: Tensor, is_target: Tensor) -> Tensor:
    """log softmax over the classes but the target, and 0 at the target (so that p log p and log p/q are 0 there)."""
    return torch.log_softmax(z.masked_fill(is_target, -torch.inf), dim=-1).masked_fill(is_target, 0.0)


def _nothing(s: Tensor, t: Tensor) -> Tensor:
    """0 for each image, differentiable, for the one class that leaves nothing to learn."""
    return (0 * (s + t)).sum(-1)
