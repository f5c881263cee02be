"""Tables at the end of a command: whole words in a log, 80 columns in a terminal, ASCII where need be."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from distill.report.console import console, print_comparison, print_labels, print_runs
from distill.report.label_report import Confusion, LabelReport, RelationReport, Suspect
from distill.report.labels import Judged
from tests.report.made import METRICS, made


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
    raw, wide = printed(encoding, 140)
    print_comparison(wide, made("compare.temperatures=4"), Path("c"), Path("c/a"), None)
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


def looked_at(**changes: Any) -> LabelReport:
    numbers = {"differing": 0.25, "entropy": 0.5, "saturated": 0.1, "touched": 1.0, "suspected": 300}
    return LabelReport(**{
        "run": "checkpoints/a", "kind": "instance", "rows": 1200, "classes": 3, **numbers,
        "confusions": (Confusion("[red]x[/red]", "ä\nb", 0.25, 1234),),
        "suspects": (Suspect(1234567, "a/=[b]/ä.png", "[red]x[/red]", "ä\nb", 0.9876, 0.01234, "truth"),),
        "judged": Judged(0.3, 0.95, None, None, 0.7, 0.9),
        "files": {"contact_sheet": "checkpoints/a/figures/suspected_errors.png"},
        "notes": ("one thing was left out",),
        **changes,
    })  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("width", [80, 140])
def test_the_tables_of_learned_labels(encoding: str, width: int) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, errors="backslashreplace", write_through=True)
    print_labels(Console(file=stream, width=width), looked_at())
    text = raw.getvalue().decode(encoding)
    assert "checkpoints/a: labels of 1,200 images, 3 classes, mean over the last epochs: 25.0 % differ" in text
    assert "planted noise: labels right 70.0 -> 90.0 %" in text
    for word in ("[red]x[/red]", "1234567", "0.2500", "1,234", "0.988", "0.012", "truth", "1 of 300"):
        assert word in text
    assert "contact sheet: checkpoints/a/figures/suspected_errors.png\nnote: one thing was left out\n" in text
    assert "…" not in text
    if encoding == "utf-8" and width == 140:
        assert "ä\\nb" in text
        assert "a/=[b]/ä.png" in text


def test_learned_labels_without_truth_files_or_images() -> None:
    raw, narrow = printed("utf-8", 80)
    print_labels(narrow, looked_at(judged=None, suspects=(Suspect(7, "", "a", "b", 0.9, 0.1),)))
    text = raw.getvalue().decode()
    assert not any(word in text for word in ("true", "file", "planted"))
    raw, narrow = printed("utf-8", 80)
    confusions = (Confusion("a", "b", 0.25, None),)
    print_labels(narrow, looked_at(kind="class", rows=3, confusions=confusions, suspects=(), suspected=0))
    text = raw.getvalue().decode()
    assert "labels of 3 classes" in text
    assert not any(word in text for word in ("suspected label errors", "Suspected", "Confidence"))


def test_scores_of_suspected_errors() -> None:
    raw, wide = printed("utf-8", 200)
    print_labels(wide, looked_at(judged=Judged(0.3, None, 0.0, 0.0, 0.7, 0.7)))
    expected = "30.0 % of the given labels are wrong; suspected ones: precision - %, recall 0.0 %, F1 0.0 %"
    assert expected in raw.getvalue().decode()


def test_long_paths_leave_the_numbers_whole() -> None:
    raw, narrow = printed("utf-8", 80)
    long = tuple(Suspect(1234567, "folder/" * 20 + f"{k}.png", "a" * 40, "b" * 40, 0.9876, 0.01234) for k in range(2))
    print_labels(narrow, looked_at(suspects=long))
    text = raw.getvalue().decode()
    assert text.count("1234567") == text.count("0.988") == text.count("0.012") == 2
    assert "…" not in text


def test_learned_labels_against_another_network() -> None:
    told = []
    for numbers in ((0.123, 0.04, 6, "a.png", ""), (None, None, 6, None, "the other network confuses nothing")):
        wide = Console(file=io.StringIO(), width=200)
        print_labels(wide, looked_at(relation=RelationReport("runs/b", *numbers)))
        told.append(next(line for line in wide.file.getvalue().splitlines() if "runs/b" in line))
    before = "what the labels hold alike, against what runs/b confuses: "
    assert told == [
        f"{before}rank correlation 0.12 over 6 pairs of classes, p = 0.04; a.png",
        f"{before}no correlation: the other network confuses nothing",
    ]
