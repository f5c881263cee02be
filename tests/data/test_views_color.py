"""Colour jitter against torchvision, one image at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from distill.data import color
from distill.data.color import Jitter, jitter, jitter_parameters
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import SHAPES, off_by, pictures, varied

QUICK = settings(deadline=None, max_examples=20)
THEIRS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}


@pytest.mark.parametrize("name", THEIRS)
@QUICK
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**6))
def test_within_one_grey_level_of_torchvision(name: str, shape: tuple[int, int, int], seed: int) -> None:
    if shape[0] == 1 and name in ("saturation", "hue"):
        return
    images = varied(15, shape, seed)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(15, generator=generator)
    factors = factors - 0.5 if name == "hue" else factors * 3
    made = getattr(color, name)(images.float(), factors)
    assert torch.equal(made, made.round())
    for image, factor, view in zip(images, factors, made.to(torch.uint8), strict=True):
        assert off_by(view, THEIRS[name](image, float(factor))) <= 1


def test_brightness_is_torchvision_s_to_the_bit() -> None:
    images, factors = pictures(20, (3, 28, 28)), torch.linspace(0, 3, 20)
    made = color.brightness(images.float(), factors).to(torch.uint8)
    for image, factor, view in zip(images, factors, made, strict=True):
        assert torch.equal(view, tv.adjust_brightness(image, float(factor)))


@QUICK
@given(seed=st.integers(0, 10**6))
def test_hue_and_saturation_keep_what_they_promise(seed: int) -> None:
    images = varied(10, (3, 8, 8), seed)
    still, whole = torch.zeros(10), torch.ones(10)
    assert torch.equal(color.hue(images.float(), still), images.float())
    assert torch.equal(color.saturation(images.float(), whole), images.float())
    turned = color.hue(images.float(), torch.linspace(-0.5, 0.5, 10))
    assert torch.equal(turned.amax(1), images.amax(1).float())  # the value
    grey = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.equal(color.hue(grey.float(), torch.linspace(-0.5, 0.5, 10)), grey.float())


def test_the_order_is_fixed() -> None:
    images = varied(10, (3, 28, 28))
    factors = Jitter(*(torch.linspace(0.5, 1.5, 10) for _ in range(3)), torch.linspace(-0.2, 0.2, 10))
    made = jitter(images, factors)
    for number, image in enumerate(images):
        pixels = image[None].float()
        for name in ("brightness", "contrast", "saturation", "hue"):
            pixels = getattr(color, name)(pixels, getattr(factors, name)[number : number + 1])
        assert torch.equal(made[number], pixels[0].to(torch.uint8))


@pytest.mark.parametrize("channels", [1, 2])
def test_without_colour_there_is_nothing_to_saturate(channels: int) -> None:
    images = pictures(6, (channels, 8, 8))
    recipe = ViewsRecipe(saturation=0.9, hue=0.4)
    factors = jitter_parameters(torch.arange(6), torch.arange(6), recipe, 0)
    assert torch.equal(jitter(images, factors), images)


def test_factors_are_uniform_in_their_range() -> None:
    recipe = ViewsRecipe(brightness=0.4, contrast=2.0, hue=0.1)
    drawn = jitter_parameters(torch.arange(20_000), torch.zeros(20_000, dtype=torch.int64), recipe, 0)
    assert drawn.saturation is None
    for values, low, high in ((drawn.brightness, 0.6, 1.4), (drawn.contrast, 0.0, 3.0), (drawn.hue, -0.1, 0.1)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.01 * (high - low)
    correlation = torch.corrcoef(torch.stack([drawn.brightness, drawn.contrast, drawn.hue]))
    assert (correlation - torch.eye(3)).abs().max() < 0.03


def test_sums_do_not_round() -> None:
    """A mean over so many pixels is beyond what float32 adds up exactly."""
    images = pictures(1, (3, 600, 600))
    grey = color.grey_of(images.float())
    assert color.mean_grey(images.float())[0] == torch.tensor(float(grey.long().sum()) / 360_000, dtype=torch.float32)
