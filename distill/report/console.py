"""What the commands print at their end. No torch."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from distill.report.comparison import Comparison
from distill.report.comparison_folder import PAGE
from distill.report.comparison_table import rich_table, shown_verdicts, unfinished_lines
from distill.report.label_report import LabelReport, RelationReport, printable
from distill.report.labels import Judged
from distill.report.runs import Run

# Without a terminal there is no width to keep to: a log should hold whole words.
_WIDE = 140
_COLUMNS = ("stage", "test %", "NLL", "ECE %", "valid %", "best (epoch)", "labels right %")  # 80 columns hold them
_CAPTION = (
    "Accuracy, NLL and ECE on the test part and accuracy on validation, after the last epoch; test accuracy of the "
    "epoch that validation chose; share of the training labels that are true, given -> "
    "learned, or, where nobody knows, that moved."
)

_SCALED = (
    "Test part, last epoch. Scaled: logits divided by the temperature, which makes the validation images' NLL least."
)
_MASS = "Mass: mean probability that labels given as the first class have learned for the second."
_SUSPECTED = "Suspected: images given as the first whose likeliest class is the second."
_CONFIDENCE = "Confidence: probability of the learned class. Keeps: what the given class keeps."


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDE)


def print_runs(console: Console, runs: Sequence[Run], next_commands: Sequence[str]) -> None:
    """Results of finished runs, where they lie, and what to try next."""
    table = Table(*_COLUMNS, caption=_CAPTION, caption_justify="left")
    for run in runs:
        for stage, record in run.record.stages.items():
            if "test_accuracy" in record.metrics:
                table.add_row(stage, *_cells(record.metrics))
    if table.row_count:
        console.print(table)
    for run in runs:
        _line(console, f"{run.record.kind}: {run.folder}")
    _next(console, next_commands)


def print_comparison(
    console: Console, comparison: Comparison, folder: Path, example: Path | None, picture: Path | None
) -> None:
    """The table, the verdicts, what is missing, the picture, the folders and the next commands."""
    # What the encoding lacks would be printed as a longer escape, out of line.
    console.print(rich_table(comparison, plus_minus="±" if console.encoding.startswith("utf") else "+-"))
    for sentence in shown_verdicts(comparison):
        _line(console, sentence)
    for line in unfinished_lines(comparison):
        _line(console, line)
    if picture is not None:
        _line(console, f"suspected label errors (picture): {picture}")
    _line(console, f"comparison: {folder}")
    _line(console, f"report: {folder / PAGE}")
    if example is None:
        return
    _line(console, f"run folder: {example}")
    next_command = f"distill student --teacher {example} --model resnet20 -T 2"
    if not comparison.recipe.compare.students:
        next_command = f"distill export --teacher {example}"
    _next(console, [next_command, f"distill verify {example}"])


def print_scaling(console: Console, networks: Sequence[Mapping[str, Any]]) -> None:
    """Temperature, NLL and ECE before and after it, a line for each network."""
    table = Table("run", "temperature", "NLL", "scaled", "ECE %", "scaled", caption=_SCALED, caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for found in networks:
        nll = [f"{found[name]:.3f}" if name in found else "-" for name in ("test_nll", "test_nll_scaled")]
        ece = [_percent(found, name) for name in ("test_ece", "test_ece_scaled")]
        table.add_row(_name(found["run"]), f"{found['scaling_temperature']:.3f}", *nll, *ece)
    console.print(table)


def print_labels(console: Console, report: LabelReport) -> None:
    """What a teacher's labels have learned: a line, the confused classes, the suspected images, where the files lie."""
    what = "images" if report.kind == "instance" else "classes"
    _line(
        console,
        f"{report.run}: labels of {report.rows:,} {what}, {report.classes:,} classes, mean over the last epochs: "
        f"{_share(report.differing)} % differ from the given ones, entropy {report.entropy:.3f} nats, "
        f"{_share(report.saturated)} % saturated, {_share(report.touched)} % updated",
    )
    if report.judged is not None:
        _line(console, _judgement(report.judged))
    if report.confusions:
        console.print(_confusions(report))
        console.print(_MASS if report.kind == "class" else f"{_MASS} {_SUSPECTED}", highlight=False)
    if report.suspects:
        console.print(_suspects(report))
        console.print(_CONFIDENCE, highlight=False)
    if (found := report.relation) is not None:
        _line(console, f"what the labels hold alike, against what {found.other} confuses: {_correlation(found)}")
    for name, path in report.files.items():
        _line(console, f"{name.replace('_', ' ')}: {path}")
    for note in report.notes:
        _line(console, f"note: {printable(note)}")


def _correlation(found: RelationReport) -> str:
    if found.correlation is None:
        return f"no correlation: {found.missing}"
    return (
        f"rank correlation {found.correlation:.2f} over {found.pairs:,} pairs of classes, p = {found.p_value:.2g}; "
        f"{found.picture}"
    )


def _judgement(judged: Judged) -> str:
    right = f"labels right {_share(judged.right_before)} -> {_share(judged.right_after)} %"
    if judged.recall is None:
        return f"planted noise: {right}"
    scores = [("precision", judged.precision), ("recall", judged.recall), ("F1", judged.f1)]
    suspected = ", ".join(f"{name} {_share(value)} %" for name, value in scores)
    return (
        f"planted noise: {_share(judged.wrong)} % of the given labels are wrong; suspected ones: {suspected}; {right}"
    )


def _confusions(report: LabelReport) -> Table:
    images = report.kind == "instance"
    table = Table("given", "learned", title="most confused classes")
    for header in ("mass", *(("suspected",) if images else ())):
        table.add_column(header, justify="right")
    for pair in report.confusions:
        numbers = [f"{pair.mass:.4f}", *([f"{pair.images:,}"] if images else [])]
        table.add_row(_name(pair.given), _name(pair.learned), *numbers)
    return table


def _suspects(report: LabelReport) -> Table:
    paths = any(suspect.path for suspect in report.suspects)
    truth = any(suspect.true is not None for suspect in report.suspects)
    title = f"suspected label errors: {len(report.suspects):,} of {report.suspected:,}, the most confident first"
    table = Table(title=title)
    table.add_column("image", justify="right", no_wrap=True)
    for header in (*(("file",) if paths else ()), "given", "learned"):
        table.add_column(header, overflow="fold")
    for header in ("confidence", "keeps"):
        table.add_column(header, justify="right", no_wrap=True)
    if truth:
        table.add_column("true", overflow="fold")
    for suspect in report.suspects:
        file = [_name(suspect.path)] if paths else []
        true = [_name(suspect.true or "")] if truth else []
        shares = [f"{suspect.confidence:.3f}", f"{suspect.given_probability:.3f}"]
        table.add_row(str(suspect.index), *file, _name(suspect.given), _name(suspect.learned), *shares, *true)
    return table


def _name(text: str) -> Text:
    """As it is, whatever rich would make of it."""
    return Text(printable(text))


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _next(console: Console, commands: Sequence[str]) -> None:
    commands = [command.replace("distill ", f"{_program()} ", 1) for command in commands]
    _line(console, "next:" if len(commands) > 1 else "next: " + commands[0])
    if len(commands) > 1:
        for command in commands:
            _line(console, f"  {command}")


def _program() -> str:
    """As it was called, where a bare `distill` would not be found: commands are there to be copied."""
    if shutil.which("distill"):
        return "distill"
    called = Path(sys.argv[0])
    return f"{sys.executable} -m distill" if called.name == "__main__.py" else str(called)


def _line(console: Console, text: str) -> None:
    """Paths and commands are printed whole, to be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _cells(metrics: Mapping[str, float]) -> tuple[str, ...]:
    best = _percent(metrics, "best_test_accuracy")
    if "best_epoch" in metrics:
        best += f" ({metrics['best_epoch']:.0f})"
    labels = _percent(metrics, "given_right")
    if "labels_right" in metrics:
        labels += f" -> {_percent(metrics, 'labels_right')}"
    elif "labels_moved" in metrics:
        labels = f"{_percent(metrics, 'labels_moved')} moved"
    return (
        _percent(metrics, "test_accuracy"),
        f"{metrics['test_nll']:.3f}" if "test_nll" in metrics else "-",
        _percent(metrics, "test_ece"),
        _percent(metrics, "validation_accuracy"),
        best,
        labels,
    )


def _percent(metrics: Mapping[str, float], name: str) -> str:
    return f"{100 * metrics[name]:.1f}" if name in metrics else "-"
