"""`distill calibrate`, and the temperature that every finished network has."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.cli.entry import run as run_command
from distill.errors import RunError
from distill.recipe.schema import Recipe
from distill.report.runs import Run, make_run, open_run
from distill.stages.calibrate import calibrate
from distill.stages.pipeline import run_pipeline
from distill.stages.teacher import train_teacher
from distill.training.events import Event, Notice

SCALING = ("scaling_temperature", "test_nll_scaled", "test_ece_scaled")


def silent(event: Event) -> None:
    pass


def without_scaling(run: Run) -> dict[str, float]:
    """Makes a run one of an earlier version; what it had measured."""
    path = run.folder / "run.json"
    record = json.loads(path.read_text())
    metrics = record["stages"][run.record.kind]["metrics"]
    had = {name: metrics.pop(name) for name in SCALING}
    path.write_text(json.dumps(record))
    return had


def measured(folder: Path) -> dict[str, float]:
    run = open_run(folder)
    return {name: run.metrics(run.record.kind)[name] for name in SCALING}


def test_earlier_runs_are_given_what_they_would_have_been_measured(tiny: Callable[..., Recipe]) -> None:
    runs = run_pipeline(tiny("student.select=best"), silent)  # the best epoch's weights are not those that are judged
    before = [without_scaling(run) for run in runs]
    found = calibrate(runs[0].folder.parent, silent)
    assert [each.run for each in found] == [run.folder for run in runs]
    for run, had in zip(runs, before, strict=True):
        assert measured(run.folder) == pytest.approx(had, rel=1e-6)
        assert measured(run.folder)["test_nll_scaled"] < 5
    stamps = [(run.folder / "run.json").stat().st_mtime_ns for run in runs]
    assert calibrate(runs[0].folder, silent) == found  # nothing is measured again
    assert [(run.folder / "run.json").stat().st_mtime_ns for run in runs] == stamps


def test_the_command_tells_it(
    tiny: Callable[..., Recipe], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train_teacher(tiny("teacher.epochs=1"), silent)
    monkeypatch.setattr(sys, "argv", ["distill", "calibrate", str(run.folder), "--json"])
    assert run_command() == 0
    (network,) = json.loads(capsys.readouterr().out)["networks"]
    assert network["scaling_temperature"] == run.metrics("teacher")["scaling_temperature"]
    monkeypatch.setattr(sys, "argv", ["distill", "calibrate", str(run.folder)])
    assert run_command() == 0
    assert f"{network['scaling_temperature']:.3f}" in capsys.readouterr().out


def test_an_unfinished_run_is_passed_over_and_a_folder_of_none_is_refused(
    tiny: Callable[..., Recipe], tmp_path: Path
) -> None:
    run = train_teacher(tiny("teacher.epochs=1"), silent)
    run.forget("teacher")
    for folder in (run.folder, tmp_path / "nowhere"):
        with pytest.raises(RunError, match=r"of its 1 runs 0 are finished|no such folder"):
            calibrate(folder, silent)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="no run is there"):
        calibrate(tmp_path / "empty", silent)


@pytest.mark.parametrize(
    ("sets", "why"),
    [
        ("data.validation=0", "it has no validation images to fit one on"),
        ("data.validation=12", "fewer than 10 of its validation images are answered wrongly"),
    ],
)
def test_where_too_few_validation_images_are_answered_wrongly_nothing_is_fitted(
    tiny: Callable[..., Recipe], sets: str, why: str
) -> None:
    few = train_teacher(
        tiny("data.noise.kind=none", "data.noise.rate=0", "data.noise.redraw=all", "name=few", sets), silent
    )
    assert "scaling_temperature" not in few.metrics("teacher")
    told: list[str] = []
    with pytest.raises(RunError, match="no finished network that has a temperature; of its 1 runs 1 are finished"):
        calibrate(few.folder, lambda event: told.append(str(event)))
    assert why in "".join(told)
    other = train_teacher(tiny("teacher.epochs=1"), silent)  # beside others it is no failure
    assert [each.run for each in calibrate(few.folder.parent, silent)] == [other.folder]


def test_other_weights_and_other_data_are_refused_and_the_rest_is_measured(tiny: Callable[..., Recipe]) -> None:
    runs = [train_teacher(tiny("teacher.epochs=1", f"name={name}"), silent) for name in ("changed", "data", "whole")]
    expected = [without_scaling(run) for run in runs][2]
    (runs[0].folder / "model.safetensors").write_bytes((runs[0].folder / "model.safetensors").read_bytes() + b" ")
    recipe = runs[1].folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 0", "seed = 7"))  # another split: other images are tested
    with pytest.raises(RunError) as caught:
        calibrate(runs[0].folder.parent, silent)
    assert "changed/model.safetensors: sha256 differs from what was written" in caught.value.message
    assert "its data or its recipe.toml are not those that it was trained with" in caught.value.message
    assert caught.value.cure == "mend these; 1 of 3 have their temperature."
    assert measured(runs[2].folder) == pytest.approx(expected, rel=1e-6)


def test_students_that_may_not_be_looked_for_are_named(tiny: Callable[..., Recipe], tmp_path: Path, close) -> None:
    (tmp_path / "tiny").mkdir()
    make_run(tmp_path / "tiny", tiny(), kind="teacher", begun="0")
    for name in ("tiny/students", "tiny/logits", "lost+found"):
        (tmp_path / name).mkdir()
        close(tmp_path / name)
    told: list[Event] = []
    with pytest.raises(RunError, match="tiny/students: cannot be read: Permission denied -> Let yourself read it"):
        calibrate(tmp_path, told.append)
    assert told == [Notice(f"warning: {tmp_path / 'lost+found'}: cannot be read: Permission denied; passed over")]
