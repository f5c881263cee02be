"""Class relations against SciPy, and what a renaming does."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from distill.report.relations import confusion_matrix, relation


def table(seed: int, classes: int = 6) -> np.ndarray:
    weights = np.random.default_rng(seed).random((classes, classes))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("seed", range(4))
def test_the_correlation_is_spearman_s_off_the_diagonal(seed: int) -> None:
    one, other = table(seed), np.round(table(seed + 10), 1)  # with ties
    off = ~np.eye(6, dtype=bool)
    expected = stats.spearmanr(one[off], other[off]).statistic
    found = relation(one, other, renamings=99)
    assert found.correlation == pytest.approx(expected, abs=1e-12)
    assert found.pairs == 30


def test_a_table_agrees_with_itself_and_no_renaming_does_better() -> None:
    found = relation(table(0), table(0) ** 3, renamings=999)
    assert found.correlation == pytest.approx(1)
    assert found.p_value <= 0.01


def test_unrelated_tables_have_p_values_spread_over_0_to_1() -> None:
    values = [relation(table(seed), table(1000 + seed), renamings=199).p_value for seed in range(60)]
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_a_constant_table_says_nothing() -> None:
    found = relation(np.full((4, 4), 0.25), table(0, 4), renamings=99)
    assert found.correlation == 0
    assert found.p_value == 1


def test_renaming_both_changes_nothing() -> None:
    one, other, order = table(1), table(2), np.random.default_rng(3).permutation(6)
    renamed = relation(one[np.ix_(order, order)], other[np.ix_(order, order)], renamings=9)
    assert renamed.correlation == pytest.approx(relation(one, other, renamings=9).correlation)


def test_confusion_by_hand() -> None:
    found = confusion_matrix(np.array([0, 0, 0, 1]), np.array([0, 1, 1, 1]), 3)
    np.testing.assert_allclose(found, [[1 / 3, 2 / 3, 0], [0, 1, 0], [0, 0, 0]])


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="expected the same"):
        relation(table(0), table(0, 5))
    with pytest.raises(ValueError, match="found 2 classes"):
        relation(table(0, 2), table(1, 2))
