import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.data.noise import plant_noise
from distill.data.split import Splits, split
from distill.errors import DataError
from distill.recipe.schema import DataRecipe, NoiseRecipe

CLASSES = ("cat", "dog", "frog", "horse")
TRUE = torch.randint(0, 4, (1000,), generator=torch.Generator().manual_seed(0))
PARTS = ("train", "validation", "meta", "test")


def divide(seed: int = 0) -> Splits:
    return split(TRUE, None, DataRecipe(meta=0.2), CLASSES, seed)


def noise(**fields: object) -> NoiseRecipe:
    return NoiseRecipe.model_validate(fields)


def test_none_changes_nothing() -> None:
    labels = plant_noise(TRUE, divide(), CLASSES, noise(), 0)
    assert torch.equal(labels.given, TRUE)
    assert not labels.is_noisy.any()


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    rate=st.floats(0, 1),
    clean=st.sets(st.sampled_from(["meta", "validation"])),
    kind=st.sampled_from(["symmetric", "asymmetric"]),
)
def test_only_the_parts_that_may_be_touched_are(seed: int, rate: float, clean: set[str], kind: str) -> None:
    splits = divide(seed % 7)
    recipe = noise(kind=kind, rate=rate, redraw="others", clean=tuple(clean))
    labels = plant_noise(TRUE, splits, CLASSES, recipe, seed)
    assert torch.equal(labels.true, TRUE)
    assert labels.given.dtype == torch.int64
    for name in PARTS:
        indices = getattr(splits, name)
        expected = round(rate * len(indices))
        if kind == "asymmetric":
            expected = sum(round(rate * count) for count in torch.bincount(TRUE[indices]).tolist())
        if name == "test" or name in clean:
            expected = 0
        assert int(labels.is_noisy[indices].sum()) == expected
    again = plant_noise(TRUE, splits, CLASSES, recipe, seed)
    assert torch.equal(again.given, labels.given)


def test_redraw_from_all_classes_leaves_some_right() -> None:
    true = torch.zeros(40_000, dtype=torch.int64)
    splits = Splits(torch.arange(40_000), *[torch.empty(0, dtype=torch.int64)] * 3)
    given = plant_noise(true, splits, CLASSES, noise(kind="symmetric", rate=0.8), 0).given
    shares = torch.bincount(given) / 40_000
    assert torch.allclose(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.01)
    given = plant_noise(true, splits, CLASSES, noise(kind="symmetric", rate=0.6, redraw="others"), 0).given
    shares = torch.bincount(given) / 40_000
    assert torch.allclose(shares, torch.tensor([0.4, 0.2, 0.2, 0.2]), atol=0.01)


def test_seeds_differ_and_a_higher_rate_contains_a_lower_one() -> None:
    splits = divide()
    first, second = (plant_noise(TRUE, splits, CLASSES, noise(kind="symmetric", rate=0.4), s).given for s in (0, 1))
    assert not torch.equal(first, second)
    low, high = (
        plant_noise(TRUE, splits, CLASSES, noise(kind="symmetric", rate=rate, redraw="others"), 0).is_noisy
        for rate in (0.2, 0.5)
    )
    assert not (low & ~high).any()


def test_asymmetric_pairs() -> None:
    splits = divide()
    recipe = noise(kind="asymmetric", rate=0.5, pairs={"cat": "dog", "dog": "cat"})
    labels = plant_noise(TRUE, splits, CLASSES, recipe, 0)
    moved = labels.is_noisy
    assert set(zip(TRUE[moved].tolist(), labels.given[moved].tolist(), strict=True)) == {(0, 1), (1, 0)}
    labels = plant_noise(TRUE, splits, CLASSES, noise(kind="asymmetric", rate=0.5), 0)
    moved = labels.is_noisy
    assert torch.equal(labels.given[moved], (TRUE[moved] + 1) % 4)


def test_pairs_are_checked() -> None:
    with pytest.raises(DataError, match="'horze' is not a class") as caught:
        plant_noise(TRUE, divide(), CLASSES, noise(kind="asymmetric", pairs={"cat": "horze"}), 0)
    assert "'horse'" in caught.value.cure
    with pytest.raises(DataError, match="'zzz'") as caught:
        plant_noise(TRUE, divide(), CLASSES, noise(kind="asymmetric", pairs={"zzz": "cat"}), 0)
    assert "cat, dog, frog, horse" in caught.value.cure
    with pytest.raises(DataError, match="becomes itself"):
        plant_noise(TRUE, divide(), CLASSES, noise(kind="asymmetric", pairs={"cat": "cat"}), 0)


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric", "file"])
def test_one_class_cannot_be_noisy(kind: str) -> None:
    true = torch.zeros(10, dtype=torch.int64)
    splits = split(true, None, DataRecipe(), ("only",), 0)
    with pytest.raises(DataError, match="two classes"):
        plant_noise(true, splits, ("only",), noise(kind=kind, rate=0.5, redraw="others"), 0)
