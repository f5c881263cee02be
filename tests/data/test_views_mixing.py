"""Mixup and CutMix: drawn again the same, mixed as written down, and their losses exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest

from distill.data.draws import beta_shares
from distill.data.mixing import draw_pairs, mix
from distill.losses.soft import cross_entropy, mixed, soft_cross_entropy
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import SHAPES, pictures

QUICK = settings(deadline=None, max_examples=20)
POPULATION = torch.tensor([5, 17, 2, 40, 99, 100, 31])
RECIPES = {
    "mixup": ViewsRecipe(mixup=0.8),
    "cutmix": ViewsRecipe(cutmix=1.0),
    "both": ViewsRecipe(mixup=0.2, cutmix=1.0, mix_probability=0.7),
}


@pytest.mark.parametrize("name", RECIPES)
@QUICK
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**9), cut=st.integers(1, 15))
def test_mixes_as_written_down(name: str, shape: tuple[int, int, int], seed: int, cut: int) -> None:
    indices, k = torch.arange(16) * 3, torch.arange(16) % 4
    pairs = draw_pairs(indices, k, RECIPES[name], seed, POPULATION, shape[1:])
    images, partners = pictures(16, shape, seed), pictures(16, shape, seed + 1)
    made = mix(images, partners[pairs.rows], pairs)
    rest = sorted(set(range(16)) - set(pairs.rows.tolist()))
    assert torch.equal(made[rest], images[rest])
    assert torch.equal(pairs.partner[rest], indices[rest])
    assert (pairs.share[rest] == 1).all()
    for place, row in enumerate(pairs.rows.tolist()):
        assert int(pairs.partner[row]) in POPULATION.tolist()
        weight = int(pairs.weight[place])
        top, left, height, width = (int(getattr(pairs.boxes, n)[place]) for n in ("top", "left", "height", "width"))
        expected = images[row].clone()
        if height:  # CutMix
            assert weight == 4096
            expected[:, top : top + height, left : left + width] = partners[
                row, :, top : top + height, left : left + width
            ]
            share = 1 - height * width / (shape[1] * shape[2])
        else:
            exact = (images[row].double() * weight + partners[row].double() * (4096 - weight)) / 4096
            expected = exact.round().to(torch.uint8)
            share = weight / 4096
        assert torch.equal(made[row], expected)
        assert float(pairs.share[row]) == pytest.approx(share, abs=1e-7)
    # The same whatever the batch.
    for part in (slice(0, cut), slice(cut, None)):
        again = draw_pairs(indices[part], k[part], RECIPES[name], seed, POPULATION, shape[1:])
        assert torch.equal(again.partner, pairs.partner[part])
        assert torch.equal(again.share, pairs.share[part])


def test_the_pair_depends_on_the_population_and_its_order() -> None:
    indices, k = torch.arange(100), torch.zeros(100, dtype=torch.int64)
    first, second = (draw_pairs(indices, k, RECIPES["mixup"], 0, p, (8, 8)) for p in (POPULATION, POPULATION.flip(0)))
    assert torch.equal(first.share, second.share)
    assert not torch.equal(first.partner, second.partner)


def test_a_population_of_one_and_a_batch_of_none() -> None:
    indices, k = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    pairs = draw_pairs(indices, k, RECIPES["both"], 0, torch.tensor([3]), (8, 8))
    assert set(pairs.partner[pairs.rows].tolist()) <= {3}
    none = draw_pairs(indices[:0], k[:0], RECIPES["both"], 0, POPULATION, (8, 8))
    images = pictures(1, (3, 8, 8))[:0]
    assert mix(images, images, none).shape == (0, 3, 8, 8)


def test_both_are_chosen_half_and_half_with_the_probability() -> None:
    n = 40_000
    indices, k = torch.arange(n), torch.arange(n) % 11
    pairs = draw_pairs(indices, k, RECIPES["both"], 3, POPULATION, (224, 224))
    cut = (pairs.boxes.height > 0).double().sum() / n
    blended = (pairs.weight < 4096).double().sum() / n
    assert abs(cut - 0.35) < 0.01
    # Beta(.2, .2) is within 1/8192 of 1 for some 9 % of the draws: those are not mixed at all
    assert abs(blended - 0.35 * (1 - beta.sf(1 - 1 / 8192, 0.2, 0.2))) < 0.01
    counts = torch.bincount(pairs.partner[pairs.rows], minlength=101)[POPULATION].double()
    expected = len(pairs.rows) / len(POPULATION)
    # images 0 to 100 are in the batch themselves, but none of the counts is more than chance
    assert ((counts - expected).square() / expected).sum() < 25  # 6 degrees of freedom: 22.5 at p = .001


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_coefficients_are_from_the_beta_distribution(alpha: float) -> None:
    n = 20_000
    shares = beta_shares(0, "mixup-share", torch.arange(n), torch.zeros(n, dtype=torch.int64), alpha)
    assert 0 <= int(shares.min()) <= int(shares.max()) <= 4096
    # Smeared over the rounding's width, or a Kolmogorov-Smirnov test sees the steps near 0 and 1.
    u = torch.rand(n, generator=torch.Generator().manual_seed(0)).double() - 0.5
    smeared = ((shares.double() + u) / 4096).clamp(0, 1)
    inner = smeared[(smeared > 0.01) & (smeared < 0.99)]
    low, high = beta.cdf([0.01, 0.99], alpha, alpha)
    assert kstest(inner.numpy(), lambda x: (beta.cdf(x, alpha, alpha) - low) / (high - low)).pvalue > 1e-3


@QUICK
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12))
def test_mixing_losses_is_mixing_targets(seed: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(9, classes, generator=generator, dtype=torch.float64, requires_grad=True)
    own, partner = (torch.randn(9, classes, generator=generator, dtype=torch.float64).softmax(-1) for _ in range(2))
    share = torch.rand(9, generator=generator, dtype=torch.float64)
    loss = mixed(soft_cross_entropy(logits, own), soft_cross_entropy(logits, partner), share)
    expected = soft_cross_entropy(logits, share[:, None] * own + (1 - share[:, None]) * partner)
    torch.testing.assert_close(loss, expected)
    # KL against the mixture differs by what does not depend on the student: its gradient is the same.
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    mixture = share[:, None] * own + (1 - share[:, None]) * partner
    kl = (mixture * (mixture.log() - logits.log_softmax(-1))).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(kl, logits)[0])
    hard = torch.arange(9) % classes
    onehot = torch.nn.functional.one_hot(hard, classes).double()
    torch.testing.assert_close(cross_entropy(logits, hard), soft_cross_entropy(logits, onehot))
