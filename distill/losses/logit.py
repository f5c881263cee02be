"""Distillation losses on logits: one function per paper, one value per image, in log space.

Here the divergences between two softened distributions; `decoupled.py`, `relational.py` and `transformed.py` have the
others. All of them have in common:

- student and teacher logits are [B, C], a result is [B], in nats, and the caller averages it;
- no gradient flows into the teacher's logits;
- half precision is widened to float32 before any arithmetic, float64 stays;
- values and gradients are finite for logits up to 1e4 apart, and for one class (C = 1), where a loss is constant.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill.kernels.reference import wide

SMALLEST_DEVIATION = 1e-6  # of a row of logits: below it the row counts as constant


def kd(student: Tensor, teacher: Tensor, temperature: float | Tensor) -> Tensor:
    """T^2 KL(softmax(teacher/T) || softmax(student/T)) for each image.

    The factor T^2 keeps the gradient's size when T changes. An image's value does not depend on its batch. Hinton,
    Vinyals, Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0. A tensor [] is differentiated, through both distributions and T^2; see
            `learned_temperature.py`.

    Returns:
        [B], in nats times T^2.
    """
    log_p, log_q = log_probabilities(teacher.detach(), temperature), log_probabilities(student, temperature)
    return temperature**2 * divergence(log_p, log_q)


def reverse_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(student/T) || softmax(teacher/T)) for each image: `kd` with the distributions exchanged.

    It punishes mass where the teacher has none, and lets the student leave out classes. An image's value does not
    depend on its batch. Used for distillation by Gu, Dong, Wei, Huang, "MiniLLM: Knowledge Distillation of Large
    Language Models", arXiv 2306.08543, section 2, there over sequences; the factor T^2 is ours, as in `kd`.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        [B], in nats times T^2.
    """
    log_p, log_q = log_probabilities(teacher.detach(), temperature), log_probabilities(student, temperature)
    return temperature**2 * divergence(log_q, log_p)


def jsd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2: the Jensen-Shannon divergence, at most T^2 log 2.

    p = softmax(teacher/T), q = softmax(student/T). An image's value does not depend on its batch. Lin, "Divergence
    Measures Based on the Shannon Entropy", IEEE Transactions on Information Theory 37(1), 1991, with equal weights; for
    distillation Agarwal et al., arXiv 2306.13649 (beta = .5). The factor T^2 is ours, as in `kd`.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.

    Returns:
        [B], in nats times T^2.
    """
    log_p, log_q = log_probabilities(teacher.detach(), temperature), log_probabilities(student, temperature)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return temperature**2 * (divergence(log_p, log_m) + divergence(log_q, log_m)) / 2


def logit_matching(student: Tensor, teacher: Tensor) -> Tensor:
    """1/(2C) sum_c (s_c - t_c)^2 of the logits less their row's mean: what `kd` tends to as T goes to infinity.

    An image's value does not depend on its batch. Hinton, Vinyals, Dean, arXiv 1503.02531, section 2.1, equation 4,
    whose gradient this has; logits that are not centred there are centred here, since softmax does not see the mean.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.

    Returns:
        [B], in squared logits.
    """
    # The difference first: the mean of large logits would cost it digits.
    difference = wide(student) - wide(teacher.detach())
    return (difference - difference.mean(-1, keepdim=True)).square().sum(-1) / (2 * difference.shape[-1])


def standardised(logits: Tensor) -> Tensor:
    """(z - mean z) / std z over the classes of each row, so that LSKD is `kd(standardised(s), standardised(t), 2)`.

    std is that of a population, 1/C under the root, as in the paper; its published code divides by C - 1, which is the
    same loss at a temperature of sqrt(C / (C - 1)) times ours, .5 % more at C = 100. The standard deviation is kept
    above 1e-6: a row that is constant up to this becomes (nearly) 0 and its gradient stays finite. Differentiable in
    the logits. A row's value does not depend on its batch. **Two classes** teach nothing: they are 1 and -1 whatever z.
    Sun, Ren, Li, Wang, Cao, "Logit Standardization in Knowledge
    Distillation", arXiv 2403.01427, algorithm 1.

    Args:
        logits: z, [B, C].

    Returns:
        [B, C], mean 0 and mean square 1 in each row that is not constant.
    """
    z = wide(logits)
    # The largest logit is taken off first, exactly where logits are close: else the mean of a constant row, rounded,
    # would leave a remainder that is then blown up.
    z = z - z.detach().amax(-1, keepdim=True)
    z = z - z.mean(-1, keepdim=True)
    variance = z.square().mean(-1, keepdim=True)
    return z * variance.clamp(min=SMALLEST_DEVIATION**2).rsqrt()


def log_probabilities(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """log softmax(z / T) in float32 at least: [B, C] -> [B, C]."""
    return torch.log_softmax(wide(logits) / temperature, dim=-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) of rows of finite log-probabilities: [B, C], [B, C] -> [B], differentiable in both."""
    # Not F.kl_div: its 'mean' is 1/C of the KL divergence, and forward-mode has no rule for it under vmap.
    return (log_p.exp() * (log_p - log_q)).sum(-1)
