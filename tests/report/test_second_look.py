"""The second look: whose images it takes, what it compares, and the page that it writes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from benchmarks import second_look
from distill.recipe.load import load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "labels"


@pytest.mark.parametrize("name", second_look.LOOKS)
def test_what_it_compares_is_in_the_recipes(name: str) -> None:
    learned, partners, searches = second_look.LOOKS[name]
    assert {learned, *partners} <= load_recipe(RECIPES / f"{name}.toml", []).compare.arms.keys()
    for search in searches:
        assert (RECIPES / f"{search}.toml").is_file()


def test_it_takes_images_that_no_part_and_no_search_has() -> None:
    parts = SimpleNamespace(train=torch.tensor([0, 4]), validation=torch.tensor([1]), meta=torch.tensor([9]))
    data = SimpleNamespace(source=SimpleNamespace(test_start=10), splits=parts)
    assert second_look.others(data, torch.tensor([2, 4, 2])).tolist() == [3, 5, 6, 7, 8]


def test_the_page_says_what_the_numbers_say() -> None:
    ours, theirs, tested = [0.9, 0.92, 0.91], [0.89, 0.9, 0.905], [0.91, 0.9, 0.9]

    def arm(values: list[float]) -> dict[str, dict[str, float]]:
        kept = zip(values, tested, strict=True)
        return {str(s): {"images": 50, "accuracy": v, "test_accuracy": t} for s, (v, t) in enumerate(kept)}

    looked = {"images": {"least": 40, "most": 50}, "arms": {"instance": arm(ours), "pencil": arm(theirs)}}
    page = second_look.page({"memorising_best": looked})
    row = page.splitlines()[-1].split(" | ")
    p = stats.ttest_rel(ours, theirs).pvalue
    assert row[1:5] == ["3", "40 to 50", "91.0", "pencil"]
    assert row[5] == "+0.00 (0.00 to 0.00)"
    assert row[6].startswith("+1.17 (")
    assert row[7:] == [f"{p:.3f}", "- |"]
    assert "recipes/labels/memorising_best.toml" in page
