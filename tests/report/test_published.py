"""comparison.toml and results.json alone say what the runs said and add up with other parts; damage is told."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.cli.entry import run as run_command
from distill.errors import RunError, UserError
from distill.recipe.grid import Cell
from distill.recipe.load import dump_recipe, load_recipe
from distill.report.comparison import Comparison
from distill.report.comparison_folder import is_plan, read_comparison, write_comparison, write_plan
from distill.report.curves import CURVES
from distill.report.html import page
from distill.report.published import COMPARISON, RESULTS, is_published, without_runs, write_results
from distill.report.results import CELLS
from distill.report.runs import WEIGHTS, make_run
from distill.store.atomic import writable_folder
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
    noise = ("data.noise.kind=file", "data.noise.file=/home/somebody/n/wrong.csv")
    comparison = made("checkpoints=/home/somebody/c", "data.root=/home/somebody/d", *noise)
    folder = publish(comparison, tmp_path / "p")
    assert all("somebody" not in (folder / name).read_text() for name in (COMPARISON, RESULTS))
    assert read_comparison([folder]).recipe.data.noise.file == "wrong.csv"
    arms = {"given": (), "checked": ("data.noise.kind=file", "data.noise.file = '/home/somebody/n/more, wrong.csv'")}
    armed = comparison.recipe.compare.model_copy(update={"arms": arms})
    recipe = comparison.recipe.model_copy(update={"compare": armed})
    folder = publish(replace(comparison, recipe=recipe), tmp_path / "a")
    assert "somebody" not in (folder / COMPARISON).read_text()
    assert load_recipe(folder / COMPARISON).compare.arms["checked"][1] == 'data.noise.file ="more, wrong.csv"'
    gone = replace(comparison.results[0], state="missing", reason="/home/somebody/c/r-compare/onehot-s0: not a run")
    folder = publish(replace(comparison, results=(gone, *comparison.results[1:])), tmp_path / "q")
    assert "somebody" not in (folder / RESULTS).read_text()


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


def test_parts_with_and_without_temperatures_have_no_place_for_each_other(tmp_path: Path) -> None:
    one = publish(made(), tmp_path / "one")
    two = publish(made("compare.temperatures=1,4"), tmp_path / "two")
    with pytest.raises(RunError, match=r"compare.temperatures: \[\] -> \[1.0, 4.0\]"):
        read_comparison([one, two])


def test_a_part_with_other_losses_keeps_the_students_own(tmp_path: Path) -> None:
    one = publish(made(), tmp_path / "one")
    two = publish(made("compare.losses=dkd"), tmp_path / "two")
    found = read_comparison([one, two])
    assert found.recipe.compare.losses == ("kd", "dkd")
    assert all(result.state == "finished" for result in found.results)


def test_the_numbers_belong_to_the_recipe_beside_them(tmp_path: Path) -> None:
    """Arms and rules may be the same: what is trained is not, or some seeds would be lost."""
    for number, change in enumerate(("teacher.epochs=7", "compare.seeds=0", "compare.teachers=onehot,class")):
        folder = publish(made(), tmp_path / str(number))
        (folder / COMPARISON).write_text(dump_recipe(made(change).recipe))
        with pytest.raises(RunError, match="its numbers are of another recipe than"):
            read_comparison([folder])


def test_what_has_the_only_numbers_is_set_aside(tmp_path: Path) -> None:
    """A plan of another recipe, or fewer finished cells, where their runs are gone."""
    folder = publish(made(), tmp_path / "p")
    before, recipe = (folder / RESULTS).read_bytes(), (folder / COMPARISON).read_bytes()
    write_plan(made("teacher.epochs=7").recipe, folder)
    assert [path.read_bytes() for path in folder.glob("results-*.json")] == [before]
    assert [path.read_bytes() for path in folder.glob("comparison-*.toml")] == [recipe]
    assert {result.state for result in read_comparison([folder]).results} == {"missing"}

    other = publish(made(), tmp_path / "q")
    (other / CELLS).mkdir()  # the runs were deleted, these small files were not
    write_comparison(read_comparison([other]), other)
    assert [path.read_bytes() for path in other.glob("results-*.json")] == [before]
    write_comparison(read_comparison([other]), other)
    assert len(list(other.glob("results-*.json"))) == 1


@pytest.mark.parametrize("lived", range(5))
def test_a_kill_while_numbers_are_set_aside_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lived: int
) -> None:
    """At each renaming; the same command goes on."""
    folder, whole = tmp_path / "p", made()
    with_curves = [replace(result, curves={"accuracy": (0.5,)}) for result in without_runs(whole).results]
    publish(replace(whole, results=tuple(with_curves)), folder)
    names = (RESULTS, CURVES, COMPARISON)
    before = sorted((folder / name).read_bytes() for name in names)
    other, steps = made("teacher.epochs=7").recipe, 0

    def dying(real: Callable[..., None]) -> Callable[..., None]:
        def rename(*given: Any, **named: Any) -> None:
            nonlocal steps
            if steps == lived:
                raise KeyboardInterrupt
            steps += 1
            real(*given, **named)

        return rename

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "rename", dying(os.rename))
        patch.setattr(os, "replace", dying(os.replace))
        write_plan(other, folder)
    assert steps == min(lived, 4)
    write_plan(other, folder)
    kept = [next(folder.glob(pattern)) for pattern in ("results-*.json", "curves-*.csv", "comparison-*.toml")]
    assert sorted(path.read_bytes() for path in kept) == before
    assert len(list(folder.iterdir())) == 4
    assert is_plan(other, folder)


def test_where_the_runs_are_nothing_is_set_aside(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    whole = made()
    runs = {}
    for result in whole.results:
        place = writable_folder(folder / result.run)
        runs[result.cell.key] = make_run(place, result.cell.recipe, kind=result.cell.kind, begun="")
        runs[result.cell.key].finish(result.cell.kind, "ab" * 32, {**METRICS, "seconds": 1.0}, {WEIGHTS: ""}, "cpu")
    write_plan(whole.recipe, folder)
    write_results(whole, folder)
    (folder / CELLS).mkdir()
    before = (folder / RESULTS).read_bytes()
    write_comparison(read_comparison([folder]), folder)
    assert not list(folder.glob("results-*.json"))

    write_results(whole, folder)
    record = runs["onehot-s1"].folder / "run.json"
    record.write_text(record.read_text()[:-40])  # damaged: what results.json says of it is all there is
    write_comparison(read_comparison([folder]), folder)
    assert [path.read_bytes() for path in folder.glob("results-*.json")] == [before]


def test_a_report_of_several_folders_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """comparison.toml is then that of all of them, and no numbers are lost beside it."""
    one = publish(made("compare.seeds=0,1", metrics=accuracies), tmp_path / "one")
    two = publish(made("compare.seeds=2,3", metrics=accuracies), tmp_path / "two")
    monkeypatch.setattr(sys, "argv", ["distill", "compare", "--report-only", "--quiet", str(one), str(two)])
    assert run_command() == 0
    kept = shutil.copytree(one, tmp_path / "kept", ignore=shutil.ignore_patterns("*.md", "*.html"))
    again = read_comparison([kept])
    assert again.recipe.compare.seeds == (0, 1, 2, 3)
    assert {result.state for result in again.results} == {"finished"}
    assert not list(one.glob("results-*.json"))


def test_a_report_takes_no_option_of_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = publish(made(), tmp_path / "p")
    for words in (["--set", "compare.pairs=reference"], ["--budget", "5m"], ["--jobs", "2"]):
        monkeypatch.setattr(sys, "argv", ["distill", "compare", "--report-only", str(folder), *words])
        assert run_command() == 2
        assert f"found {words[0]} with --report-only, which runs nothing" in capsys.readouterr().err


def test_a_cell_needs_no_more_than_its_numbers(tmp_path: Path) -> None:
    folder = publish(made(), tmp_path / "p")
    record = json.loads((folder / RESULTS).read_text())
    cell = {"key": "onehot-s0", "state": "finished", "metrics": dict(METRICS)}
    short = {name: record[name] for name in ("schema_version", "recipe_sha256")}
    (folder / RESULTS).write_text(json.dumps({**short, "cells": [cell]}))
    found = read_comparison([folder])
    write_comparison(found, folder)
    assert found.commit == "unknown"


def cells(**changed: object) -> dict[str, object]:
    return {"cells": [{"key": "onehot-s0", "state": "finished", **changed}]}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"recipe_sha256": None}, "recipe_sha256"),
        ({"cells": None}, "cells"),
        (cells(state="great"), "cells.0.state"),
        (cells(metrics={"test_accuracy": "0.5"}), "cells.0.metrics.test_accuracy"),
        (cells(metrics={"test_accuracy": True}), "cells.0.metrics.test_accuracy"),
        (cells(metrics={"test_accuracy": 5.0}), "expected a share from 0 to 1"),
        (cells(metrics={"test_nll": 1e300}), "cells.0.metrics.test_nll"),
        (cells(seconds=-1), "cells.0.seconds"),
        (cells(machine="x"), "cells.0.machine"),
        ({"cells": 2 * [{"key": "onehot-s0", "state": "finished"}]}, "a cell is there twice"),
    ],
)
def test_damage_is_told(tmp_path: Path, change: dict[str, object], said: str) -> None:
    folder = publish(made(), tmp_path / "p")
    record = json.loads((folder / RESULTS).read_text())
    (folder / RESULTS).write_text(json.dumps(record | change))
    with pytest.raises(RunError, match=f"{RESULTS}: .*{said}"):
        read_comparison([folder])


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", '{"cells": NaN}', "{", '{"a": 1, "a": 2}'])
def test_what_is_no_json_is_told(tmp_path: Path, text: str) -> None:
    folder = publish(made(), tmp_path / "p")
    (folder / RESULTS).write_text(text)
    with pytest.raises(UserError, match=RESULTS):
        read_comparison([folder])
