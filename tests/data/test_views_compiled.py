"""The compiled loops against what defines them: the torch form of each operation, and the hash. To the bit."""

from __future__ import annotations

import math
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill import seeding
from distill.data import color, draws, erasing, geometry, mixing, randaugment
from distill.data.compiled import color as loops
from distill.data.draws import Boxes
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import varied

QUICK = settings(deadline=None, max_examples=25)
shapes = st.tuples(st.sampled_from([1, 2, 3, 4]), st.integers(1, 40), st.integers(1, 40))
seeds = st.integers(0, 10**9)
COUNT = 10  # each kind of picture twice


def numbers(limit: Tensor | int, seed: int) -> Tensor:
    """int64 [COUNT], below the limit."""
    return draws.below(seed, "test", torch.arange(COUNT), torch.zeros(COUNT, dtype=torch.int64), limit)


def some_boxes(height: int, width: int, seed: int) -> Boxes:
    """Of any size from one pixel on, anywhere inside: [COUNT]."""
    tall, wide = numbers(height, seed) + 1, numbers(width, seed + 1) + 1
    return Boxes(numbers(height - tall + 1, seed + 2), numbers(width - wide + 1, seed + 3), tall, wide)


@QUICK
@given(shape=shapes, padding=st.integers(0, 50), seed=seeds)
def test_crop_and_flip(shape: tuple[int, int, int], padding: int, seed: int) -> None:
    images = varied(COUNT, shape, seed)
    corner = [numbers(2 * padding + 1, seed + place) for place in (0, 1)]
    drawn = geometry.ViewParameters(*corner, flip=numbers(2, seed + 2) == 1)
    expected = geometry.gather_views(images, drawn, padding)
    assert torch.equal(geometry.crop_and_flip(images, drawn, padding), expected)


@QUICK
@given(shape=shapes, seed=seeds)
def test_resized_crop(shape: tuple[int, int, int], seed: int) -> None:
    images, boxes = varied(COUNT, shape, seed), some_boxes(*shape[1:], seed)
    flip = numbers(2, seed) == 1
    assert torch.equal(geometry.resized_crop(images, boxes, flip), geometry.gather_taps(images, boxes, flip))


@pytest.mark.parametrize("shape", [(3, 224, 224), (1, 300, 65)])
def test_resized_crop_of_large_images(shape: tuple[int, int, int]) -> None:
    images, boxes = varied(COUNT, shape), some_boxes(*shape[1:], 1)
    flip = numbers(2, 1) == 1
    assert torch.equal(geometry.resized_crop(images, boxes, flip), geometry.gather_taps(images, boxes, flip))


@QUICK
@given(shape=shapes, seed=seeds, strength=st.sampled_from([0.1, 0.4, 1.0, 3.0]), only=st.integers(1, 15))
def test_jitter(shape: tuple[int, int, int], seed: int, strength: float, only: int) -> None:
    names = ("brightness", "contrast", "saturation", "hue")
    fields = {name: strength for bit, name in enumerate(names) if only >> bit & 1}
    recipe = ViewsRecipe(**fields | ({"hue": min(0.5, strength)} if "hue" in fields else {}))
    factors = color.jitter_parameters(torch.arange(COUNT), torch.arange(COUNT), recipe, seed)
    images = varied(COUNT, shape, seed)
    assert torch.equal(color.jitter(images, factors), color.jitter_together(images, factors))


def test_every_hue_of_every_colour() -> None:
    """All triples of some levels, on a fine circle: where a channel is the largest, two are, or all three."""
    levels = torch.tensor([0, 1, 2, 3, 60, 127, 128, 200, 254, 255], dtype=torch.uint8)
    colours = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, -1, 1)
    shifts = torch.cat([torch.linspace(-0.5, 0.5, 49), torch.tensor([1 / 6, -1 / 6, 1 / 3, 5e-8])])
    images, factors = colours.expand(len(shifts), -1, -1, -1), color.Jitter(None, None, None, shifts)
    assert torch.equal(color.jitter(images, factors), color.jitter_together(images, factors))


@pytest.mark.parametrize("operation", randaugment.OPERATIONS)
@settings(deadline=None, max_examples=8)
@given(shape=shapes, magnitude=st.integers(0, 30), negative=st.booleans(), seed=seeds)
def test_randaugment(operation: str, shape: Any, magnitude: int, negative: bool, seed: int) -> None:
    images = varied(COUNT, shape, seed)
    steps = torch.full((COUNT, 1), randaugment.step_code(operation, negative))
    expected = randaugment.randaugment_together(images, steps, magnitude)
    assert torch.equal(randaugment.randaugment(images, steps, magnitude), expected)


@QUICK
@given(shape=shapes, magnitude=st.integers(0, 30), layers=st.integers(1, 5), seed=seeds)
def test_randaugment_in_layers(shape: tuple[int, int, int], magnitude: int, layers: int, seed: int) -> None:
    images = varied(COUNT, shape, seed)
    steps = randaugment.draw_steps(torch.arange(COUNT), torch.arange(COUNT), layers, seed)
    expected = randaugment.randaugment_together(images, steps, magnitude)
    assert torch.equal(randaugment.randaugment(images, steps, magnitude), expected)


def test_the_loops_know_the_numbers_of_the_operations() -> None:
    names = randaugment.OPERATIONS
    assert names.index(randaugment.MOVES[0]) == loops._FIRST_MOVE
    assert names.index(randaugment.TABLES[0]) == loops._FIRST_TABLE == loops._FIRST_MOVE + len(randaugment.MOVES)
    assert names.index("contrast") == loops._CONTRAST == loops._FIRST_TABLE + len(randaugment.TABLES)
    for name in ("autocontrast", "equalize", "color", "sharpness"):
        assert names.index(name) == getattr(loops, f"_{name.upper()}")


@QUICK
@given(shape=shapes, seed=seeds, chance=st.sampled_from([0.0, 0.5, 1.0]))
def test_erase(shape: tuple[int, int, int], seed: int, chance: float) -> None:
    images, boxes = varied(COUNT, shape, seed), some_boxes(*shape[1:], seed)
    boxes = Boxes(boxes.top, boxes.left, boxes.height * (numbers(100, seed) < chance * 100), boxes.width)
    indices, k = numbers(2**40, seed), numbers(50, seed)
    before = images.clone()
    expected = erasing.erase_together(images, boxes, indices, k, seed)
    assert torch.equal(erasing.erase(images, boxes, indices, k, seed), expected)
    assert torch.equal(images, before)


@QUICK
@given(
    shape=shapes,
    seed=seeds,
    fields=st.sampled_from([{"mixup": 0.3}, {"cutmix": 1.0}, {"mixup": 1.0, "cutmix": 1.0, "mix_probability": 0.7}]),
)
def test_mix(shape: tuple[int, int, int], seed: int, fields: dict[str, float]) -> None:
    indices, recipe = torch.arange(COUNT), ViewsRecipe(**fields)
    pairs = mixing.draw_pairs(indices, indices, recipe, seed, indices + 5, shape[1:])
    images, partners = varied(COUNT, shape, seed), varied(COUNT, shape, seed + 1)[pairs.rows]
    before = images.clone()
    assert torch.equal(mixing.mix(images, partners, pairs), mixing.mix_together(images, partners, pairs))
    assert torch.equal(images, before)


def test_images_that_are_not_contiguous() -> None:
    images = varied(COUNT, (3, 9, 7)).transpose(2, 3)
    whole, flip = some_boxes(7, 9, 0), numbers(2, 0) == 1
    assert torch.equal(geometry.resized_crop(images, whole, flip), geometry.gather_taps(images, whole, flip))
    steps = torch.arange(2 * COUNT).view(COUNT, 2).flip(1)
    expected = randaugment.randaugment_together(images, steps, 9)
    assert torch.equal(randaugment.randaugment(images, steps, 9), expected)
    factors = color.Jitter(torch.linspace(0, 2, COUNT), None, None, None)
    assert torch.equal(color.jitter(images, factors), color.jitter_together(images, factors))
    indices, half = torch.arange(COUNT), images[:, :, ::2]
    boxes = some_boxes(4, 9, 0)
    expected = erasing.erase_together(half, boxes, indices, indices, 0)
    assert torch.equal(erasing.erase(half, boxes, indices, indices, 0), expected)
    crops = geometry.ViewParameters(numbers(5, 0), numbers(5, 1), flip)
    assert torch.equal(geometry.crop_and_flip(images, crops, 2), geometry.gather_views(images, crops, 2))


def test_what_does_not_belong_to_the_images_is_an_error() -> None:
    images, boxes, flip = varied(COUNT, (3, 9, 7)), some_boxes(9, 7, 0), numbers(2, 0) == 1
    with pytest.raises(ValueError, match="9 rows, expected 10"):
        geometry.resized_crop(images, boxes[1:], flip)
    wide = Boxes(boxes.top, boxes.left, boxes.height, boxes.width + 7)
    with pytest.raises(AssertionError):
        geometry.resized_crop(images, wide, flip)
    with pytest.raises(AssertionError):
        erasing.erase(images, wide, boxes.top, boxes.top, 0)
    with pytest.raises(AssertionError):
        randaugment.randaugment(images, torch.full((COUNT, 1), 28), 9)


@QUICK
@given(seed=st.integers(0, 2**62), i=st.lists(st.integers(0, 2**62), max_size=9), k=st.integers(-1, 2**40))
def test_the_hash(seed: int, i: list[int], k: int) -> None:
    indices = torch.tensor(i, dtype=torch.int64)
    views = torch.full_like(indices, k)
    expected = seeding.draw(seeding.derive(seed, "purpose"), indices, views)
    assert torch.equal(draws.draw(seed, "purpose", indices, views), expected)


def written_down(seed: int, i: int, k: int, shape: tuple[int, int], smaller: bool) -> tuple[int, int]:
    """Height and width of a box, number by number, as `boxes` promises."""
    for attempt in range(draws.ATTEMPTS):
        one, number = torch.tensor([i]), torch.tensor([k * draws.ATTEMPTS + attempt])
        area = draws.uniform(seed, "a-area", one, number, (0.2, 1.0)).item() * (shape[0] * shape[1])
        ratio = draws.log_uniform(seed, "a-ratio", one, number, (0.5, 3.0)).item()
        tall, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < tall <= shape[0] - smaller and 0 < wide <= shape[1] - smaller:
            return tall, wide
    return 0, 0


@QUICK
@given(seed=seeds, height=st.integers(1, 50), width=st.integers(1, 50), smaller=st.booleans())
def test_boxes(seed: int, height: int, width: int, smaller: bool) -> None:
    i, k = numbers(2**40, seed), numbers(7, seed)
    shape = (height, width)
    made, found = draws.boxes(seed, "a", i, k, shape, (0.2, 1.0), (0.5, 3.0), smaller=smaller)
    expected = [written_down(seed, int(a), int(b), shape, smaller) for a, b in zip(i, k, strict=True)]
    assert list(zip(made.height.tolist(), made.width.tolist(), strict=True)) == expected
    assert found.tolist() == [tall > 0 for tall, _ in expected]


def test_several_threads_at_once() -> None:
    """Four callers of the same loops, each with its own images."""
    batches = [varied(40, (3, 28, 28), seed) for seed in range(4)]
    steps = torch.arange(80).view(40, 2) % 28
    expected = [randaugment.randaugment_together(images, steps, 9) for images in batches]
    made: dict[int, list[Tensor]] = {}

    def work(number: int) -> None:
        made[number] = [randaugment.randaugment(batches[number], steps, 9) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(images, expected[number]) for number in range(4) for images in made[number])
