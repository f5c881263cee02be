"""comparison.toml and results.json alone say what the runs said and add up with other parts; damage is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from distill.errors import RunError, UserError
from distill.recipe.grid import Cell
from distill.report.comparison import Comparison
from distill.report.comparison_folder import COMPARISON, read_comparison, write_comparison, write_plan
from distill.report.html import page
from distill.report.published import RESULTS, is_published, without_runs, write_results
from distill.report.results import CELLS
from tests.report.made import METRICS, made
from tests.report.pages import large

GRID = ("compare.temperatures=1,4", "compare.weights=0.9,0.5", "compare.controls=true")


def accuracies(cell: Cell) -> Mapping[str, float]:
    return METRICS | {"test_accuracy": 0.5 + cell.number / 1000, "validation_accuracy": (cell.number % 7) / 10}


def publish(comparison: Comparison, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    plain = without_runs(comparison)
    write_plan(plain.recipe, folder)
    write_results(plain, folder)
    return folder


def test_it_says_what_the_runs_said(tmp_path: Path) -> None:
    first = made(*GRID, metrics=accuracies, missing=["onehot-s1-kd-T4-w0.9"])
    folder = publish(first, tmp_path / "p")
    again = read_comparison([folder])
    assert again.record() == without_runs(first).record()
    before = (folder / RESULTS).read_bytes()
    write_comparison(again, folder)
    assert (folder / RESULTS).read_bytes() == before
    assert is_published(folder)


def test_no_place_of_the_machine_is_in_it(tmp_path: Path) -> None:
    comparison = made("checkpoints=/home/somebody/c", "data.root=/home/somebody/d")
    folder = publish(comparison, tmp_path / "p")
    assert all("somebody" not in (folder / name).read_text() for name in (COMPARISON, RESULTS))


def test_a_page_is_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    folder = publish(large(tmp_path / "runs"), tmp_path / "p")
    text = page(read_comparison([folder]), folder)
    assert "no run has a reliability.json" in text
    assert "there is no run of a finished teacher that learned its labels" in text


def test_other_seeds_and_arms_are_added_to_it(tmp_path: Path) -> None:
    one = publish(made("compare.seeds=0,1", metrics=accuracies), tmp_path / "one")
    two = publish(made("compare.seeds=1,2", "compare.teachers=onehot,class"), tmp_path / "two")
    found = read_comparison([two, one])
    assert {row.name: sorted(row.results) for row in found.rows if row.network == "teacher"} == {
        "onehot": [0, 1, 2], "class": [1, 2], "instance": [0, 1]
    }  # fmt: skip
    assert found.row("onehot", "teacher").values("test_accuracy")[1] == METRICS["test_accuracy"]  # the first one's
    assert all(not result.run for result in found.results)


def test_where_there_are_runs_they_are_what_counts(tmp_path: Path) -> None:
    folder = publish(made(), tmp_path / "p")
    (folder / CELLS).mkdir()
    assert {result.state for result in read_comparison([folder]).results} == {"missing"}


def test_an_arm_that_it_does_not_know_is_missing(tmp_path: Path) -> None:
    folder = publish(made(), tmp_path / "p")
    write_plan(made("compare.teachers=onehot,instance,class").recipe, folder)
    states = {result.state for result in read_comparison([folder]).results if result.cell.arm == "class"}
    assert states == {"missing"}


def test_an_edited_recipe_is_refused(tmp_path: Path) -> None:
    folder = publish(made(), tmp_path / "p")
    record = json.loads((folder / RESULTS).read_text())
    record["recipe_arms"]["instance"] = ["teacher.labels.rule=class"]
    (folder / RESULTS).write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"arm instance was \['teacher.labels.rule=class'\], and is .* beside it"):
        read_comparison([folder])


def test_a_cell_needs_no_more_than_its_numbers(tmp_path: Path) -> None:
    folder = publish(made(), tmp_path / "p")
    cell = {"key": "onehot-s0", "state": "finished", "metrics": dict(METRICS)}
    (folder / RESULTS).write_text(json.dumps({"schema_version": 1, "recipe_arms": {}, "cells": [cell]}))
    found = read_comparison([folder])
    write_comparison(found, folder)
    assert found.commit == "unknown"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"cells": None}, "cells"),
        ({"cells": [{"key": "onehot-s0", "state": "great"}]}, "cells.0.state"),
        ({"cells": [{"key": "onehot-s0", "state": "finished", "metrics": {"test_accuracy": "1e999"}}]}, "finite"),
        ({"cells": [{"key": "onehot-s0", "state": "finished", "machine": "x"}]}, "cells.0.machine"),
        ({"recipe_arms": []}, "recipe_arms"),
    ],
)
def test_damage_is_told(tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = publish(made(), tmp_path / "p")
    record = json.loads((folder / RESULTS).read_text())
    (folder / RESULTS).write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=f"{RESULTS}: .*{said}"):
        read_comparison([folder])


@pytest.mark.parametrize("text", ["", "[1, 2]", '{"cells": NaN}', "{", '{"a": 1, "a": 2}'])
def test_what_is_no_json_is_told(tmp_path: Path, text: str) -> None:
    folder = publish(made(), tmp_path / "p")
    (folder / RESULTS).write_text(text)
    with pytest.raises(UserError, match=RESULTS):
        read_comparison([folder])
