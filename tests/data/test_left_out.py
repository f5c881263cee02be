"""What is left out as unreadable is in no part, and changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.data import folder
from distill.data.loader import ImageData, open_data, ordered_batches
from distill.data.split import Splits, without
from distill.errors import DataError, RecipeError
from distill.recipe.checks import check_recipe
from distill.recipe.schema import Recipe
from tests.data.pictures import folder_of

PARTS = ("train", "validation", "meta", "test")


def recipe(root: Path, **data: object) -> Recipe:
    given = {"source": "folder", "root": str(root), "image_size": 8, "test": 8, "validation": 6, "meta": 6, **data}
    return Recipe.model_validate({"name": "test", "data": given})


def noisy(root: Path, **data: object) -> ImageData:
    noise = {"kind": "symmetric", "rate": 0.5, "clean": []}
    return open_data(recipe(root, unreadable="leave-out", noise=noise, **data))


def test_all_others_stay_where_they_are(tmp_path: Path) -> None:
    whole = noisy(folder_of(tmp_path, 60, "abc"))
    for name in ("a/000", "b/004", "b/007", "c/032"):
        (tmp_path / f"{name}.png").write_bytes(b"damaged")
    left = noisy(tmp_path)
    gone = torch.tensor(list(left.source.unreadable))
    assert [whole.source.files[index] for index in gone] == ["a/000.png", "b/004.png", "b/007.png", "c/032.png"]
    assert torch.equal(left.labels.given, whole.labels.given)
    for part in PARTS:
        before, after = getattr(whole.splits, part), getattr(left.splits, part)
        assert torch.equal(after, before[~torch.isin(before, gone)])
        for batch in ordered_batches(left, after, batch_size=4, device="cpu"):
            assert not torch.isin(batch.rows, gone).any()
    red = left.source.fetch(left.splits.train)[:, 0].double() / 255
    assert left.mean[0] == pytest.approx(red.mean().item())


def test_with_nothing_to_leave_out_nothing_changes(tmp_path: Path) -> None:
    folder_of(tmp_path, 60, "abc")
    one, other = open_data(recipe(tmp_path)), open_data(recipe(tmp_path, unreadable="leave-out"))
    assert one.source.fingerprint() == other.source.fingerprint()
    assert (one.mean, one.std) == (other.mean, other.std)
    for part in PARTS:
        assert torch.equal(getattr(one.splits, part), getattr(other.splits, part))


def test_a_plan_that_does_not_know_yet_stumbles_over_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (folder_of(tmp_path, 60, "abc") / "a").iterdir():
        path.write_bytes(b"damaged")
    monkeypatch.setattr(folder, "_QUICKLY", 59)
    data = open_data(recipe(tmp_path, unreadable="leave-out"), quick=True)
    assert data.source.undecided == 60
    assert sum(len(getattr(data.splits, part)) for part in PARTS) == 60


def test_by_default_it_is_an_error(tmp_path: Path) -> None:
    folder_of(tmp_path, 60, "abc")
    (tmp_path / "b" / "007.png").write_bytes(b"damaged")

    def all_images() -> None:
        data = open_data(recipe(tmp_path))
        list(ordered_batches(data, torch.arange(60), batch_size=16, device="cpu"))

    with pytest.raises(DataError, match=r"b/007\.png: cannot be decoded") as found:
        all_images()
    assert "leave-out" in found.value.cure


def test_a_part_or_a_class_of_which_nothing_is_left(tmp_path: Path) -> None:
    folder_of(tmp_path, 60, "abc")
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"damaged")
    with pytest.raises(DataError, match="but none of b"):
        noisy(tmp_path)
    splits = Splits(*(torch.tensor(part) for part in ([0, 1, 2], [3], [], [4])))
    targets, classes = torch.tensor([0, 1, 1, 0, 0]), ("a", "b")
    assert without(splits, [], targets, classes) is splits
    assert without(splits, {1: "why"}, targets, classes).train.tolist() == [0, 2]
    with pytest.raises(DataError, match="none of the 1 images of the validation part can be decoded"):
        without(splits, [3], targets, classes)


def test_other_sources_have_nothing_unreadable() -> None:
    with pytest.raises(RecipeError, match=r"\[data\] unreadable"):
        check_recipe(Recipe.model_validate({"name": "a", "data": {"unreadable": "leave-out"}}), "a.toml")
