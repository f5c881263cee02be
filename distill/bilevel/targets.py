"""What a batch is trained on, also where views mix two images: then their labels are mixed in the same shares.

Cross-entropy is linear in the label y = s y_own + (1 - s) y_partner, so the loss is the two losses in these shares, and
dL/dy_own = s dL/dy, dL/dy_partner = (1 - s) dL/dy: the bilevel step needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data.loader import Batch
from distill.labels.rules import LabelRule
from distill.losses.soft import cross_entropy, mixed


@dataclass(frozen=True)
class Target:
    """The labels of a batch, and the labels of the images that they were made of.

    Args:
        labels: what was trained on, [B, C].
        indices: source indices, int64 [B]; of mixed views the partners' follow, [2B]. So it is with the others.
        given: their given labels.
        parts: their own labels, [B, C] or [2B, C].
        shares: of each in the label of its image, [2B]; None: views that do not mix.
    """

    labels: Tensor
    indices: Tensor
    given: Tensor
    parts: Tensor
    shares: Tensor | None = None


def soft_loss(rule: LabelRule, logits: Tensor, batch: Batch) -> tuple[Tensor, Target]:
    """The soft cross-entropy of each image with its label: logits [B, C] -> [B], differentiable, and the labels.

    Raises:
        BilevelError: logits of another shape.
        DataError: an image has no label row.
    """
    losses, own = rule.loss(logits, batch.indices, batch.given)
    if batch.mix is None:
        return losses, Target(own, batch.indices, batch.given, own)
    of_partners, partners = rule.loss(logits, batch.mix.indices, batch.mix.given)
    share = batch.mix.share.to(own.dtype)
    target = Target(
        labels=mixed(own, partners, share.unsqueeze(1)),
        indices=torch.cat([batch.indices, batch.mix.indices]),
        given=torch.cat([batch.given, batch.mix.given]),
        parts=torch.cat([own, partners]),
        shares=torch.cat([share, 1 - share]),
    )
    return mixed(losses, of_partners, share), target


def meta_loss(logits: Tensor, batch: Batch, q: float) -> Tensor:
    """What judges labels: a loss of each image with its given label, or both partners': logits [B, C] -> [B].

        (1 - p_y^q) / q        at q = 0 its limit, the cross-entropy -log p_y

    Generalised cross-entropy, Zhang and Sabuncu, arXiv 1805.07836: its gradient is p_y^q times cross-entropy's, so an
    image whose given label the network disbelieves hardly judges. At q = 1 it is 1 - p_y, which bears symmetric noise.
    """
    losses = _generalised(logits, batch.given, q)
    if batch.mix is None:
        return losses
    return mixed(losses, _generalised(logits, batch.mix.given, q), batch.mix.share)


def _generalised(logits: Tensor, given: Tensor, q: float) -> Tensor:
    losses = cross_entropy(logits, given)
    return losses if q == 0 else -torch.expm1(-q * losses) / q
