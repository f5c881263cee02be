"""Distillation losses on relations between classes and between images. See `logit.py` for what all losses share.

Both have terms that belong to a batch and not to an image, so that their values change with the batch's size and
company. Where several processes train together, each takes its own batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.kernels.reference import wide
from distill.losses.logit import divergence, log_probabilities

SMALLEST_NORM = 1e-8  # of centred probabilities: below it a row or a column counts as constant


def dist(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, inter: float = 1.0, intra: float = 1.0
) -> Tensor:
    """T^2 (inter (1 - r of the image's row) + intra (1 - mean r of the batch's columns)), r Pearson's correlation.

    Rows and columns are those of softmax(z/T), [B, C]. The column term **depends on the batch**: every image is given
    the batch's value, so that the mean over images is the paper's loss. A row or column counts as constant where its
    centred norm is below 1e-8 (or below its own rounding errors): its r is 0 and it has no gradient. So it is with all
    columns of a batch of one image and, where C = 1, with all rows. Above that the gradient grows as 1/norm, since r
    does not see how far a row is from being constant. With two classes r of a row is 1 or -1 and has no gradient.

    r does not change when p becomes a p + b with a > 0; that is a claim about probabilities, not about logits. Rows
    that remain distributions are (1 - m) p + m/C: the loss does not change when one m is shared by the batch, and the
    row term does not with an m for each image. Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger
    Teacher", arXiv 2205.10536, section 3. T 4 is for CIFAR, 1 for ImageNet; published with both terms times 2.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperature: T > 0.
        inter: weight of the row term, over the classes of an image.
        intra: weight of the column term, over the images of the batch.

    Returns:
        [B]; times T^2, and between 0 and 2 T^2 (inter + intra).
    """
    p = torch.softmax(wide(teacher.detach()) / temperature, dim=-1)
    q = torch.softmax(wide(student) / temperature, dim=-1)
    rows, columns = _correlation(q, p, dim=1), _correlation(q, p, dim=0)
    return temperature**2 * (inter * (1 - rows) + intra * (1 - columns.mean()))


def mlkd(student: Tensor, teacher: Tensor, *, temperatures: Sequence[float] = (2.0, 3.0, 4.0, 5.0, 6.0)) -> Tensor:
    """sum over T of T^2 KL(p || q) + 1/C |q'q - p'p|^2 + sum_j ((qq' - pp')_ij)^2: multi-level logit distillation.

    p = softmax(teacher/T), q = softmax(student/T), [B, C]; p'p is the classes' Gram matrix [C, C], pp' the images'
    [B, B]. The class term **depends on the batch** and is given to every image; of the batch term, 1/B of a sum over i
    and j in the paper, each image has its row. The mean over images is the paper's loss.

    Left open by the paper and chosen here: the three levels have weight 1 (as published), the Gram terms no factor T^2
    (as published), and there is no mask by the teacher's confidence: that of the published code changes nothing. Gram
    terms are sums over a batch: with more images the class term grows as B^2, the batch term as B. Jin, Wang, Lin,
    "Multi-Level Logit Distillation", CVPR 2023, section 3.

    Args:
        student: logits [B, C].
        teacher: logits [B, C]; no gradient flows into them.
        temperatures: at least one T > 0; the terms are added over them.

    Returns:
        [B].
    """
    with torch.autocast(student.device.type, enabled=False):  # it would take the Gram matrices in half precision
        # Widened once, so that the gradients of the temperatures are not added in half precision.
        s, t = wide(student), wide(teacher.detach())
        return torch.stack([_three_levels(s, t, temperature) for temperature in temperatures]).sum(0)


def _three_levels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The terms of one temperature: [B, C], [B, C] -> [B]."""
    log_p, log_q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    p, q = log_p.exp(), log_q.exp()
    # With d = q - p and a = q + p: q'q - p'p = (d'a + a'd) / 2 and qq' - pp' = (da' + ad') / 2. The square of the
    # first, too, needs only products [B, B], which are smaller than [C, C]; and nothing large is subtracted.
    d, a = q - p, q + p
    cross = d @ a.T
    of_classes = ((d @ d.T) * (a @ a.T) + cross * cross.T).sum() / (2 * p.shape[-1])
    of_images = ((cross + cross.T) / 2).square().sum(-1)
    return temperature**2 * divergence(log_p, log_q) + of_classes + of_images


def _correlation(x: Tensor, y: Tensor, *, dim: int) -> Tensor:
    """Pearson's correlation along a dimension, 0 without a gradient where x or y is constant: [B, C] -> [B] or [C]."""
    (x, x_norm, x_varies), (y, y_norm, y_varies) = _centred(x, dim), _centred(y, dim)
    return torch.where(x_varies & y_varies, (x * y).sum(dim) * x_norm.rsqrt() * y_norm.rsqrt(), 0.0)


def _centred(x: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """x less its mean, the squared norm of that (1 where x is constant, to divide by), and whether x varies."""
    rounding = (8 * torch.finfo(x.dtype).eps) ** 2 * x.detach().square().sum(dim)
    x = x - x.mean(dim, keepdim=True)
    norm = x.square().sum(dim)
    varies = norm.detach() > rounding.clamp(min=SMALLEST_NORM**2)
    return x, torch.where(varies, norm, 1.0), varies
