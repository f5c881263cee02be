"""Curves of a comparison's arms, their seeds taken together. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from distill.report.comparison import Comparison

TITLES = {"validation_accuracy": "validation accuracy %", "labels_right": "labels right %"}  # of curves.QUANTITIES


@dataclass(frozen=True)
class Curve:
    """One quantity of one arm's teachers."""

    arm: str
    seeds: Mapping[int, tuple[float, ...]]  # after each epoch, by seed; all as long

    @property
    def mean(self) -> tuple[float, ...]:
        """Over the seeds, after each epoch."""
        return tuple(map(fmean, zip(*self.seeds.values(), strict=True)))

    @property
    def lowest(self) -> tuple[float, ...]:
        """Of the seeds, after each epoch."""
        return tuple(map(min, zip(*self.seeds.values(), strict=True)))

    @property
    def highest(self) -> tuple[float, ...]:
        """Of the seeds, after each epoch."""
        return tuple(map(max, zip(*self.seeds.values(), strict=True)))


def arm_curves(comparison: Comparison, quantity: str) -> list[Curve]:
    """Of every arm that has any. A seed that was trained for other epochs than the arm's first is left out.

    Args:
        comparison: the numbers.
        quantity: one of `curves.QUANTITIES`.
    """
    found = []
    for arm in comparison.recipe.compare.names:
        results = comparison.row(arm, "teacher").results
        seeds = {seed: each.curves[quantity] for seed, each in sorted(results.items()) if quantity in each.curves}
        length = len(next(iter(seeds.values()), ()))
        if length:
            found.append(Curve(arm, {seed: values for seed, values in seeds.items() if len(values) == length}))
    return found
