"""Mixup and CutMix as views: which two images, how much of each, and where, is a hash of (seed, i, k).

Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412; Yun et al., "CutMix", arXiv 1905.04899.
The partner is one of a fixed population of images (those that are trained on, or stored) and shows its own view of the
same number k. The result is rounded to whole grey levels, so that a stored row belongs to exactly these pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.data import compiled
from distill.data.draws import SHARES, Boxes, below, beta_shares, root, uniform
from distill.data.pixels import array, chosen, in_shares, moved, room_for, rows_of, with_rows
from distill.recipe.schema import ViewsRecipe


@dataclass(frozen=True)
class Pairs:
    """Which images of a batch are mixed, with what. All on the CPU.

    Args:
        partner: source index of each image's partner, int64 [B]; of the image itself where nothing is mixed.
        share: of the image itself in the mixed one, float32 [B]; CutMix's by area. 1 where nothing is mixed.
        rows: which images of the batch are mixed, int64 [M].
        weight: of these images themselves, in 4096ths, int64 [M]; 4096 for CutMix.
        boxes: what CutMix takes from the partner, [M]; no height for mixup.
    """

    partner: Tensor
    share: Tensor
    rows: Tensor
    weight: Tensor
    boxes: Boxes


def draw_pairs(
    indices: Tensor, k: Tensor, recipe: ViewsRecipe, seed: int, population: Tensor, shape: tuple[int, int]
) -> Pairs:
    """The pairs of view k of each image: a pure function of (seed, i, k), of the population and of the images' size.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        recipe: views that mix.
        seed: of the views.
        population: source indices that partners are taken from, in a fixed order, int64 [n]. An image may meet itself.
        shape: H and W of the images.
    """
    height, width = shape
    mixed = uniform(seed, "mix", indices, k) < recipe.mix_probability
    cut = torch.full_like(mixed, recipe.cutmix > 0)
    if recipe.mixup and recipe.cutmix:
        cut = below(seed, "mix-kind", indices, k, 2) == 1
    weight, kept = (
        beta_shares(seed, name, indices, k, alpha) if alpha else torch.full_like(indices, SHARES)
        for name, alpha in (("mixup-share", recipe.mixup), ("cutmix-share", recipe.cutmix))
    )
    weight = torch.where(mixed & ~cut, weight, SHARES)
    kept = torch.where(mixed & cut, kept, SHARES)
    boxes = _cut_boxes(indices, k, seed, kept, shape)
    area = boxes.height * boxes.width
    share = torch.where(cut, 1 - area.double() / (height * width), weight.double() / SHARES)
    rows = torch.nonzero(share < 1).flatten()
    partner = indices.clone()
    partner[rows] = population[below(seed, "partner", indices, k, len(population))[rows]]
    return Pairs(partner, share.float(), rows, weight[rows], boxes[rows])


def _cut_boxes(indices: Tensor, k: Tensor, seed: int, kept: Tensor, shape: tuple[int, int]) -> Boxes:
    """A box of the image's own shape around a uniform centre, cut off at the edges; as in the paper's code and timm's.

    Args:
        indices: source indices, int64 [B].
        k: view numbers, int64 [B].
        seed: of the views.
        kept: share of the area that the box is to leave, before it is cut off, in 4096ths, int64 [B].
        shape: H and W.
    """
    side = root((SHARES - kept).double() / SHARES)
    spans = []
    for name, length in zip(("cutmix-y", "cutmix-x"), shape, strict=True):
        centre = below(seed, name, indices, k, length)
        half = (side * length).long() // 2
        first, last = (centre - half).clamp(min=0), (centre + half).clamp(max=length)
        spans.append((first, last - first))
    (top, tall), (left, wide) = spans
    return Boxes(top, left, tall, wide)


def mix(images: Tensor, partners: Tensor, pairs: Pairs) -> Tensor:
    """Mixes views with their partners' views.

    Args:
        images: uint8 [B, ch, H, W], on any device.
        partners: uint8 [M, ch, H, W], the partners of `pairs.rows`, on the same device.
        pairs: from `draw_pairs`.

    Returns:
        uint8 [B, ch, H, W].
    """
    if images.device.type != "cpu":
        return mix_together(images, partners, pairs)
    number = torch.full((len(images),), -1)
    number[pairs.rows] = torch.arange(len(pairs.rows))
    boxes = torch.stack([pairs.boxes.top, pairs.boxes.left, pairs.boxes.height, pairs.boxes.width])
    others, corners = array(partners.flatten(1), len(pairs.rows)), array(boxes)
    weight = array(pairs.weight, len(pairs.rows))

    def mixed(some: Tensor, number: Tensor, out: Tensor | None) -> Tensor:
        made = room_for(some, out)
        own, new = array(some.flatten(1)), made.flatten(1).numpy()
        compiled.mixing.mix(own, others, array(number, len(some)), weight, corners, tuple(some.shape[1:]), new)
        return made

    return in_shares(mixed, images, number, copying=True)


def mix_together(images: Tensor, partners: Tensor, pairs: Pairs) -> Tensor:
    """`mix`, first all that are blended, then all that are pasted: for devices, and what defines the result."""
    blended = torch.nonzero(pairs.weight < SHARES).flatten()
    if len(blended):
        images = _blend(images, partners, pairs, blended)
    pasted = torch.nonzero(pairs.boxes.height > 0).flatten()
    if len(pasted):
        images = _paste(images, partners, pairs, pasted)
    return images


def _blend(images: Tensor, partners: Tensor, pairs: Pairs, which: Tensor) -> Tensor:
    """Mixup of the pairs `which`, int64 [n]."""
    rows, weight = pairs.rows[which], moved(pairs.weight[which], images.device).float()[:, None, None, None]
    blended = rows_of(images, rows).float().mul_(weight)
    blended += rows_of(partners, which).float().mul_(SHARES - weight)
    return with_rows(images, rows, blended.mul_(1 / SHARES).round_().to(torch.uint8))


def _paste(images: Tensor, partners: Tensor, pairs: Pairs, which: Tensor) -> Tensor:
    """CutMix of the pairs `which`, int64 [n]."""
    rows = pairs.rows[which]
    inside = pairs.boxes[which].mask(images.shape[2], images.shape[3], images.device)
    return with_rows(images, rows, chosen(inside, rows_of(partners, which), rows_of(images, rows)))
