import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill.data.split import Splits, shuffled, split
from distill.errors import DataError
from distill.recipe.schema import DataRecipe

QUICK = settings(deadline=None, max_examples=40)


def recipe(**fields: object) -> DataRecipe:
    return DataRecipe.model_validate(fields)


def names(count: int) -> tuple[str, ...]:
    return tuple(f"class {number}" for number in range(count))


def parts(splits: Splits) -> list[Tensor]:
    return [splits.train, splits.validation, splits.meta, splits.test]


sizes = st.one_of(st.integers(0, 30), st.floats(0, 0.25))


@QUICK
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(150, 400),
    classes=st.integers(1, 6),
    validation=sizes,
    meta=sizes,
    test=st.one_of(st.integers(1, 30), st.floats(0.01, 0.25)),
    official=st.booleans(),
)
def test_parts_are_disjoint_complete_and_sorted(
    seed: int,
    count: int,
    classes: int,
    validation: int | float,
    meta: int | float,
    test: int | float,
    official: bool,
) -> None:
    targets = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))
    targets[:classes] = torch.arange(classes)
    test_start = count - 20 if official else None
    plan = recipe(validation=validation, meta=meta, test=test)
    splits = split(targets, test_start, plan, names(classes), seed)
    together = torch.cat(parts(splits))
    assert torch.equal(together.sort().values, torch.arange(count))
    for part in parts(splits):
        assert part.dtype == torch.int64
        assert torch.equal(part, part.sort().values)
    pool = count if test_start is None else test_start
    for part, size in ((splits.validation, validation), (splits.meta, meta)):
        wanted = size if isinstance(size, int) else max(1, round(size * pool)) if size > 0 else 0
        assert len(part) == wanted
    if official:
        assert splits.test.tolist() == list(range(count - 20, count))
    again = split(targets, test_start, plan, names(classes), seed)
    assert all(torch.equal(a, b) for a, b in zip(parts(splits), parts(again), strict=True))


def test_another_seed_gives_another_split() -> None:
    targets = torch.arange(100) % 5
    first, second = (split(targets, None, recipe(), names(5), seed) for seed in (0, 1))
    assert not torch.equal(first.train, second.train)


@QUICK
@given(seed=st.integers(0, 1000), weights=st.lists(st.integers(1, 40), min_size=2, max_size=5))
def test_every_part_has_its_share_of_each_class(seed: int, weights: list[int]) -> None:
    targets = torch.cat([torch.full((5 * weight,), label) for label, weight in enumerate(weights)])
    splits = split(targets, None, recipe(test=0.2, validation=0.2, meta=0.2), names(len(weights)), seed)
    for part in parts(splits):
        counts = torch.bincount(targets[part], minlength=len(weights))
        share = len(part) / len(targets) * torch.bincount(targets)
        assert (counts - share).abs().max() <= 2


def test_renaming_classes_changes_nothing() -> None:
    targets = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(0))
    renamed = torch.tensor([2, 0, 3, 1])[targets]
    first, second = (split(labels, None, recipe(meta=0.1), names(4), 3) for labels in (targets, renamed))
    assert all(torch.equal(a, b) for a, b in zip(parts(first), parts(second), strict=True))


def test_train_limits_training_only() -> None:
    targets = torch.arange(1000) % 10
    whole = split(targets, None, recipe(), names(10), 0)
    small = split(targets, None, recipe(train=50), names(10), 0)
    assert len(small.train) == 50
    assert torch.bincount(targets[small.train]).tolist() == [5] * 10
    assert torch.equal(small.test, whole.test)
    assert torch.equal(small.validation, whole.validation)
    assert torch.isin(small.train, whole.train).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"validation": 500, "meta": 1000, "test": 500}, "500 .test. . 500 .validation. . 1000 .meta. .*has 1797"),
        ({"validation": 0.6, "test": 0.5}, "asked for 898 .test. . 1078 .validation. . 0 .meta. "),
        ({"train": 1797}, "1797 .train., the pool has 1797"),
        ({"test": 0}, "data.test = 0"),
        ({"test": 0.0}, "data.test = 0"),
        ({"validation": 1.5}, "data.validation = 1.5"),
        ({"meta": 10**12}, "1000000000000 .meta."),
        ({"test": 1.0, "validation": 0}, "1797 .test."),
    ],
)
def test_impossible_sizes_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        split(torch.arange(1797) % 10, None, recipe(**fields), names(10), 0)


@pytest.mark.parametrize("value", [True, -1, -0.1, float("nan"), float("inf")])
def test_sizes_that_the_schema_would_refuse_are_refused_here_too(value: object) -> None:
    plan = DataRecipe().model_copy(update={"meta": value})
    with pytest.raises(DataError, match=r"data\.meta"):
        split(torch.arange(100) % 10, None, plan, names(10), 0)


def test_official_test_part_does_not_count_in_the_pool() -> None:
    targets = torch.arange(100) % 2
    with pytest.raises(DataError, match=r"asked for 60 .validation. . 0 .meta. . 30 .train., the pool has 80"):
        split(targets, 80, recipe(validation=60, train=30), names(2), 0)
    with pytest.raises(DataError, match="test part is empty"):
        split(targets, 100, recipe(), names(2), 0)


def test_a_class_without_training_images_is_named() -> None:
    targets = torch.tensor([0] * 50 + [2] * 50)
    with pytest.raises(DataError, match=r"but none of class 1\n") as caught:
        split(targets, None, recipe(), names(3), 0)
    assert caught.value.cure
    with pytest.raises(DataError, match="and 1 more"):
        split(torch.arange(60) % 7, None, recipe(train=1), names(7), 0)


def test_shuffled_is_a_permutation_of_whatever_it_gets() -> None:
    rows = torch.tensor([7, 7, 3, 100])
    for epoch in range(5):
        assert shuffled(rows, 0, "order", epoch).sort().values.tolist() == [3, 7, 7, 100]
    orders = {tuple(shuffled(torch.arange(20), 0, "order", epoch).tolist()) for epoch in range(10)}
    assert len(orders) == 10
