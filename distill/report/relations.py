"""Do learned labels know which classes are alike? Rank correlation with what another network confuses. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Matrix = NDArray[np.floating[Any]]

_ROUNDING = 1e-6  # of the largest entry: means of equal float32 labels differ by as much


@dataclass(frozen=True)
class Relation:
    """How far two tables over the same classes order the pairs of classes alike.

    Attributes:
        correlation: Spearman's rho over all ordered pairs of different classes; None where a table is constant.
        p_value: share of renamings of a table's classes that correlate at least as well: Mantel's test; None likewise.
        pairs: C (C - 1).
        missing: why there is no correlation; "" where there is one.
    """

    correlation: float | None
    p_value: float | None
    pairs: int
    missing: str = ""


def relation(learned: Matrix, confusion: Matrix, *, renamings: int = 9999, seed: int = 0) -> Relation:
    """Compares a table of learned labels with a confusion matrix, both [C, C], rows the given or true class.

    Entries of a matrix are not independent of each other, so that the p-value of a correlation coefficient would be
    too small. Renaming classes, rows and columns together, keeps whatever a matrix has by itself. Mantel, "The
    detection of disease clustering and a generalized regression approach", Cancer Research 27, 1967.

    Raises:
        ValueError: tables of different or other than square shapes.
    """
    if learned.shape != confusion.shape or learned.ndim != 2 or learned.shape[0] != learned.shape[1]:
        raise ValueError(f"relation: tables are {learned.shape} and {confusion.shape}, expected the same [C, C]")
    classes = len(learned)
    off = ~np.eye(classes, dtype=bool)
    pairs = int(off.sum())
    if classes < 3:
        return Relation(None, None, pairs, "two classes have one pair each way, which is no sample")
    if missing := _missing(learned[off], confusion[off]):
        return Relation(None, None, pairs, missing)
    # Ranks are taken once: a renaming moves them.
    first, second = (_ranks(table, off) for table in (learned, confusion))
    found = _correlation(first[off], second[off])
    generator = np.random.default_rng(seed)
    as_good = 0
    for _ in range(renamings):
        order = generator.permutation(classes)
        as_good += _correlation(first[np.ix_(order, order)][off], second[off]) >= found - 1e-12
    return Relation(found, (as_good + 1) / (renamings + 1), pairs)


def confusion_matrix(true: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Matrix:
    """Share of each true class's images [N] that are predicted as each class: [C, C], rows sum to 1, or to 0."""
    counts = np.zeros((classes, classes))
    np.add.at(counts, (true, predicted), 1.0)
    shares: Matrix = counts / np.maximum(counts.sum(1, keepdims=True), 1.0)
    return shares


def _missing(learned: Matrix, confusion: Matrix) -> str:
    """Which of the two orders no pairs, in words; "" where both do. Ranks of rounding would be a correlation of it."""
    if _constant(confusion):
        if not confusion.any():
            return "the other network confuses no class with another"
        return "the other network confuses all pairs of classes alike"
    return "the learned labels do not differ between the pairs of classes" if _constant(learned) else ""


def _constant(entries: Matrix) -> bool:
    return bool(np.ptp(entries) <= _ROUNDING * np.abs(entries).max())


def _ranks(table: Matrix, off: NDArray[np.bool_]) -> Matrix:
    """Ranks of the entries off the diagonal, equal ones sharing theirs; [C, C]."""
    ranks = np.zeros(table.shape)
    ranks[off] = stats.rankdata(table[off])
    return ranks


def _correlation(one: Matrix, other: Matrix) -> float:
    """Pearson's; neither is constant."""
    one, other = one - one.mean(), other - other.mean()
    return float((one * other).sum() / np.sqrt((one * one).sum() * (other * other).sum()))
