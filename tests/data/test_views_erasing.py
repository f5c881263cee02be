"""Random erasing: what is erased, what stays, and the noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.erasing import erase, erased_boxes
from distill.recipe.schema import ViewsRecipe
from distill.seeding import derive, draw_bytes
from tests.data.drawn import SHAPES, pictures

QUICK = settings(deadline=None, max_examples=20)


@QUICK
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**9), probability=st.sampled_from([0.1, 0.5, 1.0]))
def test_the_rectangle_is_noise_and_the_rest_stays(shape: tuple[int, int, int], seed: int, probability: float) -> None:
    images, indices, k = pictures(20, shape), torch.arange(20) * 7, torch.arange(20) % 3
    erased = erased_boxes(indices, k, ViewsRecipe(erasing=probability), seed, shape[1:])
    made = erase(images, erased, indices, k, seed)
    expected = images.clone()
    for row, top, left, height, width in zip(
        range(20), *(getattr(erased, n).tolist() for n in ("top", "left", "height", "width")), strict=True
    ):
        count = images[0].numel()
        noise = draw_bytes(derive(seed, "erasing-noise"), indices[row : row + 1], k[row : row + 1], count).view(shape)
        if not height:
            continue
        assert 0 < height < shape[1]
        assert 0 < width < shape[2]
        for channel in range(shape[0]):
            for y in range(top, top + height):
                for x in range(left, left + width):
                    expected[row, channel, y, x] = noise[channel, y, x]
    assert torch.equal(made, expected)


def test_probability_area_and_ratio() -> None:
    n = 20_000
    indices, k = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    erased = erased_boxes(indices, k, ViewsRecipe(erasing=0.25), 0, (224, 224))
    height, width = erased.height[erased.height > 0], erased.width[erased.height > 0]
    assert abs(len(height) / n - 0.25) < 0.01
    area = (height * width).double() / 224**2
    ratio = width.double() / height
    assert 0.019 < area.min() < 0.021
    assert 0.32 < area.max() < 0.335
    assert abs(area.mean() - 0.173) < 0.01
    assert 0.29 < ratio.min() < 0.31
    assert 3.2 < ratio.max() < 3.5
    assert abs(ratio.log().mean()) < 0.03


def test_where_no_rectangle_fits_nothing_is_erased() -> None:
    images, indices, k = pictures(30, (3, 1, 1)), torch.arange(30), torch.zeros(30, dtype=torch.int64)
    erased = erased_boxes(indices, k, ViewsRecipe(erasing=1.0), 0, (1, 1))
    assert not erased.height.any()
    assert torch.equal(erase(images, erased, indices, k, 0), images)


def test_noise_is_uniform_and_independent() -> None:
    noise = draw_bytes(3, torch.arange(64), torch.arange(64), 4096)
    counts = torch.bincount(noise.flatten().long(), minlength=256).double()
    expected = noise.numel() / 256
    assert ((counts - expected).square() / expected).sum() < 340  # 255 degrees of freedom: 331 at p = .001
    correlation = torch.corrcoef(noise.double())
    assert (correlation - torch.eye(64)).abs().max() < 0.08
    assert abs(torch.corrcoef(torch.stack([noise[:, :-1].flatten(), noise[:, 1:].flatten()]).double())[0, 1]) < 0.01


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64])
def test_fewer_bytes_are_the_first_of_more(count: int) -> None:
    i, k = torch.tensor([3, 10**12]), torch.tensor([0, 5])
    more = draw_bytes(1, i, k, 100)
    fewer = draw_bytes(1, i, k, count)
    assert fewer.shape == (2, count)
    assert torch.equal(fewer, more[:, :count])
    assert torch.equal(draw_bytes(1, i[1:], k[1:], count), fewer[1:])
