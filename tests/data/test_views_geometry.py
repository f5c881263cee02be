"""Resized crops: torchvision's within one grey level, boxes in the image. Their two forms: test_views_compiled.py."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from distill.data.draws import Boxes
from distill.data.geometry import resized_crop
from distill.data.views import crop_boxes, make_views
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import SHAPES, off_by, pictures, varied

QUICK = settings(deadline=None, max_examples=20)


def drawn(count: int, side: int, seed: int, **fields: object) -> Boxes:
    recipe = ViewsRecipe.model_validate({"resized_crop": [0.08, 1.0], **fields})
    return crop_boxes(torch.arange(count), torch.arange(count) % 3, recipe, seed, (side, side))


@QUICK
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 10**9))
def test_within_one_grey_level_of_torchvision(shape: tuple[int, int, int], seed: int) -> None:
    images, boxes = varied(10, shape, seed), drawn(10, shape[1], seed)
    flip = torch.arange(10) % 2 == 1
    made = resized_crop(images, boxes, flip)
    for number, image in enumerate(images):
        place = (int(side[number]) for side in (boxes.top, boxes.left, boxes.height, boxes.width))
        expected = tv.resized_crop(image, *place, list(shape[1:]))
        expected = tv.horizontal_flip(expected) if flip[number] else expected
        assert off_by(made[number], expected) <= 1


def one_pixel(image: Tensor, box: tuple[int, int, int, int], y: int, x: int) -> float:
    """Bilinear interpolation as one writes it down, in float64."""
    top, left, height, width = box
    side = image.shape[-1]
    at_y = min(max((y + 0.5) * height / side - 0.5, 0), height - 1)
    at_x = min(max((x + 0.5) * width / side - 0.5, 0), width - 1)
    y0, x0 = math.floor(at_y), math.floor(at_x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = at_y - y0, at_x - x0
    values = {(a, b): float(image[0, top + a, left + b]) for a in (y0, y1) for b in (x0, x1)}
    upper = values[y0, x0] * (1 - fx) + values[y0, x1] * fx
    lower = values[y1, x0] * (1 - fx) + values[y1, x1] * fx
    return upper * (1 - fy) + lower * fy


@QUICK
@given(side=st.integers(1, 12), seed=st.integers(0, 10**9))
def test_is_bilinear_interpolation_rounded(side: int, seed: int) -> None:
    images, boxes = pictures(3, (1, side, side), seed), drawn(3, side, seed)
    made = resized_crop(images, boxes, torch.zeros(3, dtype=torch.bool))
    for number, image in enumerate(images):
        box = tuple(int(part[number]) for part in (boxes.top, boxes.left, boxes.height, boxes.width))
        for y in range(side):
            for x in range(side):
                exact = one_pixel(image, box, y, x)
                # half a level by rounding, a quarter by the weights' 11 bits and by what is kept in between
                assert abs(float(made[number, 0, y, x]) - exact) < 0.5 + 2 * 255 / 4096 + 1 / 16 + 1e-9


@QUICK
@given(
    side=st.sampled_from([1, 2, 8, 28, 33]),
    area=st.sampled_from([(0.0001, 0.001), (0.08, 1.0), (0.25, 0.25), (1.0, 1.0)]),
    ratio=st.sampled_from([(0.75, 4 / 3), (1.0, 1.0), (0.01, 0.02), (50.0, 100.0)]),
    seed=st.integers(0, 10**9),
)
def test_boxes_lie_in_the_image(side: int, area: tuple, ratio: tuple, seed: int) -> None:
    boxes = drawn(200, side, seed, resized_crop=area, resized_crop_ratio=ratio)
    for start, size in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
        assert (start >= 0).all()
        assert (size >= 1).all()
        assert (start + size <= side).all()


def test_boxes_have_the_areas_and_ratios_that_were_asked_for() -> None:
    boxes = drawn(4000, 224, 0, resized_crop=(0.2, 0.5), resized_crop_ratio=(0.5, 1.5))
    area = (boxes.height * boxes.width).double() / 224**2
    ratio = boxes.width.double() / boxes.height
    assert 0.19 < area.min() < 0.21
    assert 0.49 < area.max() < 0.51
    assert abs(area.mean() - 0.35) < 0.005  # uniform
    assert 0.49 < ratio.min() < 0.52
    assert 1.47 < ratio.max() < 1.52
    assert abs(ratio.log().mean() - (math.log(0.5) + math.log(1.5)) / 2) < 0.02  # log-uniform


def test_where_nothing_fits_the_largest_centred_box_is_taken() -> None:
    boxes = drawn(50, 33, 0, resized_crop=(1.0, 1.0), resized_crop_ratio=(0.25, 0.5))
    assert set(boxes.height.tolist()) == {33}
    assert set(boxes.width.tolist()) == {16}
    assert set(boxes.left.tolist()) == {8}


def test_the_whole_image_stays() -> None:
    images = pictures(4, (3, 9, 9))
    recipe = ViewsRecipe(resized_crop=(1.0, 1.0), resized_crop_ratio=(1.0, 1.0), count=9)
    assert torch.equal(make_views(images, torch.arange(4), torch.arange(4), recipe, 0, numbered=True), images)


@pytest.mark.parametrize("side", [65, 224])
def test_large_images(side: int) -> None:
    images, boxes = varied(3, (3, side, side)), drawn(3, side, 1)
    made = resized_crop(images, boxes, torch.zeros(3, dtype=torch.bool))
    for number, image in enumerate(images):
        place = (int(part[number]) for part in (boxes.top, boxes.left, boxes.height, boxes.width))
        assert off_by(made[number], tv.resized_crop(image, *place, [side, side])) <= 1
