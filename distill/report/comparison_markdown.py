"""A comparison as Markdown: the table, verdicts, what is gained, the labels, the whole grid. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from distill.recipe.grid import UNTRAINED
from distill.report.comparison import MAIN, Comparison
from distill.report.comparison_parts import Row
from distill.report.comparison_table import (
    ANSWERS_CAPTION,
    CALIBRATED_CAPTION,
    COLUMNS,
    LABELS,
    Column,
    answer_headers,
    answer_lines,
    caption,
    choice_cells,
    choice_headers,
    gain,
    headers,
    lines,
    mean_of,
    scaled_headers,
    scaled_lines,
    seeds_of,
    unfinished_line,
)
from distill.report.stats import paired


def markdown(comparison: Comparison) -> str:
    """For a file: the table, the verdicts, the whole grid, what differs, what is missing."""
    taught = comparison.recipe.compare.students
    parts = [
        f"# {comparison.name}",
        _markdown(headers(comparison, taught=taught), lines(comparison, taught=taught), 2),
        f"{caption(comparison)} Program: commit {comparison.commit}. {_machines(comparison)}".rstrip(),
        _bullets("Verdicts", comparison.verdicts()),
        _gains(comparison),
        _scaled(comparison),
        _labels(comparison),
        _answers(comparison),
        _grid(comparison),
        _bullets("Arms", _assignments(comparison)),
        _bullets("Not finished", map(unfinished_line, comparison.unfinished)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _gains(comparison: Comparison) -> str:
    """What each arm gains over the reference in everything that is judged, last epoch against best epoch too."""
    name = comparison.reference
    head = ["labels", "network", *(column.header for column in COLUMNS), f"accuracy less best epoch of {name}"]

    def rows() -> Iterator[list[str]]:
        for row in comparison.rows:
            reference = comparison.row(name, row.network)
            if row is not reference:
                crossed = paired(row.values(MAIN), reference.values("best_test_accuracy"))
                each = [gain(comparison.against_reference(row, column.metric), column) for column in COLUMNS]
                yield [row.name, row.network, *each, gain(crossed)]

    text = f"## Less {name}\n\nPaired by seed, with 95 % intervals (Student's t). NLL and ECE are better where lower."
    return f"{text}\n\n{_markdown(head, rows(), 2)}" if any(rows()) else ""


def _scaled(comparison: Comparison) -> str:
    """How good probabilities are once they are as sure as they are right; "" where no temperature is known."""
    rows = list(scaled_lines(comparison))
    text = f"## After temperature scaling\n\n{CALIBRATED_CAPTION}"
    return f"{text}\n\n{_markdown(scaled_headers(comparison), iter(rows), 2)}" if rows else ""


def _labels(comparison: Comparison) -> str:
    """How many labels the teachers left right, and how good their suspicions are; "" where none learn."""
    head = ["labels", "given right %", "right %", "moved %", "precision %", "recall %"]
    learning = [row for row in comparison.rows if row.network == "teacher" and row.values("labels_moved")]
    rows = ([row.name, *(mean_of(row, Column("", name, 100, 1)) for name in LABELS)] for row in learning)
    text = (
        "## Labels\n\nOf the training images, after training. Precision: share of the moved labels that were wrong. "
        "Recall: share of the wrong ones that moved."
    )
    return f"{text}\n\n{_markdown(head, rows, 1)}" if learning else ""


def _answers(comparison: Comparison) -> str:
    """What the students were shown; "" where no export was measured."""
    rows = list(answer_lines(comparison))
    text = f"## The teachers' answers\n\n{ANSWERS_CAPTION}"
    return f"{text}\n\n{_markdown(answer_headers(comparison), iter(rows), 1)}" if rows else ""


def _grid(comparison: Comparison) -> str:
    """Every loss, temperature and weight of every arm, the chosen one marked; "" where there was nothing to choose."""
    compare = comparison.recipe.compare
    if not compare.students:
        return ""
    arms = [*compare.names, *([UNTRAINED] if compare.controls else [])]
    if all(len(comparison.grid(arm)) < 2 for arm in arms):
        return ""
    columns = (Column("", "validation_accuracy", 100, 1), COLUMNS[0], COLUMNS[1])

    def rows() -> Iterator[list[str]]:
        for arm in arms:
            for choice, results in comparison.grid(arm).items():
                row = Row(arm, "student", results, len(comparison.seeds))
                mark = " *" if choice == comparison.chosen(arm) else ""
                named = [f"{arm}{mark}", *choice_cells(comparison, choice), seeds_of(row)]
                yield [*named, *(mean_of(row, column) for column in columns)]

    head = ["labels", *choice_headers(comparison), "seeds", "validation %", "accuracy %", "best epoch %"]
    return f"## The whole grid of students\n\nThe chosen ones are marked.\n\n{_markdown(head, rows(), 2)}"


def _assignments(comparison: Comparison) -> Iterator[str]:
    compare = comparison.recipe.compare
    for name in compare.arms:
        yield f"{name}: " + (", ".join(f"`{text}`" for text in compare.assignments(name)) or "the recipe as it is")


def _machines(comparison: Comparison) -> str:
    found = {result.provenance["machine"].get("device", "") for result in comparison.results if result.provenance}
    return f"Computed on {'; '.join(sorted(filter(None, found)))}." if found else ""


def _markdown(head: Sequence[str], rows: Iterator[list[str]], left: int) -> str:
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def _bullets(title: str, items: Iterator[str] | Sequence[str] | Mapping[str, str] | map[str]) -> str:
    found = [f"- {item}" for item in items]
    return "\n".join([f"## {title}", "", *found]) if found else ""
