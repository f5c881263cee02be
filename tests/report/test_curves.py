"""Curves, epoch by epoch: from runs, in curves.csv, as pictures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from distill.errors import RunError
from distill.recipe.load import parse_recipe
from distill.report.arm_curves import arm_curves
from distill.report.comparison import Comparison
from distill.report.comparison_folder import read_comparison, write_comparison, write_plan
from distill.report.curve_figure import curve_figure
from distill.report.curves import CURVES, read_curves, run_curves, write_curves
from distill.report.published import RESULTS, write_results
from distill.report.runs import Run, RunRecord
from tests.report.made import made
from tests.report.pages import curves

ACCURACY = "validation_accuracy"
ABSURD: tuple[float | str, ...] = ("x", 1.5, -0.1, 10**400)


def a_run(folder: Path, lines: list[str]) -> Run:
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    recipe = parse_recipe('name = "r"', "r.toml", ())
    return Run(folder, recipe, RunRecord(kind="teacher", name="r", seed=0, created="", begun="0"))


def line(epoch: int, **metrics: float | str) -> str:
    return json.dumps({"event": "epoch", "stage": "teacher", "epoch": epoch, "metrics": metrics})


def test_a_runs_curves_are_those_of_every_epoch(tmp_path: Path) -> None:
    lines = [line(0, **{ACCURACY: 0.5, "labels_right": 0.64}), line(1, **{ACCURACY: 0.1234567, "labels_right": 0.7})]
    run = a_run(tmp_path, lines)
    assert run_curves(run, 2) == {ACCURACY: (0.5, 0.12346), "labels_right": (0.64, 0.7)}
    assert run_curves(run, 3) == {}  # an epoch is missing
    assert run_curves(run, 0) == {}


@pytest.mark.parametrize("second", ['{"event": "ep', line(1), *(line(1, **{ACCURACY: value}) for value in ABSURD)])
def test_torn_and_absurd_lines_make_no_curve(tmp_path: Path, second: str) -> None:
    assert ACCURACY not in run_curves(a_run(tmp_path, [line(0, **{ACCURACY: 0.5}), second]), 2)


def test_an_epoch_that_was_trained_again_counts_once(tmp_path: Path) -> None:
    lines = [line(0, **{ACCURACY: 0.5}), line(1, **{ACCURACY: 0.6}), line(1, **{ACCURACY: 0.7})]
    assert run_curves(a_run(tmp_path, lines), 2) == {ACCURACY: (0.5, 0.7)}


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    known = {
        "a-s0": {ACCURACY: (0.0, 0.5, 1.0), "labels_right": (0.64, 0.7, 0.8)},
        'b,"c\n-s1': {ACCURACY: (0.12345, 1e-05)},
        "c-s0": {},
    }
    write_curves(known, tmp_path)
    assert read_curves(tmp_path) == {key: each for key, each in known.items() if each}


def test_no_curve_no_file(tmp_path: Path) -> None:
    write_curves({"a-s0": {}}, tmp_path)
    assert not (tmp_path / CURVES).exists()
    assert read_curves(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"", "found the columns none, expected cell, epoch"),
        (b"cell,epoch\n", "expected cell, epoch, validation_accuracy, labels_right"),
        (b"cell,epoch,validation_accuracy,labels_right\na,1,0.5\n", "line 2: found 3 columns"),
        (b"cell,epoch,validation_accuracy,labels_right\na,1,0.5,\na,3,0.5,\n", "line 3: found epoch '3' of a"),
        (b"cell,epoch,validation_accuracy,labels_right\na,1,1.5,\n", "line 2: found 1.5"),
        (b"cell,epoch,validation_accuracy,labels_right\na,1,nan,\n", "line 2: found nan"),
        (b"cell,epoch,validation_accuracy,labels_right\na,1,x,\n", "could not convert"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b'cell,epoch,validation_accuracy,labels_right\n"a,1,0.5,\n', "unexpected end"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: bytes, found: str) -> None:
    (tmp_path / CURVES).write_bytes(text)
    with pytest.raises(RunError, match=r"curves\.csv: damaged") as caught:
        read_curves(tmp_path)
    assert found in caught.value.message


def publish(comparison: Comparison, folder: Path) -> Path:
    write_plan(comparison.recipe, folder)
    write_results(comparison, folder)
    return folder


def test_they_are_kept_with_the_numbers(tmp_path: Path) -> None:
    rounded = made(curves=lambda cell: {ACCURACY: (0.25, 0.5 + cell.number / 100)})
    again = read_comparison([publish(rounded, tmp_path)])
    assert [each.curves for each in again.results] == [each.curves for each in rounded.results]
    assert again.record() == rounded.record() | {
        "cells": [cell | {"run": None} for cell in rounded.record()["cells"]],
    }
    write_comparison(again, tmp_path)
    assert 'id="curves"' in (tmp_path / "report.html").read_text()
    assert read_comparison([tmp_path]).results == again.results


def test_they_are_set_aside_with_the_numbers(tmp_path: Path) -> None:
    publish(made(curves=curves), tmp_path)
    before = (tmp_path / CURVES).read_bytes()
    publish(made("compare.seeds=5,6", curves=curves), tmp_path)
    (aside,) = tmp_path.glob("curves-*.csv")
    assert aside.read_bytes() == before
    assert (tmp_path / aside.name.replace("curves", "results").replace(".csv", ".json")).is_file()
    assert set(read_curves(tmp_path)) == {"onehot-s5", "instance-s5", "onehot-s6", "instance-s6"}
    assert (tmp_path / RESULTS).is_file()


def test_arms_are_means_over_their_seeds() -> None:
    found = arm_curves(made(curves=lambda cell: {ACCURACY: (0.5, 0.6 + cell.seed / 10)}), ACCURACY)
    assert [each.arm for each in found] == ["onehot", "instance"]
    assert found[0].mean == pytest.approx((0.5, 0.65))
    assert (found[0].lowest, found[0].highest) == ((0.5, 0.6), (0.5, 0.7))


def test_a_seed_of_other_epochs_is_left_out() -> None:
    whole = made(curves=lambda cell: {ACCURACY: (0.5, 0.6, 0.7)})
    results = [replace(each, curves={ACCURACY: (0.5,)}) if each.cell.seed else each for each in whole.results]
    (first, _) = arm_curves(Comparison(whole.recipe, tuple(results)), ACCURACY)
    assert list(first.seeds) == [0]


def test_one_picture_of_all_arms(tmp_path: Path) -> None:
    path = tmp_path / "c.png"
    assert not curve_figure(made(), path)
    assert not path.exists()
    assert curve_figure(made(curves=curves), path)
    with Image.open(path) as picture:
        assert picture.width > picture.height > 300
