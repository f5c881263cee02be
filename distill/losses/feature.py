"""Distillation losses on features: one per paper, one value per image, the caller averages.

All of the teacher comes from a store: what its last layer was given (`LogitStore.features`), or the attention maps of
its stages (`LogitStore.maps`). No gradient flows into either. Everything is computed in float32 at least, so call these
outside of autocast.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from distill.seeding import derive, draw

# Cosines that the angles of RKD keep for the backward pass: all triples of 128 images. Of more, they are made again.
_TRIPLES = 2**21


class FitNet(nn.Module):
    """Hints: the student's features, taken to the teacher's width by a linear regressor, are to equal the teacher's.

        |W s + b - t|^2 / Dt

    Romero et al., "FitNets: Hints for Thin Deep Nets", arXiv 1412.6550, equation 3. There the hint is a layer in the
    middle, the factor 1/2 and the loss a first stage of its own; here it is the last layer's input, in one stage, and
    the mean over Dt, for which the literature's weight is 100.

    Args:
        student_width: Ds.
        teacher_width: Dt.
    """

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_width, teacher_width)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Student's features [B, Ds], teacher's [B, Dt] -> [B]."""
        return (_through(self.regressor, student) - teacher.detach()).square().mean(-1)


def rkd(student: Tensor, teacher: Tensor, *, distance: float = 25.0, angle: float = 50.0) -> Tensor:
    """Relations between the images of a batch: distances of pairs and angles of triples, as the teacher has them.

        d_ij = |x_i - x_j| / mean over pairs,    a_ijk = cos of the angle at x_j between x_i and x_k
        value_j = distance / B sum_i h(d_ji) + angle / B^2 sum_ik h(a_ijk),    h: Huber loss of student minus teacher

    Park et al., "Relational Knowledge Distillation", arXiv 1904.05068, sections 3.2.1 and 3.2.2. The paper sums over
    pairs and triples of distinct images. Here the mean of the values over the batch is the mean over all B^2 pairs and
    B^3 triples, as in the authors' code, which the weights 25 and 50 belong to; those that are not of distinct images
    are 0. Scaling, shifting, turning or mirroring either side changes nothing, and the widths may differ.

    A value depends on the whole batch: it is the image's share as the first of the pair, and as the vertex. Across
    processes these are the pairs and triples within each one's batch. The angles take time in B^3 (neither in B^3 D nor
    in memory for B^2 D): they follow from the distances, by the law of cosines. Of more than 128 images the memory
    no longer grows with B^3 either, since cosines are computed again for the backward pass.

    Args:
        student: features [B, Ds].
        teacher: features [B, Dt].
        distance: weight of the distances.
        angle: weight of the angles; 0: they are not computed.

    Returns:
        [B]. Points closer than the dtype's eps times the mean distance have no direction: their angles count as 0.
    """
    s, t = _distances(student), _distances(teacher.detach())
    values = distance * F.smooth_l1_loss(s, t, reduction="none").mean(-1)
    if not angle:
        return values
    rows = max(1, _TRIPLES // len(s) ** 2)
    if rows >= len(s):
        return values + angle * _angles(s, t, s, t)
    pieces = zip(torch.split(s, rows), torch.split(t, rows), strict=True)
    angles = [checkpoint(_angles, a, b, s, t, use_reentrant=False, preserve_rng_state=False) for a, b in pieces]
    return values + angle * torch.cat(angles)


def _distances(x: Tensor) -> Tensor:
    """Features [B, D] -> distances over their mean [B, B]; from float64, since angles are differences of them."""
    # Not by a matrix product, which leaves a distance where two rows are equal.
    found = torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    mean = found.sum() / max(1, len(x) * (len(x) - 1))
    found = found / torch.where(mean > torch.finfo(torch.float32).tiny, mean, 1.0)
    return found.to(torch.promote_types(x.dtype, torch.float32))


def _angles(s_vertices: Tensor, t_vertices: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """Distances [b, B] from the vertices, and all distances [B, B] -> mean Huber loss of the angles there [b]."""
    return F.smooth_l1_loss(_cosines(s_vertices, s), _cosines(t_vertices, t), reduction="none").mean((-2, -1))


def _cosines(vertices: Tensor, distances: Tensor) -> Tensor:
    """Distances [b, B] and [B, B] -> cosines of the angles at the vertices [b, B, B]."""
    eps = torch.finfo(distances.dtype).eps
    inverse = torch.where(vertices > eps, 1 / vertices.clamp(min=eps), 0.0)
    square = vertices.square()
    twice = square.unsqueeze(2) + square.unsqueeze(1) - distances.square()
    return twice * (inverse.unsqueeze(2) * (inverse.unsqueeze(1) / 2))


class CRD(nn.Module):
    """Contrast: tell the teacher's features of the same image from its features of others.

        loss = -log h(t, s) - sum over N negatives of log(1 - h(t', s)),    h = e / (e + Z N / M)
        e = exp(<g_t(t), g_s(s)> / temperature),    g: a linear layer, then length 1

    Tian, Krishnan, Isola, "Contrastive Representation Distillation", arXiv 1910.10699, section 3. What differs from
    the paper and from its authors' code:

    - Negatives are the teacher's features from the store through today's g_t, the same K for the whole batch. They were
      a memory bank: features of earlier steps through the heads of then, other N for each image.
    - One direction only, the student's features against the teacher's, as in the equations. The code adds the other
      direction; it needs a bank of the student's features, which no store holds. The loss is half as large for it.
    - The paper prints h without Z. With Z = 1 it is near 1 for every pair of unrelated features, and at K = 1,024 of
      50,000 images a loss starts at 3,400. The code divides e by Z = M mean(e), kept from the first batch; so does
      this, unless `normaliser` is given. A loss then starts near 1 + log K, and M drops out.
    - N is K less the image's own class, which the code leaves out of its negatives too.

    Both heads learn, so their parameters belong to the student's optimiser; Z is a buffer, and part of a resume state.

    Args:
        student_width: Ds.
        teacher_width: Dt.
        images: M, images that negatives are drawn from.
        dim: width of the space that they are compared in.
        temperature: .07 in the authors' code, .1 in the paper on CIFAR-100.
        normaliser: Z; None: from the first batch that has negatives.
    """

    log_normaliser: Tensor

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        images: int,
        dim: int = 128,
        temperature: float = 0.07,
        normaliser: float | None = None,
    ) -> None:
        super().__init__()
        self.student_head = nn.Linear(student_width, dim)
        self.teacher_head = nn.Linear(teacher_width, dim)
        self.images = images
        self.temperature = temperature
        # Infinite: not known yet.
        known = math.inf if normaliser is None else math.log(normaliser)
        self.register_buffer("log_normaliser", torch.tensor(known))

    def forward(self, student: Tensor, teacher: Tensor, negatives: Tensor, same_class: Tensor) -> Tensor:
        """The loss of each image.

        Args:
            student: features [B, Ds].
            teacher: the teacher's features of the same images in the same views [B, Dt].
            negatives: the teacher's features of other images [K, Dt], see `draw_negatives`.
            same_class: whether a negative has the image's class, bool [B, K]; it does not count then. An image that was
                drawn as a negative of itself is one of these.

        Returns:
            [B]. A value depends on the batch only through Z, in the first step.
        """
        anchors = F.normalize(_through(self.student_head, student), dim=-1)
        own = F.normalize(_through(self.teacher_head, teacher.detach()), dim=-1)
        others = F.normalize(_through(self.teacher_head, negatives.detach()), dim=-1)
        positive = (anchors * own).sum(-1) / self.temperature
        negative = anchors @ others.T / self.temperature
        count = (~same_class).sum(-1).clamp(min=1).to(negative.dtype)
        # log of e / (Z N / M), so that -log h is softplus(-x) and -log(1 - h) is softplus(x).
        offset = self._normalise(negative.detach(), same_class) - math.log(self.images) + count.log()
        contrasted = F.softplus(negative - offset.unsqueeze(-1)).masked_fill(same_class, 0.0)
        return F.softplus(offset - positive) + contrasted.sum(-1)

    @torch.no_grad()
    def _normalise(self, exponents: Tensor, left_out: Tensor) -> Tensor:
        """log Z, found from log e [B, K] when it is not known yet; the host waits for nothing."""
        count = (~left_out).sum().to(exponents.dtype)
        mean = exponents.masked_fill(left_out, -torch.inf).flatten().logsumexp(0) - count.log()
        found = torch.where(count > 0, mean + math.log(self.images), math.inf)
        self.log_normaliser.copy_(torch.where(self.log_normaliser.isinf(), found, self.log_normaliser))
        return torch.where(self.log_normaliser.isinf(), math.log(self.images), self.log_normaliser)


def draw_negatives(indices: Tensor, views: int, count: int, *, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Images and views whose stored features are the negatives of a step: `store.features(*draw_negatives(...))`.

    A function of (seed, step) and of what is drawn from, so that a run that is resumed draws the same. With repeats.

    Args:
        indices: source indices to draw from, int64 [M], as `LogitStore.indices`.
        views: V, views of each image.
        count: K.
        seed: the run's.
        step: the step's number.

    Returns:
        Source indices and views, int64 [K] each, on the CPU.
    """
    drawn = draw(derive(seed, "crd-negatives"), torch.arange(count), torch.tensor([step])) % (len(indices) * views)
    return indices.cpu()[drawn // views], drawn % views


def attention_transfer(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Attention transfer: where the student's stages look is to be where the teacher's look.

        sum over the maps l of |q_s / |q_s| - q_t / |q_t||^2 / P_l

    Zagoruyko and Komodakis, "Paying More Attention to Attention", arXiv 1612.03928, equation 2, with the maps of
    `distill.models.maps`. The equation as printed has the distance itself and the factor beta / 2. The authors' code,
    and the literature's weight of 1,000, are for the square, averaged over the P_l pixels; that is what this is.

    Args:
        student: maps [B, P_l], stage by stage; any scale.
        teacher: maps [B, P_l], of the same sizes.

    Returns:
        [B].

    Raises:
        ValueError: another number of maps, or of pixels.
    """
    shapes = [[tuple(q.shape) for q in maps] for maps in (student, teacher)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"the student's maps are {shapes[0]}, the teacher's {shapes[1]}: expected the same, one at least"
        )
    pairs = zip(student, teacher, strict=True)
    losses = [(_unit(s) - _unit(t.detach())).square().mean(-1) for s, t in pairs]
    return torch.stack(losses).sum(0)


def _unit(x: Tensor) -> Tensor:
    """[B, P] over its length; zeros stay zeros, and so does their gradient stay within bounds."""
    x = x.float() if x.itemsize < 4 else x
    largest = x.detach().abs().amax(-1, keepdim=True)
    return F.normalize(x / torch.where(largest > 0, largest, 1.0), dim=-1)


def _through(layer: nn.Linear, x: Tensor) -> Tensor:
    """A layer's output in its own precision, which is float32 at least, whatever that of its input [B, D]."""
    output: Tensor = layer(x.to(layer.weight.dtype))
    return output
