"""Comparisons whose processes are stopped or killed: none is left running, nothing is lost, the bits are the same."""

from __future__ import annotations

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

from distill.recipe.grid import grid
from distill.recipe.load import load_recipe, override, parse_recipe
from distill.stages import workers
from distill.stages.compare import compare, run_one
from distill.stages.run_grid import Manner, run_cells
from distill.stages.schedule import Schedule
from tests.faults import leaving

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
