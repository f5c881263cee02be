"""The table of a comparison of teachers. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

HEADERS = ("labels", "network", "accuracy %", "best epoch %", "NLL", "ECE %", "labels right %")


@dataclass(frozen=True)
class Arm:
    """One teacher and its student, at one seed. Metrics are those of run.json."""

    rule: str
    seed: int
    temperature: float | None  # of the student, chosen on validation; None: its loss has none
    teacher: Mapping[str, float]
    student: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """All arms, and the commit of the program that trained them."""

    name: str
    commit: str
    arms: tuple[Arm, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the recipe."""
        return tuple(dict.fromkeys(arm.seed for arm in self.arms))

    def rows(self) -> Iterator[tuple[str, ...]]:
        """Two rows a rule: teacher, student. Mean over the seeds, with the standard deviation if there are several."""
        for rule in dict.fromkeys(arm.rule for arm in self.arms):
            arms = [arm for arm in self.arms if arm.rule == rule]
            yield (rule, "teacher", *_scores([arm.teacher for arm in arms]), _labels_right(arms))
            temperatures = "/".join(sorted({f"{arm.temperature:g}" for arm in arms if arm.temperature is not None}))
            student = f"student, T {temperatures}" if temperatures else "student"
            yield ("", student, *_scores([arm.student for arm in arms]), "")

    def caption(self) -> str:
        """What the numbers are."""
        several = f"mean and standard deviation over {len(self.seeds)} seeds"
        over = several if len(self.seeds) > 1 else f"one seed ({self.seeds[0]}), so no interval can be given"
        return (
            f"Test part, {over}. Accuracy, NLL and ECE after the last epoch; 'best epoch' is the test accuracy of the "
            "epoch that validation chose. Labels right: share of the training labels that are true, given -> learned."
        )

    def rich(self, plus_minus: str = "±") -> Table:
        """For the terminal; `plus_minus` is the sign before a standard deviation."""
        table = Table(*HEADERS, title=self.name, caption=self.caption(), caption_justify="left")
        for column in table.columns[2:]:
            column.justify = "right"
        for row in self.rows():
            table.add_row(*[cell.replace("±", plus_minus) for cell in row], end_section=row[0] == "")
        return table

    def markdown(self) -> str:
        """For a file."""
        lines = [HEADERS, ("---", "---", *["---:"] * (len(HEADERS) - 2)), *self.rows()]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"# {self.name}\n\n{table}\n\n{self.caption()} Program: commit {self.commit}.\n"

    def record(self) -> dict[str, Any]:
        """For `--json`."""
        return {"name": self.name, "commit": self.commit, "arms": [dict(vars(arm)) for arm in self.arms]}


def _scores(runs: Sequence[Mapping[str, float]]) -> tuple[str, str, str, str]:
    return (
        _over_seeds([100 * run["test_accuracy"] for run in runs], 1),
        _over_seeds([100 * run["best_test_accuracy"] for run in runs if "best_test_accuracy" in run], 1),
        _over_seeds([run["test_nll"] for run in runs], 3),
        _over_seeds([100 * run["test_ece"] for run in runs], 1),
    )


def _labels_right(arms: Sequence[Arm]) -> str:
    before = _over_seeds([100 * arm.teacher["given_right"] for arm in arms], 1)
    after = [100 * arm.teacher["labels_right"] for arm in arms if "labels_right" in arm.teacher]
    return f"{before} -> {_over_seeds(after, 1)}" if after else f"{before} (fixed)"


def _over_seeds(values: Sequence[float], digits: int) -> str:
    if not values:
        return "-"
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean
