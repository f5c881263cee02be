"""What the commands print at their end. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from distill.report.comparison import Comparison
from distill.report.runs import Run

_SHOWN = ("test_accuracy", "test_nll", "test_ece", "validation_accuracy", "best_test_accuracy", "best_epoch")


def print_runs(console: Console, runs: Sequence[Run], next_commands: Sequence[str]) -> None:
    """Results of finished runs, where they lie, and what to try next."""
    table = Table("stage", *[name.replace("_", " ") for name in _SHOWN], "given labels right", "learned labels right")
    for run in runs:
        for stage, record in run.record.stages.items():
            if "test_accuracy" in record.metrics:
                names = (*_SHOWN, "given_right", "labels_right")
                table.add_row(stage, *[_shown(name, record.metrics.get(name)) for name in names])
    if table.row_count:
        console.print(table)
    for run in runs:
        _line(console, f"{run.record.kind}: {run.folder}")
    _next(console, next_commands)


def print_comparison(
    console: Console, comparison: Comparison, folder: Path, example: Path, picture: Path | None
) -> None:
    """The table, the picture, the folders and the next three commands."""
    console.print(comparison.rich())
    if picture is not None:
        _line(console, f"suspected label errors (picture): {picture}")
    _line(console, f"comparison: {folder}")
    _line(console, f"run folder: {example}")
    _next(
        console,
        [
            f"distill student --teacher {example} --model resnet20 -T 2",
            f"distill verify {example}",
            "distill check recipes/fashion.toml",
        ],
    )


def _next(console: Console, commands: Sequence[str]) -> None:
    _line(console, "next:" if len(commands) > 1 else "next: " + commands[0])
    if len(commands) > 1:
        for command in commands:
            _line(console, f"  {command}")


def _line(console: Console, text: str) -> None:
    """Paths and commands are printed whole, to be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "best_epoch":
        return f"{value:.0f}"
    return f"{value:.3f}" if name.endswith("nll") else f"{100 * value:.1f} %"
