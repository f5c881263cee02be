"""Cross-entropies with hard and with soft labels, and losses that need no teacher. One value per image; the caller
reduces.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill.kernels import reference
from distill.kernels.reference import wide
from distill.losses.logit import kd, log_probabilities


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(z)_y. logits [B, C], targets int64 [B] -> [B], in nats, computed in float32 at least."""
    return nn.functional.cross_entropy(wide(logits), targets, reduction="none")


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


def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """-(1 - eps) log p_y - eps/C sum_c log p_c: label smoothing with eps/C on every class, the target included.

    timm's and torch's convention; Tf-KD's has eps/(C - 1) on the other classes, so that their eps is C/(C - 1) times
    smaller. An image's value does not depend on its batch. Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the
    Inception Architecture for Computer Vision", arXiv 1512.00567, section 7.

    Args:
        logits: [B, C].
        targets: int64 [B].
        smoothing: eps, from 0 to 1.

    Returns:
        [B], in nats, computed in float32 at least.
    """
    log_p = log_probabilities(logits, 1.0)
    of_target = log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return -(1 - smoothing) * of_target - smoothing * log_p.mean(-1)


def tf_kd(logits: Tensor, targets: Tensor, *, temperature: float = 20.0, mass: float = 0.99) -> Tensor:
    """T^2 KL(u^T || softmax(z/T)), u a virtual teacher with `mass` on the target and the rest spread evenly.

    u^T is u_c^(1/T), normalised: `kd` with log u for the teacher's logits. An image's value does not depend on its
    batch. Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", arXiv
    1909.11723, section 4. The paper has no factor T^2, which here keeps the gradient's size as everywhere. Its
    published code is another loss: the student without a temperature, softmax(u/T) for its target (at T = 20 nearly
    uniform), the mean over classes, and a multiplier that is tuned for each network.

    Args:
        logits: the student's, [B, C].
        targets: int64 [B].
        temperature: T > 0.
        mass: the virtual teacher's probability of the target, in (0, 1).

    Returns:
        [B], in nats times T^2, computed in float32 at least. With one class 0.

    Raises:
        ValueError: a mass that leaves the other classes, or the target, none.
    """
    if not 0 < mass < 1:
        raise ValueError(f"mass is {mass}, expected a probability in (0, 1)")
    others = max(1, logits.shape[-1] - 1)
    virtual = torch.full_like(wide(logits), math.log((1 - mass) / others), requires_grad=False)
    return kd(logits, virtual.scatter_(-1, targets.unsqueeze(-1), math.log(mass)), temperature)


class OnlineLabels(nn.Module):
    """Soft labels of each class from the model's own right answers in the epoch before (online label smoothing).

        S_k <- mean of softmax(z) over the images of class k that were classified as k

    Zhang et al., "Delving Deep into Label Smoothing", arXiv 2011.12562, section 3; they train on half of this
    loss and half of the hard cross-entropy, which is the caller's. In the first epoch all labels are uniform. A class
    without a right answer in an epoch keeps the labels it had (left open by the paper).

    An image's value does not depend on its batch, but on the epoch before. State is three buffers, so a run that stops
    goes on from `state_dict`, within an epoch too; two of them are [C, C]. Repeats are added in the batch's order,
    except on CUDA, where torch adds them in any order unless `torch.use_deterministic_algorithms` is on.

    Args:
        classes: C.
    """

    labels: Tensor  # S, this epoch's labels, a row for each class, [C, C]
    sums: Tensor  # of softmax(z), so far in this epoch, [C, C]
    counts: Tensor  # right answers so far in this epoch, int64 [C]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("labels", torch.full((classes, classes), 1 / classes))
        self.register_buffer("sums", torch.zeros(classes, classes))
        self.register_buffer("counts", torch.zeros(classes, dtype=torch.int64))

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """-sum_c S_yc log softmax(z)_c; in train mode the right answers are remembered for the next epoch.

        Args:
            logits: [B, C].
            targets: int64 [B].

        Returns:
            [B], in nats, computed in float32 at least.
        """
        log_p = log_probabilities(logits, 1.0)
        if self.training:
            self._remember(log_p.detach(), targets)
        return -(self.labels[targets] * log_p).sum(-1)

    def end_epoch(self) -> None:
        """Makes the labels of the next epoch, and forgets the answers that they were made of."""
        means = self.sums / self.counts.clamp(min=1).unsqueeze(1)
        self.labels.copy_(torch.where(self.counts.unsqueeze(1) > 0, means, self.labels))
        self.sums.zero_()
        self.counts.zero_()

    def _remember(self, log_p: Tensor, targets: Tensor) -> None:
        right = log_p.argmax(-1) == targets
        answers = (log_p.exp() * right.unsqueeze(1)).to(self.sums.dtype)
        self.sums.index_add_(0, targets, answers)
        self.counts.index_add_(0, targets, right.long())
