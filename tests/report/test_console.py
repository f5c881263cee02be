"""Tables at the end of a command: whole words in a log, 80 columns in a terminal, ASCII where need be."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from distill.report.comparison import Arm, Comparison
from distill.report.console import console, print_comparison, print_runs

METRICS = {
    "test_accuracy": 0.98765,
    "test_nll": 0.5,
    "test_ece": 0.25,
    "validation_accuracy": 1.0,
    "best_test_accuracy": 1.0,
    "best_epoch": 120.0,
    "given_right": 0.7,
    "labels_right": 1.0,
}


def printed(encoding: str, width: int) -> tuple[io.BytesIO, Console]:
    raw = io.BytesIO()
    return raw, Console(file=io.TextIOWrapper(raw, encoding=encoding, write_through=True), width=width)


def test_the_table_of_runs_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    record = SimpleNamespace(kind="teacher", stages={"teacher": SimpleNamespace(metrics=METRICS)})
    runs: Any = [SimpleNamespace(folder=Path("checkpoints/a"), record=record)]
    raw, narrow = printed("utf-8", 80)
    print_runs(narrow, runs, ["distill verify checkpoints/a"])
    text = raw.getvalue().decode()
    assert "…" not in text
    cells = next(line for line in text.splitlines() if "98.8" in line)
    assert [cell.strip() for cell in cells.strip("│").split("│")] == [
        "teacher", "98.8", "0.500", "25.0", "100.0", "100.0 (120)", "70.0 -> 100.0"
    ]  # fmt: skip
    assert "best (epoch)" in text
    assert "next: distill verify checkpoints/a" in text


@pytest.mark.parametrize(("encoding", "sign"), [("utf-8", "±"), ("ascii", "+-")])
def test_the_table_of_a_comparison(encoding: str, sign: str) -> None:
    arms = tuple(Arm(rule, seed, 4.0, METRICS, METRICS) for seed in (0, 1) for rule in ("onehot", "instance"))
    raw, wide = printed(encoding, 140)
    print_comparison(wide, Comparison("r", "abc", arms), Path("c"), Path("c/a"), None)
    text = raw.getvalue().decode(encoding)
    assert f"98.8 {sign} 0.0" in text
    assert "…" not in text


def test_without_a_terminal_the_console_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.StringIO())
    assert console().width == 140


@pytest.mark.parametrize(
    ("called", "named"), [(".venv/bin/distill", ".venv/bin/distill"), ("/a/distill/__main__.py", "PYTHON -m distill")]
)
def test_commands_to_copy_name_the_program_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, called: str, named: str
) -> None:
    """After `make demo` there is no `distill` on the path, only .venv/bin/distill; or it is run as a module."""
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("sys.executable", "PYTHON")
    monkeypatch.setattr("sys.argv", [called, "run"])
    raw, narrow = printed("utf-8", 80)
    print_runs(narrow, [], ["distill verify checkpoints/distill"])
    assert f"next: {named} verify checkpoints/distill" in raw.getvalue().decode()
