"""Comparisons whose processes are stopped or killed: none is left running, nothing is lost, the bits are the same."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from distill.errors import StoreError, UserError
from distill.recipe.grid import Cell, grid
from distill.recipe.load import load_recipe, override, parse_recipe
from distill.report.comparison_folder import read_comparison
from distill.report.runs import Run
from distill.stages import workers
from distill.stages.compare import compare, run_one
from distill.stages.run_grid import Manner, run_cells
from distill.stages.schedule import Schedule
from distill.training.events import Listener
from tests.faults import full, leaving

RECIPE = """
name = "tiny"
threads = 1
[data]
source = "digits"
train = 60
validation = 20
meta = 20
test = 30
[teacher]
model = "resnet8"
epochs = 60
batch_size = 20
[compare]
students = false
[compare.arms]
a = []
b = ["teacher.labels.rule=smoothing"]
c = ["teacher.optimizer.weight_decay=0"]
"""
PATIENCE = 120.0  # seconds; torch alone takes several to import, and the machine may be busy


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def children(pid: int) -> list[int]:
    """Of a process, by Linux's word."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_worker(pid: int) -> bool:
    """And not, say, multiprocessing's tracker of resources; false once it has ended."""
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def under_way(folder: Path) -> list[Path]:
    """Runs that have trained an epoch and are not finished."""
    begun = (path for path in folder.glob("*/metrics.jsonl") if '"event": "epoch"' in path.read_text())
    return [path.parent for path in begun if (path.parent / "state/teacher.safetensors").exists()]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A comparison of three teachers, two beside each other, both of them under way."""
    (tmp_path / "tiny.toml").write_text(RECIPE)
    command = [sys.executable, "-W", "error", "-m", "distill", "compare", "tiny.toml", "--jobs", "2", "--json"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            until(lambda: len(under_way(tmp_path / "checkpoints/tiny-compare")) == 2 or process.poll() is not None)
            assert process.poll() is None, process.communicate()
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGKILL, -signal.SIGKILL),
        pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_comparison_leaves_no_worker_and_goes_on(
    started: subprocess.Popen[str], tmp_path: Path, number: int, code: int
) -> None:
    pids = [pid for pid in children(started.pid) if is_worker(pid)]
    assert len(pids) == 2
    os.kill(started.pid, number)
    _, err = started.communicate(timeout=PATIENCE)
    assert started.returncode == code, err
    if number != signal.SIGKILL:
        assert re.search(r"after [01] of 3 cells; the same command goes on from there", err)
        assert not any(map(is_worker, pids))
    until(lambda: not any(map(is_worker, pids)))
    assert "Traceback" not in err
    folder = tmp_path / "checkpoints/tiny-compare"
    saved = list(folder.glob("*/state/teacher.safetensors"))
    assert len(saved) == 2
    recipe = override(load_recipe(tmp_path / "tiny.toml"), [f'checkpoints="{tmp_path}/checkpoints"'])
    resumed: list[int] = []
    found = compare(recipe, lambda event: resumed.append(getattr(event, "resumed_epoch", 0)))
    assert found.exit_code == 0
    assert sum(epoch > 0 for epoch in resumed) == 2
    whole = run_one(override(recipe, [f'checkpoints="{tmp_path}/whole"']), 0, lambda event: None)
    assert whole.folder.name == "a-s0"
    one, other = (run / "model.safetensors" for run in (folder / "a-s0", whole.folder))
    assert one.read_bytes() == other.read_bytes()


def test_a_killed_worker_costs_its_cell_alone(started: subprocess.Popen[str], tmp_path: Path) -> None:
    """As the system does when memory runs out."""
    victim = next(pid for pid in children(started.pid) if is_worker(pid))
    os.kill(victim, signal.SIGKILL)
    out, err = started.communicate(timeout=2 * PATIENCE)
    assert started.returncode == 1, err
    cells = json.loads(out)["cells"]
    failed = [cell for cell in cells if cell["state"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["reason"] == "its process was ended by SIGKILL, as the system does when memory runs out"
    assert [cell["state"] for cell in cells].count("finished") == 2
    assert "failed: cell" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_what_a_terminal_sends_ends_no_worker_that_is_just_starting(number: signal.Signals) -> None:
    """Its cell would count as failed, by a signal that was not meant for it."""
    worker = workers.Worker()
    assert worker.process.pid is not None
    os.kill(worker.process.pid, number)
    worker.pipe.close()  # as the program's end: it stops itself
    worker.process.join(PATIENCE)
    assert worker.process.exitcode == -signal.SIGTERM


def test_a_worker_that_was_asked_to_stop_is_handed_no_other_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `kill PID`: it may take a while to end, and what it is handed meanwhile would fail with it."""
    monkeypatch.setattr(workers, "serve", leaving.serve)
    schedule = Schedule(grid(parse_recipe(RECIPE, "tiny.toml")), {})
    run_cells(schedule, tmp_path, Manner(jobs=2), lambda event: None)
    assert (schedule.failed, schedule.finished) == ({}, {0, 1, 2})


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_disk_without_room_for_what_became_of_a_cell_stops_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """The cell is trained; the others could not be noted down either."""
    recipe = parse_recipe(RECIPE, "tiny.toml", [f'checkpoints="{tmp_path}"', "teacher.epochs=1"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full.refusing)
        patch.setattr(workers, "serve", full.serve)
        with pytest.raises(StoreError) as caught:
            compare(recipe, lambda event: None, Manner(jobs=jobs))
    told = (
        r".*/cells/(\w+-s0)\.json: cannot be written: No space left on device; it was to say that cell [01], teacher "
        r".*, seed 0, is finished; the comparison stopped: 0 of 3 cells are finished, what is trained is kept, and the "
        r"same command goes on from there"
    )
    found = re.fullmatch(told, caught.value.message)
    assert found
    assert "Make room" in caught.value.cure
    folder = tmp_path / "tiny-compare"
    assert not any((folder / "cells").glob("*.json"))
    weights = folder / found[1] / "model.safetensors"  # the other one may have been stopped before it was recorded
    before = weights.stat().st_ino
    assert compare(recipe, lambda event: None).exit_code == 0
    assert weights.stat().st_ino == before


@pytest.mark.parametrize("recorded", [True, False])
def test_a_disk_that_a_cell_fills_stops_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    """Whether there is room for its failure or not. A cell that fails by itself stops no other."""
    recipe = parse_recipe(RECIPE, "tiny.toml", [f'checkpoints="{tmp_path}"', "teacher.epochs=1"])
    tried: list[Cell] = []

    def fail(cell: Cell, listener: Listener) -> Run:
        tried.append(cell)
        if len(tried) == 2:
            raise RuntimeError("torch") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise UserError("by itself", cure="mend it.")

    def refuse(handle: int) -> None:
        return full.refusing(handle) if len(tried) == 2 and not recorded else None

    monkeypatch.setattr("distill.stages.cells._trained", fail)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match="the comparison stopped: 0 of 3 cells are finished") as caught:
        compare(recipe, lambda event: None)
    assert len(tried) == 2
    assert "RuntimeError: torch" in caught.value.message
    assert "Make room" in caught.value.cure
    results = read_comparison([tmp_path / "tiny-compare"]).results
    assert [each.state for each in results] == ["failed", "failed" if recorded else "missing", "missing"]


def test_a_worker_that_dies_on_a_full_disk_stops_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "serve", leaving.die)
    monkeypatch.setattr(os, "fsync", full.refusing)
    schedule = Schedule(grid(parse_recipe(RECIPE, "tiny.toml")), {})
    with pytest.raises(StoreError, match=r"[ab]-s0\.json: cannot be written.*exit code 3; the comparison stopped"):
        run_cells(schedule, tmp_path, Manner(jobs=2), lambda event: None)
