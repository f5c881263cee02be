"""A comparison as a table: for the terminal and as CSV, and the cells that other tables are made of. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from distill.recipe.grid import shortest
from distill.report.comparison import JUDGED, SCALED, Comparison
from distill.report.comparison_parts import Choice, Row
from distill.report.results import NOT_RUN, CellResult
from distill.report.stats import Paired, Summary, summary

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
CALIBRATED = (
    Column("temperature", "scaling_temperature", 1, 2),
    Column("NLL", "test_nll_scaled", 1, 3),
    Column("ECE %", "test_ece_scaled", 100, 1),
)
CALIBRATED_CAPTION = (
    "Test part, last epoch, logits divided by the one temperature that makes the NLL of the validation images least "
    "(arXiv 1706.04599). A network that learned from soft labels is less sure than it is right, one that learned wrong "
    "labels by heart surer; so little mends that, and accuracy stays. Seeds: those with a temperature. Means, with "
    "several seeds halves of 95 % intervals; differences paired by seed (Student's t), better where lower."
)
TAUGHT = (Column("agreement %", "agreement", 100, 1), Column("KL to teacher", "teacher_kl", 1, 3))
LABELS = ("given_right", "labels_right", "labels_moved", "suspects_precision", "suspects_recall")
ANSWERS = (
    Column("entropy, nats", "answers_entropy", 1, 3),
    Column("right %", "answers_right", 100, 1),
    Column("wrong labels repeated %", "answers_repeated", 100, 1),
    Column("class separation", "answers_separation", 1, 3),
)
ANSWERS_CAPTION = (
    "Of each teacher's answers on the images that its students train on, at temperature 1: mean entropy; share whose "
    "likeliest class is the true one; of the images that were given a wrong label, the share that is still answered "
    "with it; class separation, 1 - (mean cosine distance within a class) / (mean cosine distance) of centred logits "
    "(arXiv 2010.16402): near 1 where classes are tight, so that an answer says little beyond its class. Then the "
    "chosen student's accuracy on test, how often its likeliest class was its teacher's in its last epoch, and the KL "
    "divergence of the teacher's answers from its own there, in nats. Means and halves of 95 % intervals."
)
_CSV = (*COLUMNS, *CALIBRATED, *TAUGHT, *ANSWERS, *(Column(name, name, 1, 6) for name in LABELS))


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
        numbers = [mean_of(row, column) for column in columns]
        name = "" if row.name == before else f"{row.name} (control)" if row.control else row.name
        network = f"{row.network}, {row.choice}" if row.choice else row.network
        less = gain(comparison.against_reference(row))
        yield [name, network, seeds_of(row), *numbers, _labels_right(row), less]
        before = row.name


def _answers(comparison: Comparison) -> tuple[Column, ...]:
    """The measures that any teacher has: wrong labels are repeated only where there are some."""
    rows = [row for row in comparison.rows if row.network == "teacher"]
    return tuple(column for column in ANSWERS if any(row.values(column.metric) for row in rows))


def answer_headers(comparison: Comparison) -> list[str]:
    """Of the table of the teachers' answers."""
    taught = (
        [f"student's {column.header}" for column in (COLUMNS[0], *TAUGHT)] if comparison.recipe.compare.students else []
    )
    return ["labels", *(column.header for column in _answers(comparison)), *taught]


def answer_lines(comparison: Comparison) -> Iterator[list[str]]:
    """What each teacher answers, and its chosen student; teachers whose exports were not measured are left out."""
    columns = _answers(comparison)
    for row in comparison.rows:
        if row.network == "teacher" and any(row.values(column.metric) for column in columns):
            name = f"{row.name} (control)" if row.control else row.name
            own = [mean_of(row, column) for column in columns]
            if comparison.recipe.compare.students:
                student = comparison.row(row.name, "student")
                own += [mean_of(student, column) for column in (COLUMNS[0], *TAUGHT)]
            yield [name, *own]


def scaled_headers(comparison: Comparison) -> list[str]:
    """Of the table of scores after temperature scaling."""
    less = [f"{column.header} less {comparison.reference}" for column in CALIBRATED[1:]]
    return ["labels", "network", "seeds", *(column.header for column in CALIBRATED), *less]


def scaled_lines(comparison: Comparison) -> Iterator[list[str]]:
    """A line for each network that a temperature was fitted for."""
    for row in comparison.rows:
        if count := len(row.values(CALIBRATED[0].metric)):
            name = f"{row.name} (control)" if row.control else row.name
            own = [mean_of(row, column) for column in CALIBRATED]
            less = [gain(comparison.against_reference(row, column.metric), column) for column in CALIBRATED[1:]]
            yield [name, row.network, _of_planned(count, row), *own, *less]


def caption(comparison: Comparison) -> str:
    """What the numbers are."""
    seeds = comparison.seeds
    several = f"mean and half of the 95 % interval (Student's t) over {len(seeds)} seeds"
    over = several if len(seeds) > 1 else f"one seed ({seeds[0]}), so no interval can be given"
    text = (
        f"Test part, {over}. Accuracy, NLL and ECE after the last epoch; 'best epoch' is the test accuracy of the "
        "epoch that validation chose. Labels right: share of the training labels that are true, given -> learned"
    )
    text += ", or, where nobody knows, that moved." if any(map(_only_moved, comparison.rows)) else "."
    if comparison.recipe.compare.students:
        weighed = comparison.recipe.compare.weights
        text += f" Validation chose each teacher's temperature{', loss and weight' if weighed else ' and loss'}."
    less = f" Less {comparison.reference}: accuracy in points"
    return text + (f"{less}, paired by seed, with its 95 % interval." if len(seeds) > 1 else f"{less}.")


def choice_headers(comparison: Comparison) -> list[str]:
    """Of the columns that tell the students of one teacher apart; weights have one where the grid has any."""
    return ["loss", "T", *(["weight"] if comparison.recipe.compare.weights else [])]


def choice_cells(comparison: Comparison, choice: Choice) -> list[str]:
    """What these columns hold; "-" where a loss has no such number."""
    numbers = [choice.temperature, *([choice.weight] if comparison.recipe.compare.weights else [])]
    return [choice.loss, *("-" if number is None else shortest(number) for number in numbers)]


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
    """What failed or is damaged, and how many cells were not run, for the terminal."""
    told = [unfinished_line(result) for result in comparison.unfinished if result.reason != NOT_RUN]
    missing = len(comparison.unfinished) - len(told)
    return [*told, *([f"{missing} cells of {len(comparison.results)} were not run (table.md)"] if missing else [])]


def csv_text(comparison: Comparison) -> str:
    """One line for each row of the table, with every bound as a number of its own."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    bounds = ("mean", "t_low", "t_high", "bootstrap_low", "bootstrap_high")
    names = [f"{column.metric}_{bound}" for column in _CSV for bound in bounds]
    names += [f"{metric}_less_reference_{bound}" for metric in (*JUDGED, *SCALED) for bound in bounds]
    writer.writerow(["labels", "network", "control", "choice", "seeds", *names])
    for row in comparison.rows:
        numbers = [number for column in _CSV for number in _bounds(_summary(row, column.metric))]
        for metric in (*JUDGED, *SCALED):
            less = comparison.against_reference(row, metric)
            numbers += _bounds(None if less is None else less.difference)
        seeds = " ".join(map(str, sorted(row.results)))
        writer.writerow([row.name, row.network, int(row.control), row.choice, seeds, *numbers])
    return file.getvalue()


def unfinished_line(result: CellResult) -> str:
    """`cell 3, teacher instance, seed 1: failed: ...`."""
    reason = NOT_RUN if result.reason == NOT_RUN else f"{result.state}: {result.reason}"
    return f"cell {result.cell.number}, {result.cell}: {reason}"


def _summary(row: Row, metric: str) -> Summary | None:
    values = row.values(metric)
    return summary(list(values.values())) if values else None


def mean_of(row: Row, column: Column) -> str:
    """`86.1 ± .4`: mean and half of the interval over the seeds; "-" where nothing is known."""
    found = _summary(row, column.metric)
    if found is None:
        return "-"
    mean = f"{column.scale * found.mean:.{column.digits}f}"
    return mean if found.half is None else f"{mean} ± {column.scale * found.half:.{column.digits}f}"


def seeds_of(row: Row) -> str:
    """`5`, or `3 of 5`."""
    return _of_planned(len(row.results), row)


def _of_planned(count: int, row: Row) -> str:
    return str(count) if count == row.planned else f"{count} of {row.planned}"


def _labels_right(row: Row) -> str:
    if row.network == "student":
        return ""
    before, after = (mean_of(row, Column("", name, 100, 1)) for name in ("given_right", "labels_right"))
    if after == "-":
        if before == "-":
            return f"{_mean(row, 'labels_moved')} moved" if _only_moved(row) else "-"
        return f"{_mean(row, 'given_right')} (fixed)"
    return f"{_mean(row, 'given_right')} -> {after} ({_mean(row, 'labels_moved')} moved)"


def _only_moved(row: Row) -> bool:
    """Whether all that is known of a teacher's learned labels is how many moved, as nobody knows the truth."""
    return row.network == "teacher" and not row.values("given_right") and bool(row.values("labels_moved"))


def _mean(row: Row, metric: str) -> str:
    found = _summary(row, metric)
    return "-" if found is None else f"{100 * found.mean:.1f}"


def gain(found: Paired | None, column: Column = COLUMNS[0]) -> str:
    """`+1.2 (0.8 to 1.6)`; "" for the reference itself, "-" where no seed is in common."""
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
