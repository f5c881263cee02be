"""How sure networks are against how often they are right, over all seeds of a comparison's row. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.report.comparison import Comparison
from distill.report.comparison_parts import Network, Row
from distill.report.results import CellResult
from distill.store.bins import Bin, read_bins


@dataclass(frozen=True)
class Calibration:
    """One row of a comparison, its seeds taken together."""

    name: str
    network: Network
    control: bool
    bins: tuple[Bin, ...]
    seeds: tuple[int, ...]


def run_folder(folder: Path, result: CellResult) -> Path:
    """Where the run of a finished cell lies.

    Args:
        folder: of the comparison.
        result: with one folder its run is named from there, with several from the working folder.
    """
    inside = folder / result.run
    return inside if inside.is_dir() else Path(result.run)


def calibrations(comparison: Comparison, folder: Path) -> tuple[list[Calibration], list[str]]:
    """Of every row, and a sentence for each run whose bins cannot be used. Runs without any are left out in silence."""
    found, problems = [], []
    for row in comparison.rows:
        own, seeds = [], []
        for seed, result in sorted(row.results.items()):
            try:
                bins = _read(folder, result)
            except UserError as error:
                problems.append(error.message)
                continue
            if bins is not None:
                own.append(bins)
                seeds.append(seed)
        if own:
            found.append(Calibration(row.name, row.network, row.control, _pooled(own), tuple(seeds)))
    return found, problems


def without_bins(comparison: Comparison, found: Sequence[Calibration]) -> list[Row]:
    """Finished rows that no bins are known of."""
    known = {(each.name, each.network) for each in found}
    return [row for row in comparison.rows if row.results and (row.name, row.network) not in known]


def _read(folder: Path, result: CellResult) -> tuple[Bin, ...] | None:
    if not result.run:  # a published comparison has none
        return None
    accuracy, ece = (result.metrics.get(name, -1.0) for name in ("test_accuracy", "test_ece"))
    return read_bins(run_folder(folder, result), accuracy, ece)


def _pooled(runs: Sequence[tuple[Bin, ...]]) -> tuple[Bin, ...]:
    """All images of several runs in the same bins; of runs with other numbers of bins than the first none."""
    alike = [bins for bins in runs if len(bins) == len(runs[0])]
    pooled = []
    for same in zip(*alike, strict=True):
        count = sum(each.count for each in same)
        sure, right = (
            sum(each.count * value for each, value in zip(same, values, strict=True)) / max(count, 1)
            for values in ([each.confidence for each in same], [each.accuracy for each in same])
        )
        pooled.append(Bin(count, sure, right))
    return tuple(pooled)
