"""What a comparison is told in: rows of the table, the students that were chosen, differences of pairs. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from distill.recipe.grid import shortest
from distill.report.results import CellResult
from distill.report.stats import Paired

Network: TypeAlias = Literal["teacher", "student"]


class Choice(NamedTuple):
    """What validation chooses among, as the grid names it."""

    loss: str
    temperature: float | None = None
    weight: float | None = None

    @property
    def words(self) -> str:
        """Without the temperature: `kd`, `kd, w 0.5`."""
        return self.loss if self.weight is None else f"{self.loss}, w {shortest(self.weight)}"


@dataclass(frozen=True)
class Arm:
    """One teacher and the student that was chosen for it, at one seed. Metrics are those of run.json."""

    rule: str  # the arm's name
    seed: int
    temperature: float | None  # of the student, chosen on validation; None: its loss has none
    teacher: Mapping[str, float]
    student: Mapping[str, float]
    weight: float | None = None  # of the student's loss, chosen too; None: its own


@dataclass(frozen=True)
class Row:
    """One network of one arm, or a control, over its finished seeds."""

    name: str
    network: Network
    results: Mapping[int, CellResult]  # by seed
    planned: int  # seeds
    control: bool = False
    choice: str = ""  # of a student: "T 4", "dkd, T 4, w 0.5"

    def values(self, metric: str) -> dict[int, float]:
        """By seed, where the metric is known and finite."""
        found = ((seed, result.metrics.get(metric)) for seed, result in self.results.items())
        return {seed: value for seed, value in found if value is not None and math.isfinite(value)}


@dataclass(frozen=True)
class Difference:
    """First less second, in one metric."""

    network: Network
    metric: str
    first: str
    second: str
    paired: Paired
    p_holm: float | None  # over the pairs of teachers; None for one seed, and for controls, which are in no family
    family: int  # pairs that Holm's correction is over; 0: none

    def record(self) -> dict[str, Any]:
        """For results.json."""
        found = self.paired.difference
        return {
            "network": self.network,
            "metric": self.metric,
            "first": self.first,
            "second": self.second,
            "seeds": list(self.paired.seeds),
            "mean": None if found is None else found.mean,
            "sd": None if found is None else found.sd,
            "interval": None if found is None else found.interval,
            "bootstrap": None if found is None else found.bootstrap,
            "p": self.paired.p,
            "p_holm": self.p_holm,
            "family": self.family,
            "detectable": self.paired.detectable,
        }
