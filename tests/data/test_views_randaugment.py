"""RandAugment against torchvision, operation by operation, one image at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from distill.data.randaugment import MOVES, OPERATIONS, draw_steps, randaugment, step_code
from tests.data.drawn import SHAPES, off_by, pictures, varied

QUICK = settings(deadline=None, max_examples=12)
MAGNITUDES = st.sampled_from([0, 1, 9, 15, 30])
SIGNED = (*MOVES, "brightness", "contrast", "color", "sharpness")
THEIR_NAMES = {
    "identity": "Identity",
    "shear-x": "ShearX",
    "shear-y": "ShearY",
    "translate-x": "TranslateX",
    "translate-y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "color": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
}


def theirs(image: Tensor, operation: str, magnitude: int, negative: bool) -> Tensor:
    """torchvision's own table of magnitudes, and its own way to apply them."""
    transform = v2.RandAugment()
    name = THEIR_NAMES[operation]
    magnitudes, signed = transform._AUGMENTATION_SPACE[name]
    assert signed == (operation in SIGNED)
    values = magnitudes(31, *image.shape[1:])
    size = 0.0 if values is None else float(values[magnitude])
    size = -size if signed and negative else size
    fill = {type(image): None}
    return transform._apply_image_or_video_transform(
        image, name, size, interpolation=v2.InterpolationMode.NEAREST, fill=fill
    )


def test_the_set_is_torchvision_s() -> None:
    assert set(THEIR_NAMES.values()) == set(v2.RandAugment._AUGMENTATION_SPACE)
    assert set(THEIR_NAMES) == set(OPERATIONS)


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name not in MOVES])
@QUICK
@given(shape=st.sampled_from(SHAPES), magnitude=MAGNITUDES, negative=st.booleans(), seed=st.integers(0, 10**6))
def test_recolours_like_torchvision(operation, shape, magnitude, negative, seed) -> None:
    images = varied(10, shape, seed)
    steps = torch.full((10, 1), step_code(operation, negative))
    made = randaugment(images, steps, magnitude)
    exact = operation in ("identity", "posterize", "solarize", "autocontrast", "equalize")
    for image, view in zip(images, made, strict=True):
        assert off_by(view, theirs(image, operation, magnitude, negative)) <= (0 if exact else 1)


def source(operation: str, magnitude: int, side: int, y: float, x: float) -> tuple[float, float]:
    """Where a point of the result comes from; the centre of pixel (0, 0) is (.5, .5)."""
    share = magnitude / 30
    if operation == "shear-x":
        return y, x + 0.3 * share * y
    if operation == "shear-y":
        return y + 0.3 * share * x, x
    if operation in ("translate-x", "translate-y"):
        pixels = math.trunc(150 / 331 * side * share)
        return (y, x - pixels) if operation == "translate-x" else (y - pixels, x)
    angle, c = math.radians(30 * share), side / 2
    across, down = x - c, y - c
    return c + math.sin(angle) * across + math.cos(angle) * down, c + math.cos(angle) * across - math.sin(angle) * down


@pytest.mark.parametrize("operation", MOVES)
@pytest.mark.parametrize("side", [8, 28, 33])
@pytest.mark.parametrize("magnitude", [0, 9, -9, 20, 30, -30])
def test_moves_like_torchvision(operation: str, side: int, magnitude: int) -> None:
    """To the bit, but where a point comes from the very edge between two pixels: there float32 decides."""
    images = pictures(3, (3, side, side))
    negative = magnitude < 0
    made = randaugment(images, torch.full((3, 1), step_code(operation, negative)), abs(magnitude))
    edges = 0
    for y in range(side):
        for x in range(side):
            point = source(operation, magnitude, side, y + 0.5, x + 0.5)
            on_edge = any(abs(c - round(c)) < 1e-4 for c in point)
            edges += on_edge
            row, column = (math.floor(c) for c in point)
            for image, view in zip(images, made, strict=True):
                expected = image[:, row, column] if 0 <= row < side and 0 <= column < side else torch.zeros(3)
                assert on_edge or torch.equal(view[:, y, x], expected.to(torch.uint8))
    assert edges <= side * side // 4
    for image, view in zip(images, made, strict=True):
        differs = (view != theirs(image, operation, abs(magnitude), negative)).any(0)
        assert differs.sum() <= edges


@QUICK
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**6), magnitude=MAGNITUDES)
def test_layers_follow_each_other(shape: tuple[int, int, int], seed: int, magnitude: int) -> None:
    """A batch of all operations at once is each image's operations one after the other."""
    images = varied(12, shape, seed)
    steps = draw_steps(torch.arange(12) + seed, torch.arange(12), 3, seed)
    made = randaugment(images, steps, magnitude)
    for number in range(12):
        image = images[number : number + 1]
        for layer in range(3):
            image = randaugment(image, steps[number : number + 1, layer : layer + 1], magnitude)
        assert torch.equal(made[number : number + 1], image)


def test_every_operation_is_drawn_alike() -> None:
    indices = torch.arange(28_000)
    steps = draw_steps(indices, indices % 7, 2, 0)
    for layer in steps.unbind(1):
        counts = torch.bincount(layer, minlength=28).double()
        assert ((counts - 1000).square() / 1000).sum() < 65  # 27 degrees of freedom: 55.5 at p = .001
    together = torch.bincount(steps[:, 0] * 28 + steps[:, 1], minlength=784).double()
    expected = 28_000 / 784
    assert ((together - expected).square() / expected).sum() < 950  # 783 degrees of freedom: 910 at p = .001


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (3, 1, 1)])
def test_tiny_images(shape: tuple[int, int, int]) -> None:
    images = pictures(28, shape)
    steps = torch.arange(28)[:, None]
    made = randaugment(images, steps, 9)
    assert made.shape == images.shape
    still = step_code("sharpness")
    assert torch.equal(made[still], images[still])
