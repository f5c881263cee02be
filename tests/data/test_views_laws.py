"""What holds for every view, whatever it is made of."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.data.batches import Augmentation, Maker
from distill.data.memory import MemorySource
from distill.data.mixing import draw_pairs
from distill.data.views import in_words, make_views, view_count
from distill.recipe.schema import ViewsRecipe
from distill.seeding import draw
from tests.data.drawn import pictures

QUICK = settings(deadline=None, max_examples=8)
SHAPES = st.sampled_from([(1, 8, 8), (3, 28, 28), (1, 33, 33), (3, 33, 33), (3, 65, 65)])
PLANS: dict[str, dict[str, Any]] = {
    "crop": {"crop_padding": 3, "flip": True, "count": 9},
    "orbit": {"crop_padding": 1, "flip": True, "count": "orbit"},
    "resized crop": {"resized_crop": [0.1, 1.0], "flip": True, "count": 9},
    "jitter": {"brightness": 0.4, "contrast": 0.5, "saturation": 0.6, "hue": 0.2, "count": 9},
    "randaugment": {"randaugment": 3, "randaugment_magnitude": 20, "count": 9},
    "erasing": {"erasing": 0.6, "count": 9},
}
PLANS["all"] = {name: value for plan in PLANS.values() for name, value in plan.items()} | {
    "crop_padding": 0,
    "count": 9,
}
PLANS["mixup"] = PLANS["crop"] | {"mixup": 0.5}
PLANS["all and mixed"] = PLANS["all"] | {"mixup": 0.5, "cutmix": 1.0, "mix_probability": 0.8}


def make(plan: dict[str, Any], images: Tensor, rows: Tensor, k: Tensor, seed: int, numbered: bool = True) -> Tensor:
    """View k of these rows of `images`, partners and all: through the loader's own maker."""
    recipe = ViewsRecipe.model_validate(plan)
    targets = torch.zeros(len(images), dtype=torch.int64)
    source = MemorySource("pictures", ("a", "b"), images, targets)
    channels = images.shape[1]
    maker = Maker(
        source,
        targets,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        device=torch.device("cpu"),
        augmentation=Augmentation(recipe, seed, numbered, torch.arange(len(images)).flip(0)),
    )
    wanted = maker.want(rows, k)
    return maker.pixels(wanted, source.fetch(wanted.fetched))


@pytest.mark.parametrize("name", PLANS)
@QUICK
@given(shape=SHAPES, seed=st.integers(0, 2**40), numbered=st.booleans(), cut=st.integers(1, 11))
def test_a_view_depends_on_nothing_but_image_index_number_and_seed(
    name: str, shape: tuple[int, int, int], seed: int, numbered: bool, cut: int
) -> None:
    plan, images = PLANS[name], pictures(12, shape)
    rows, k = torch.arange(12), torch.arange(12) % 9
    made = make(plan, images, rows, k, seed, numbered)
    assert made.dtype == torch.uint8
    assert made.shape == images.shape
    assert torch.equal(make(plan, images, rows, k, seed, numbered), made)  # made again
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(make(plan, images, rows[order], k[order], seed, numbered), made[order])
    parts = [make(plan, images, rows[p], k[p], seed, numbered) for p in (slice(0, cut), slice(cut, None))]
    assert torch.equal(torch.cat(parts), made)
    assert torch.equal(make(plan, images, rows[cut : cut + 1], k[cut : cut + 1], seed, numbered)[0], made[cut])


@pytest.mark.parametrize("name", PLANS)
def test_threads_and_the_size_of_the_batch_change_nothing(name: str) -> None:
    """A batch that is large enough for torch, and for the views themselves, to use several threads."""
    images = pictures(1400, (3, 28, 28))
    rows, k = torch.arange(1400), torch.arange(1400) % 9
    before = torch.get_num_threads()
    made = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append(make(PLANS[name], images, rows, k, 1))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    few = torch.cat([make(PLANS[name], images, rows[p], k[p], 1) for p in torch.arange(1400).split(25)])
    assert torch.equal(made[0], few)


@pytest.mark.parametrize("name", PLANS)
def test_numbered_views_differ(name: str) -> None:
    plan = PLANS[name]
    views = view_count(ViewsRecipe.model_validate(plan))
    images = pictures(5, (3, 28, 28))
    seen = set()
    for k in range(views):
        for view in make(plan, images, torch.arange(5), torch.full((5,), k), 0):
            seen.add(hashlib.sha256(view.numpy().tobytes()).digest())
    # By chance two crops may be equal, a rectangle not erased twice, an operation that is not signed drawn again.
    share = {"orbit": 1.0, "jitter": 1.0, "all": 1.0, "all and mixed": 1.0, "erasing": 0.5}.get(name, 0.9)
    assert len(seen) >= share * 5 * views


@pytest.mark.parametrize("name", PLANS)
def test_seeds_differ(name: str) -> None:
    images, rows = pictures(12, (3, 28, 28)), torch.arange(12)
    k = torch.zeros_like(rows)
    same = torch.equal(make(PLANS[name], images, rows, k, 0), make(PLANS[name], images, rows, k, 1))
    assert same == (name == "orbit")  # which is counted through, not drawn


def test_a_view_of_the_teacher_s_is_the_store_s_of_the_same_number() -> None:
    images, rows, k = pictures(12, (3, 28, 28)), torch.arange(12), torch.arange(12) % 9
    for name, plan in PLANS.items():
        if name != "orbit":
            assert torch.equal(make(plan, images, rows, k, 0, True), make(plan, images, rows, k, 0, False))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (2, 5, 5)])
def test_odd_images(name: str, shape: tuple[int, int, int]) -> None:
    images = pictures(9, shape)
    made = make(PLANS[name], images, torch.arange(9), torch.arange(9) % 9, 0)
    assert made.shape == images.shape
    none = make(PLANS[name], images, torch.arange(0), torch.arange(0), 0)
    assert none.shape == (0, *shape)


# sha256 of the bytes, the first 16 digits. The first four were taken from the code before there was more than crop and
# flip. A change here means that the logits of every store that was made before belong to other pixels.
GOLDEN = [
    ((3, 32, 32), {"crop_padding": 4, "flip": True}, False, "d7a9de4e27d318b4"),
    ((1, 28, 28), {"crop_padding": 2, "flip": True, "count": "orbit"}, True, "b3dbf3808981d079"),
    ((1, 8, 8), {"flip": True}, False, "80221704987b98b3"),
    ((3, 8, 8), {"crop_padding": 1, "count": 9}, True, "a47212201dbb3ec3"),
    ((3, 32, 32), PLANS["resized crop"], False, "7c3bfd15349dff53"),
    ((3, 224, 224), PLANS["resized crop"], False, "b4295b51fc9b16b8"),
    ((3, 32, 32), PLANS["jitter"], False, "31ac60fcbc424f80"),
    ((3, 32, 32), PLANS["randaugment"], False, "786e6b73cba169cc"),
    ((3, 33, 33), PLANS["erasing"], False, "a367a00a25b04f13"),
    ((1, 28, 28), PLANS["all"], False, "48224bc82c05594d"),
]


@pytest.mark.parametrize(("shape", "plan", "numbered", "digest"), GOLDEN)
def test_golden(shape: tuple[int, int, int], plan: dict[str, Any], numbered: bool, digest: str) -> None:
    index = torch.arange(16 * shape[0] * shape[1] * shape[2])
    images = (draw(7, index, torch.zeros_like(index)) % 256).to(torch.uint8).view(16, *shape)
    k = torch.arange(16) % 162
    if "crop_padding" in plan or plan == {"flip": True}:
        k = torch.arange(16) % ((2 * plan.get("crop_padding", 0) + 1) ** 2 * (2 if plan.get("flip") else 1))
    made = make_views(images, torch.arange(16) * 1009, k, ViewsRecipe.model_validate(plan), 5, numbered=numbered)
    assert hashlib.sha256(made.numpy().tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize(
    ("fields", "digest"),
    [
        ({"mixup": 0.8}, "93807d69e4be8d96"),
        ({"cutmix": 1.0}, "a101cb809c412a0d"),
        ({"mixup": 1.0, "cutmix": 0.5, "mix_probability": 0.6}, "3c1866cca3d31ecb"),
    ],
)
def test_golden_pairs(fields: dict[str, Any], digest: str) -> None:
    indices = torch.arange(500)
    pairs = draw_pairs(indices, indices % 7, ViewsRecipe.model_validate(fields), 5, indices * 3 + 1, (32, 32))
    box = (pairs.boxes.top, pairs.boxes.left, pairs.boxes.height, pairs.boxes.width)
    text = b"".join(part.numpy().tobytes() for part in (pairs.partner, pairs.share, pairs.rows, pairs.weight, *box))
    assert hashlib.sha256(text).hexdigest()[:16] == digest


def test_in_words() -> None:
    assert in_words(ViewsRecipe()) == "the images as they are"
    assert in_words(ViewsRecipe(crop_padding=4, flip=True)) == "crop with padding 4, flip"
    words = in_words(ViewsRecipe.model_validate(PLANS["all and mixed"]))
    for word in ("resized crop of 0.1 to 1", "flip", "RandAugment of 3", "hue", "erasing", "mixup", "cutmix", "0.8"):
        assert word in words
