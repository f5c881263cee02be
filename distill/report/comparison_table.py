"""A comparison as tables: for the terminal, as Markdown, as CSV. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from distill.recipe.grid import UNTRAINED, shortest
from distill.report.comparison import JUDGED, MAIN, Comparison, Row
from distill.report.results import CellResult
from distill.report.stats import Paired, Summary, paired, summary

_SHOWN_VERDICTS = 12  # in the terminal; the file has them all


@dataclass(frozen=True)
class Column:
    """A metric as a column of numbers."""

    header: str
    metric: str
    scale: float
    digits: int


COLUMNS = (
    Column("accuracy %", "test_accuracy", 100, 1),
    Column("best epoch %", "best_test_accuracy", 100, 1),
    Column("NLL", "test_nll", 1, 3),
    Column("ECE %", "test_ece", 100, 1),
)
TAUGHT = (Column("agreement %", "agreement", 100, 1), Column("KL to teacher", "teacher_kl", 1, 3))
LABELS = ("given_right", "labels_right", "labels_moved", "suspects_precision", "suspects_recall")
_CSV = (*COLUMNS, *TAUGHT, *(Column(name, name, 1, 6) for name in LABELS))


def headers(comparison: Comparison, *, taught: bool) -> list[str]:
    """Of the table; `taught`: with how near students are to their teachers."""
    more = [column.header for column in TAUGHT] if taught else []
    numbers = [*(column.header for column in COLUMNS), *more]
    return ["labels", "network", "seeds", *numbers, "labels right %", f"accuracy less {comparison.reference}"]


def lines(comparison: Comparison, *, taught: bool) -> Iterator[list[str]]:
    """The cells of the table, a row at a time; the second network of an arm has no name before it."""
    columns = (*COLUMNS, *TAUGHT) if taught else COLUMNS
    before = ""
    for row in comparison.rows:
        numbers = [_number(row, column) for column in columns]
        name = "" if row.name == before else f"{row.name} (control)" if row.control else row.name
        network = f"{row.network}, {row.choice}" if row.choice else row.network
        less = _less(comparison.against_reference(row))
        yield [name, network, _seeds(row), *numbers, _labels_right(row), less]
        before = row.name


def caption(comparison: Comparison) -> str:
    """What the numbers are."""
    seeds = comparison.seeds
    several = f"mean and half of the 95 % interval (Student's t) over {len(seeds)} seeds"
    over = several if len(seeds) > 1 else f"one seed ({seeds[0]}), so no interval can be given"
    text = (
        f"Test part, {over}. Accuracy, NLL and ECE after the last epoch; 'best epoch' is the test accuracy of the "
        "epoch that validation chose. Labels right: share of the training labels that are true, given -> learned."
    )
    if comparison.recipe.compare.students:
        text += " Validation chose each teacher's temperature and loss."
    less = f" Less {comparison.reference}: accuracy in points"
    return text + (f"{less}, paired by seed, with its 95 % interval." if len(seeds) > 1 else f"{less}.")


def rich_table(comparison: Comparison, plus_minus: str = "±") -> Table:
    """For the terminal; `plus_minus` is the sign before half an interval."""
    table = Table(
        *headers(comparison, taught=False),
        title=comparison.name,
        caption=caption(comparison),
        caption_justify="left",
    )
    for column in table.columns[2:]:
        column.justify = "right"
    rows = list(lines(comparison, taught=False))
    for line, after in zip(rows, [*rows[1:], ["end"]], strict=True):
        table.add_row(*[cell.replace("±", plus_minus) for cell in line], end_section=after[0] != "")
    return table


def shown_verdicts(comparison: Comparison) -> list[str]:
    """The verdicts that are worth the terminal's room."""
    found = comparison.verdicts()
    more = len(found) - _SHOWN_VERDICTS
    return found if more <= 0 else [*found[:_SHOWN_VERDICTS], f"and {more} more in table.md"]


def unfinished_lines(comparison: Comparison) -> list[str]:
    """What failed, and how many cells were not run, for the terminal."""
    failed = [unfinished_line(result) for result in comparison.unfinished if result.state == "failed"]
    missing = len(comparison.unfinished) - len(failed)
    return [*failed, *([f"{missing} cells of {len(comparison.results)} were not run (table.md)"] if missing else [])]


def markdown(comparison: Comparison) -> str:
    """For a file: the table, the verdicts, the whole grid, what differs, what is missing."""
    taught = comparison.recipe.compare.students
    parts = [
        f"# {comparison.name}",
        _markdown(headers(comparison, taught=taught), lines(comparison, taught=taught), 2),
        f"{caption(comparison)} Program: commit {comparison.commit}. {_machines(comparison)}".rstrip(),
        _bullets("Verdicts", comparison.verdicts()),
        _gains(comparison),
        _labels(comparison),
        _grid(comparison),
        _bullets("Arms", _assignments(comparison)),
        _bullets("Not finished", map(unfinished_line, comparison.unfinished)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def csv_text(comparison: Comparison) -> str:
    """One line for each row of the table, with every bound as a number of its own."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    bounds = ("mean", "t_low", "t_high", "bootstrap_low", "bootstrap_high")
    names = [f"{column.metric}_{bound}" for column in _CSV for bound in bounds]
    names += [f"{metric}_less_reference_{bound}" for metric in JUDGED for bound in bounds]
    writer.writerow(["labels", "network", "control", "choice", "seeds", *names])
    for row in comparison.rows:
        numbers = [number for column in _CSV for number in _bounds(_summary(row, column.metric))]
        for metric in JUDGED:
            less = comparison.against_reference(row, metric)
            numbers += _bounds(None if less is None else less.difference)
        seeds = " ".join(map(str, sorted(row.results)))
        writer.writerow([row.name, row.network, int(row.control), row.choice, seeds, *numbers])
    return file.getvalue()


def unfinished_line(result: CellResult) -> str:
    """`cell 3, teacher instance, seed 1: failed: ...`."""
    reason = "not run" if result.reason == "not run" else f"{result.state}: {result.reason}"
    return f"cell {result.cell.number}, {result.cell}: {reason}"


def _summary(row: Row, metric: str) -> Summary | None:
    values = row.values(metric)
    return summary(list(values.values())) if values else None


def _number(row: Row, column: Column) -> str:
    found = _summary(row, column.metric)
    if found is None:
        return "-"
    mean = f"{column.scale * found.mean:.{column.digits}f}"
    return mean if found.half is None else f"{mean} ± {column.scale * found.half:.{column.digits}f}"


def _seeds(row: Row) -> str:
    return str(row.planned) if len(row.results) == row.planned else f"{len(row.results)} of {row.planned}"


def _labels_right(row: Row) -> str:
    if row.network == "student":
        return ""
    before, after = (_number(row, Column("", name, 100, 1)) for name in ("given_right", "labels_right"))
    if after == "-":
        return "-" if before == "-" else f"{_mean(row, 'given_right')} (fixed)"
    return f"{_mean(row, 'given_right')} -> {after} ({_mean(row, 'labels_moved')} moved)"


def _mean(row: Row, metric: str) -> str:
    found = _summary(row, metric)
    return "-" if found is None else f"{100 * found.mean:.1f}"


def _less(found: Paired | None, column: Column = COLUMNS[0]) -> str:
    if found is None or found.difference is None:
        return "" if found is None else "-"
    mean = f"{column.scale * found.difference.mean:+.{column.digits}f}"
    if found.difference.interval is None:
        return mean
    low, high = (f"{column.scale * bound:.{column.digits}f}" for bound in found.difference.interval)
    return f"{mean} ({low} to {high})"


def _bounds(found: Summary | None) -> list[float | str]:
    if found is None:
        return [""] * 5
    pairs = [interval or ("", "") for interval in (found.interval, found.bootstrap)]
    return [found.mean, *pairs[0], *pairs[1]]


def _markdown(head: Sequence[str], rows: Iterator[list[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _bullets(title: str, items: Iterator[str] | Sequence[str] | Mapping[str, str] | map[str]) -> str:
    found = [f"- {item}" for item in items]
    return "\n".join([f"## {title}", "", *found]) if found else ""


def _assignments(comparison: Comparison) -> Iterator[str]:
    compare = comparison.recipe.compare
    for name in compare.arms:
        yield f"{name}: " + (", ".join(f"`{text}`" for text in compare.assignments(name)) or "the recipe as it is")


def _gains(comparison: Comparison) -> str:
    """What each arm gains over the reference in everything that is judged, last epoch against best epoch too."""
    name = comparison.reference
    head = ["labels", "network", *(column.header for column in COLUMNS), f"accuracy less best epoch of {name}"]

    def rows() -> Iterator[list[str]]:
        for row in comparison.rows:
            reference = comparison.row(name, row.network)
            if row is not reference:
                crossed = paired(row.values(MAIN), reference.values("best_test_accuracy"))
                each = [_less(comparison.against_reference(row, column.metric), column) for column in COLUMNS]
                yield [row.name, row.network, *each, _less(crossed)]

    text = f"## Less {name}\n\nPaired by seed, with 95 % intervals (Student's t). NLL and ECE are better where lower."
    return f"{text}\n\n{_markdown(head, rows(), 2)}" if any(rows()) else ""


def _labels(comparison: Comparison) -> str:
    """How many labels the teachers left right, and how good their suspicions are; "" where none learn."""
    head = ["labels", "given right %", "right %", "moved %", "precision %", "recall %"]
    learning = [row for row in comparison.rows if row.network == "teacher" and row.values("labels_right")]
    rows = ([row.name, *(_number(row, Column("", name, 100, 1)) for name in LABELS)] for row in learning)
    text = (
        "## Labels\n\nOf the training images, after training. Precision: share of the moved labels that were wrong. "
        "Recall: share of the wrong ones that moved."
    )
    return f"{text}\n\n{_markdown(head, rows, 1)}" if learning else ""


def _grid(comparison: Comparison) -> str:
    """Every loss and temperature of every arm, the chosen one marked; "" where there was nothing to choose."""
    compare = comparison.recipe.compare
    if not compare.students:
        return ""
    arms = [*compare.names, *([UNTRAINED] if compare.controls else [])]
    if all(len(comparison.grid(arm)) < 2 for arm in arms):
        return ""
    columns = (Column("", "validation_accuracy", 100, 1), COLUMNS[0], COLUMNS[1])

    def rows() -> Iterator[list[str]]:
        for arm in arms:
            for (loss, temperature), results in comparison.grid(arm).items():
                row = Row(arm, "student", results, len(comparison.seeds))
                mark = " *" if (loss, temperature) == comparison.chosen(arm) else ""
                at = "-" if temperature is None else shortest(temperature)
                yield [f"{arm}{mark}", loss, at, _seeds(row), *(_number(row, column) for column in columns)]

    head = ["labels", "loss", "T", "seeds", "validation %", "accuracy %", "best epoch %"]
    return f"## The whole grid of students\n\nThe chosen ones are marked.\n\n{_markdown(head, rows(), 2)}"


def _machines(comparison: Comparison) -> str:
    found = {result.provenance["machine"].get("device", "") for result in comparison.results if result.provenance}
    return f"Computed on {'; '.join(sorted(filter(None, found)))}." if found else ""
