import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from distill.data.geometry import ViewParameters, crop_and_flip, gather_views
from distill.data.views import (
    make_views,
    orbit_size,
    view_count,
    view_of_epoch,
    view_parameters,
)
from distill.recipe.schema import ViewsRecipe
from tests.data.drawn import pictures

QUICK = settings(deadline=None, max_examples=30)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def recipe(padding: int = 0, flip: bool = False, count: int | str = 1) -> ViewsRecipe:
    return ViewsRecipe.model_validate({"crop_padding": padding, "flip": flip, "count": count})


@QUICK
@given(shape=shapes, padding=st.integers(0, 5), seed=st.integers(0, 1000))
def test_equals_torchvision(shape: tuple[int, int, int], padding: int, seed: int) -> None:
    _, height, width = shape
    images = pictures(7, shape, seed)
    drawn = view_parameters(torch.arange(7), torch.full((7,), seed), recipe(padding, True), 3, numbered=False)
    made = crop_and_flip(images, drawn, padding)
    assert torch.equal(gather_views(images, drawn, padding), made)
    for image, top, left, flip, view in zip(images, drawn.top, drawn.left, drawn.flip, made, strict=True):
        expected = tv.crop(tv.pad(image, [padding] * 4, fill=0), int(top), int(left), height, width)
        assert torch.equal(view, tv.horizontal_flip(expected) if flip else expected)


@QUICK
@given(
    seed=st.integers(0, 2**40),
    padding=st.integers(0, 4),
    flip=st.booleans(),
    numbered=st.booleans(),
    count=st.sampled_from([1, 50, "orbit"]),
    cut=st.integers(1, 11),
)
def test_a_view_depends_on_nothing_but_image_index_number_and_seed(
    seed: int, padding: int, flip: bool, numbered: bool, count: int | str, cut: int
) -> None:
    plan = recipe(padding, flip, count)
    images, indices = pictures(12, (3, 6, 5)), torch.arange(12) * 1_000_003
    k = (torch.arange(12) * 7) % view_count(plan)
    made = make_views(images, indices, k, plan, seed, numbered=numbered)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    moved = make_views(images[order], indices[order], k[order], plan, seed, numbered=numbered)
    assert torch.equal(moved, made[order])
    parts = [
        make_views(images[part], indices[part], k[part], plan, seed, numbered=numbered)
        for part in (slice(0, cut), slice(cut, None))
    ]
    assert torch.equal(torch.cat(parts), made)
    assert made.dtype == torch.uint8


@pytest.mark.parametrize(("padding", "flip"), [(0, False), (0, True), (1, False), (1, True), (2, True), (4, True)])
def test_orbit_is_complete_and_without_repeats(padding: int, flip: bool) -> None:
    plan = recipe(padding, flip, "orbit")
    size = view_count(plan)
    assert size == orbit_size(plan) == (2 * padding + 1) ** 2 * (1 + flip)
    image = pictures(1, (1, 9, 9))
    made = make_views(
        image.expand(size, -1, -1, -1),
        torch.full((size,), 5),
        torch.arange(size),
        plan,
        0,
        numbered=True,
    )
    assert len({bytes(view.flatten().tolist()) for view in made}) == size


def test_orbit_does_not_depend_on_image_or_seed() -> None:
    plan = recipe(2, True, "orbit")
    k = torch.arange(50)
    first = view_parameters(torch.arange(50), k, plan, 0, numbered=True)
    second = view_parameters(torch.arange(50) + 9, k, plan, 1, numbered=True)
    assert torch.equal(first.top, second.top)
    assert torch.equal(first.flip, second.flip)


@pytest.mark.parametrize("count", [3, "orbit"])
@pytest.mark.parametrize("k", [-1, 10_000])
def test_a_numbered_view_out_of_range_is_an_error(count: int | str, k: int) -> None:
    with pytest.raises(ValueError, match="expected 0 to"):
        view_parameters(torch.arange(2), torch.tensor([0, k]), recipe(1, True, count), 0, numbered=True)


def test_without_padding_and_flip_the_pixels_stay() -> None:
    images = pictures(4, (3, 5, 5))
    made = make_views(images, torch.arange(4), torch.arange(4), recipe(count=4), 0, numbered=True)
    assert torch.equal(made, images)
    still = ViewParameters(torch.full((4,), 2), torch.full((4,), 2), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(crop_and_flip(images, still, 2), images)


@pytest.mark.parametrize("count", [1, "orbit"])
def test_drawn_views_are_uniform_over_the_orbit(count: int | str) -> None:
    plan = recipe(1, True, count)
    n = 36_000
    drawn = view_parameters(torch.arange(n) % 600, torch.arange(n) // 600, plan, 0, numbered=False)
    cells = torch.bincount((drawn.top * 3 + drawn.left) * 2 + drawn.flip.long(), minlength=18)
    chi_square = ((cells - n / 18).square() / (n / 18)).sum()
    assert chi_square < 50  # 17 degrees of freedom: 40.8 at p = .001


def test_seeds_and_numbers_give_different_views() -> None:
    plan = recipe(4, True)
    images, indices = pictures(50, (1, 16, 16)), torch.arange(50)
    zero = torch.zeros_like(indices)
    base = make_views(images, indices, zero, plan, 0, numbered=False)
    assert not torch.equal(base, make_views(images, indices, zero, plan, 1, numbered=False))
    assert not torch.equal(base, make_views(images, indices, zero + 1, plan, 0, numbered=False))


@QUICK
@given(
    seed=st.integers(0, 2**40), padding=st.integers(0, 2), flip=st.booleans(), count=st.sampled_from([1, 5, "orbit"])
)
def test_numbered_epochs_show_every_view_once(seed: int, padding: int, flip: bool, count: int | str) -> None:
    plan = recipe(padding, flip, count)
    views = view_count(plan)
    indices = torch.arange(20)
    for first in (0, 1000):
        shown = torch.stack([view_of_epoch(indices, first + e, plan, seed, numbered=True) for e in range(views)])
        assert torch.equal(shown.sort(0).values, torch.arange(views)[:, None].expand(-1, 20))


def test_epochs_without_a_store_have_no_end() -> None:
    assert view_of_epoch(torch.arange(3), 12_345, recipe(1, True, "orbit"), 0, numbered=False).tolist() == [12_345] * 3
