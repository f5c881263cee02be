"""What a run's name leads to."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import IO

import pytest

from distill.errors import RunError, StoreError
from distill.recipe.schema import Recipe
from distill.report.lock import LOCK, drawing, locked
from distill.report.run_names import find_run
from distill.report.runs import RECORD, WEIGHTS, damaged_files, make_run, open_run
from distill.store.atomic import writable_folder


def test_a_name_is_a_runs_before_it_is_another_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images in `pets/` made the run pets: the name leads to the run, and a path still to where it says."""
    monkeypatch.chdir(tmp_path)
    Path("pets").mkdir()
    checkpoints = Path("checkpoints")
    assert find_run("pets", checkpoints) == Path("pets")
    (checkpoints / "pets").mkdir(parents=True)
    assert find_run("pets", checkpoints) == Path("pets")  # neither is a run: what is there is told of
    (checkpoints / "pets" / RECORD).touch()
    assert find_run("pets", checkpoints) == checkpoints / "pets"
    assert find_run(str(tmp_path / "pets"), checkpoints) == tmp_path / "pets"
    assert find_run("checkpoints/pets", checkpoints) == checkpoints / "pets"
    Path("pets", RECORD).touch()
    assert find_run("pets", checkpoints) == Path("pets")
    with pytest.raises(RunError, match="nobody: no such run folder") as caught:
        find_run("nobody", checkpoints)
    assert caught.value.cure == "runs in checkpoints: pets."
    with pytest.raises(RunError, match="not a run folder") as caught:  # a comparison's, say
        open_run(checkpoints)
    assert caught.value.cure == "runs in checkpoints: pets."
    for number in range(11):
        (checkpoints / f"run{number:02}").mkdir()
        (checkpoints / f"run{number:02}" / RECORD).touch()
    with pytest.raises(RunError, match="nobody") as caught:
        find_run("nobody", checkpoints)
    assert str(caught.value.cure).endswith("run08 and 2 more.")


def test_a_named_pipe_in_the_locks_place_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / LOCK)
    with pytest.raises(StoreError, match="named pipe"), locked(tmp_path):
        pass


def test_another_users_lock_is_locked_though_it_may_only_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locked(tmp_path):
        pass
    real = Path.open

    def not_writable(path: Path, mode: str = "r") -> IO[str]:
        if mode == "a":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, mode)

    monkeypatch.setattr(Path, "open", not_writable)
    with locked(tmp_path), pytest.raises(RunError, match="another process"), locked(tmp_path):
        pass


def test_what_a_killed_process_was_writing_goes_with_the_next_lock_unless_somebody_draws(tmp_path: Path) -> None:
    figures = tmp_path / "figures"
    figures.mkdir()
    places = [folder / f".a.png.{0:016x}.tmp" for folder in (tmp_path, figures)]
    for path in places:
        path.touch()
    with drawing(figures):
        assert [path.exists() for path in places] == [True, False]
        places[1].touch()
        with locked(tmp_path), drawing(figures):
            assert [path.exists() for path in places] == [False, True]
    with locked(tmp_path):
        assert not places[1].exists()


def test_where_folders_cannot_be_locked_nobody_is_kept_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_lock(handle: int, how: int) -> None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    left = tmp_path / f".a.png.{0:016x}.tmp"
    left.touch()
    monkeypatch.setattr(fcntl, "flock", no_lock)
    with drawing(tmp_path):
        assert not left.exists()


def test_a_name_may_begin_at_home_and_may_not_be_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "runs/a").mkdir(parents=True)
    assert find_run("~/runs/a", Path("checkpoints")) == tmp_path / "runs/a"
    for text in ("", "~nosuchuser/runs/a"):
        with pytest.raises(RunError, match="RUN: found"):
            find_run(text, Path("checkpoints"))


@pytest.mark.parametrize("wrong", ["17.0", "-0.1"])
def test_an_accuracy_that_is_no_share_is_damage(tmp_path: Path, wrong: str) -> None:
    run = make_run(tmp_path, Recipe(name="r"), kind="teacher", begun="0")
    run.finish("teacher", "0", {"seconds": 1.0, "test_accuracy": 0.875, "test_nll": 17.0}, {WEIGHTS: ""}, "cpu")
    assert open_run(tmp_path).metrics("teacher") == {"test_accuracy": 0.875, "test_nll": 17.0}
    record = tmp_path / RECORD
    record.write_text(record.read_text().replace("0.875", wrong))
    said = rf"damaged run folder: .*test_accuracy is {wrong}, expected a share from 0 to 1"
    with pytest.raises(RunError, match=said):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("round", "round: missing; teacher wrote it"),
        ("round/model.safetensors", "model.safetensors: missing; teacher wrote it"),
        ("a\0", "missing; teacher wrote it"),
        ("../a", "teacher names '../a', which is outside the run folder"),
        ("away/a", "teacher names 'away/a', which is outside the run folder"),
    ],
)
def test_files_that_no_path_leads_to_are_damage(tmp_path: Path, name: str, found: str) -> None:
    """Links in a circle, and names that no file can have: `verify` ended in a traceback."""
    run = make_run(writable_folder(tmp_path / "r"), Recipe(name="r"), kind="teacher", begun="0")
    run.finish("teacher", "0", {"seconds": 1.0}, {name: "0", WEIGHTS: "0"}, "cpu")
    (run.folder / "round").symlink_to("round")
    (run.folder / "away").symlink_to(tmp_path)
    problems = [line for line in damaged_files(open_run(run.folder)) if str(run.folder / WEIGHTS) not in line]
    assert [line.endswith(found) for line in problems] == [True]
