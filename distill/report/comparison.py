"""What a comparison's cells say: which student was chosen for each teacher, and what differs by how much. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean
from typing import Any

from distill.recipe.grid import ALONE, SMOOTHING, UNTRAINED, Cell, shortest
from distill.recipe.schema import Recipe
from distill.report.comparison_parts import Arm, Choice, Difference, Network, Row
from distill.report.results import CellResult
from distill.report.stats import Paired, holm, paired
from distill.report.verdicts import untold, verdict

JUDGED = ("test_accuracy", "best_test_accuracy", "test_nll", "test_ece")  # what pairs are compared in
SCALED = ("test_nll_scaled", "test_ece_scaled")  # and in these, where any network has them: earlier versions had not
MAIN = "test_accuracy"  # what verdicts are about: of the last epoch


@dataclass(frozen=True)
class Comparison:
    """All cells of a comparison, finished or not."""

    recipe: Recipe
    results: tuple[CellResult, ...]

    @property
    def name(self) -> str:
        """The recipe's."""
        return self.recipe.name

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.recipe.compare.first

    @cached_property
    def commit(self) -> str:
        """Of the program that trained the cells; several, where it was changed in between."""
        return ", ".join(sorted({r.provenance["commit"] for r in self.results if r.provenance})) or "unknown"

    @cached_property
    def judged(self) -> tuple[str, ...]:
        """The metrics that pairs are compared in."""
        return (*JUDGED, *(name for name in SCALED if any(name in result.metrics for result in self.results)))

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order of the recipe."""
        return self.recipe.compare.seeds

    @property
    def unfinished(self) -> list[CellResult]:
        """Failed and missing cells."""
        return [result for result in self.results if result.state != "finished"]

    @property
    def finished(self) -> frozenset[str]:
        """Keys of the finished cells."""
        return frozenset(result.cell.key for result in self.results if result.state == "finished")

    def grid(self, arm: str) -> dict[Choice, dict[int, CellResult]]:
        """The finished students of an arm, or of the untrained control, by what tells them apart, then by seed."""
        found: dict[Choice, dict[int, CellResult]] = {}
        for result in self.results:
            cell = result.cell
            if cell.kind == "student" and cell.arm == arm and cell.control in ("", UNTRAINED):
                here = found.setdefault(Choice(cell.loss, cell.temperature, cell.weight), {})
                if result.state == "finished":
                    here[cell.seed] = result
        return found

    def chosen(self, arm: str) -> Choice | None:
        """The best mean validation accuracy, ties to the lower temperature, then to the lower weight.

        Means are over the seeds at which all of them are finished, where there are such seeds.
        """
        found = {choice: by_seed for choice, by_seed in self.grid(arm).items() if by_seed}
        if not found:
            return None
        common = set.intersection(*(set(by_seed) for by_seed in found.values()))

        def badness(choice: Choice) -> tuple[float, float, float]:
            seeds = common or set(found[choice])
            scores = [found[choice][seed].metrics.get("validation_accuracy", 0.0) for seed in sorted(seeds)]
            return -round(fmean(scores), 12), choice.temperature or 0.0, choice.weight or 0.0

        return min(found, key=badness)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Teacher and student of each arm, then the controls."""
        compare = self.recipe.compare
        rows: list[Row] = []
        for arm in compare.names:
            rows += self._of_arm(arm)
        if compare.students and compare.controls:
            rows += [self._alone("student alone", ALONE, "ce"), self._alone("smoothing alone", SMOOTHING, "smoothing")]
            rows += self._of_arm(UNTRAINED)
        return tuple(rows)

    def row(self, name: str, network: Network) -> Row:
        """The row of an arm."""
        return next(row for row in self.rows if (row.name, row.network) == (name, network))

    @property
    def arms(self) -> tuple[Arm, ...]:
        """Seed by seed; an arm that has no teacher at a seed is left out there."""
        compare, found = self.recipe.compare, []
        for seed in compare.seeds:
            for name in compare.names:
                teacher = self.row(name, "teacher").results.get(seed)
                student = self.row(name, "student").results.get(seed) if compare.students else None
                if teacher is not None:
                    temperature, weight = (student.temperature, student.cell.weight) if student else (None, None)
                    metrics = student.metrics if student else {}
                    found.append(Arm(name, seed, temperature, teacher.metrics, metrics, weight))
        return tuple(found)

    @cached_property
    def networks(self) -> tuple[Network, ...]:
        """That were trained."""
        return ("teacher", "student") if self.recipe.compare.students else ("teacher",)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The pairs that `compare.pairs` asks for, with Holm's correction, metric by metric; then the controls."""
        found: list[Difference] = []
        for network in self.networks:
            for metric in self.judged:
                found += self._family(network, metric)
                found += self._controls(network, metric)
        return tuple(found)

    def against_reference(self, row: Row, metric: str = MAIN) -> Paired | None:
        """A row less the reference arm's of the same network; None for that itself."""
        reference = self.row(self.reference, row.network)
        return None if row is reference else paired(row.values(metric), reference.values(metric))

    def verdicts(self) -> list[str]:
        """A sentence for each pair of arms and each network, those with the reference first; then the controls.

        Arms that have not been run are named in one sentence a network, and in no pair.
        """
        found = self.pairs
        told = [verdict(each.network, each.first, each.second, each.paired, each.p_holm, each.family) for each in found]
        return told + self.untold

    @property
    def untold(self) -> list[str]:
        """The sentences about what has not been run."""
        unrun = {network: self._unrun(network) for network in self.networks}
        return [untold(network, names) for network, names in unrun.items() if names]

    @property
    def pairs(self) -> list[Difference]:
        """In what verdicts are about, in their order; without arms that have not been run."""
        unrun = {network: set(self._unrun(network)) for network in self.networks}
        found = [each for each in self.differences if each.metric == MAIN]
        found = [each for each in found if not {each.first, each.second} & unrun[each.network]]
        return sorted(found, key=lambda each: (not each.family, self.reference not in (each.first, each.second)))

    def _unrun(self, network: Network) -> list[str]:
        """Rows without one finished seed."""
        return [row.name for row in self.rows if row.network == network and not row.values(MAIN)]

    def record(self) -> dict[str, Any]:
        """For results.json and `--json`."""
        compare = self.recipe.compare
        return {
            "name": self.name,
            "commit": self.commit,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "recipe_arms": {name: list(compare.assignments(name)) for name in compare.names},
            "arms": [self._recorded(vars(arm)) for arm in self.arms],
            "chosen": {arm: self._choice_record(arm) for arm in compare.names} if compare.students else {},
            "differences": [each.record() for each in self.differences],
            "verdicts": self.verdicts(),
            "cells": [result.record() for result in self.results],
        }

    def _choice_record(self, arm: str) -> dict[str, Any] | None:
        choice = self.chosen(arm)
        return None if choice is None else self._recorded(choice._asdict())

    def _recorded(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Without a weight where the grid has none: records are then what they were before there were any."""
        return {name: value for name, value in values.items() if name != "weight" or self.recipe.compare.weights}

    def _of_arm(self, arm: str) -> Iterator[Row]:
        control, planned = arm == UNTRAINED, len(self.seeds)
        teachers = {r.cell.seed: r for r in self.results if (r.cell.kind, r.cell.arm) == ("teacher", arm)}
        finished = {seed: result for seed, result in teachers.items() if result.state == "finished"}
        yield Row(arm, "teacher", finished, planned, control)
        if self.recipe.compare.students:
            choice = self.chosen(arm)
            results = {} if choice is None else self.grid(arm)[choice]
            yield Row(arm, "student", results, planned, control, _choice_words(results.values(), self._losses))

    @property
    def _losses(self) -> int:
        return len(self.recipe.compare.losses)

    def _alone(self, name: str, control: str, loss: str) -> Row:
        """A student that asks no teacher: the control's cells, or those of the grid that are the same."""

        def is_it(cell: Cell) -> bool:
            own = cell.control == control or (cell.control == "" and cell.loss == loss)
            return cell.kind == "student" and cell.arm == self.reference and own

        found = {r.cell.seed: r for r in self.results if is_it(r.cell) and r.state == "finished"}
        return Row(name, "student", found, len(self.seeds), control=True)

    def _family(self, network: Network, metric: str) -> list[Difference]:
        # The second of a pair is the reference, where it is one of them: positive is then what an arm gains.
        names = [name for name in self.recipe.compare.names if name != self.reference]
        pairs = [(name, self.reference) for name in names]
        if self.recipe.compare.pairs == "all":
            pairs += [(b, a) for a, b in combinations(names, 2)]
        rows = {name: self.row(name, network).values(metric) for name in self.recipe.compare.names}
        found = [paired(rows[first], rows[second]) for first, second in pairs]
        # Pairs of which nothing is known yet count too, so that half of a comparison claims no more than the whole.
        adjusted = holm([1.0 if each.p is None else each.p for each in found])
        return [
            Difference(network, metric, first, second, each, None if each.p is None else corrected, len(pairs))
            for (first, second), each, corrected in zip(pairs, found, adjusted, strict=True)
        ]

    def _controls(self, network: Network, metric: str) -> Iterator[Difference]:
        for row in self.rows:
            if row.control and row.network == network:
                found = self.against_reference(row, metric)
                assert found is not None
                yield Difference(network, metric, row.name, self.reference, found, None, 0)


def _choice_words(results: Sequence[CellResult] | Any, losses: int) -> str:
    """`T 4`, with the loss where the grid has several, and the weight where it has any."""
    words = []
    for result in results:
        loss = [result.cell.loss] if losses > 1 else []
        numbers = {"T": result.temperature, "w": result.cell.weight}
        at = [f"{name} {shortest(number)}" for name, number in numbers.items() if number is not None]
        words.append(", ".join(loss + at))
    return "/".join(dict.fromkeys(words))
