"""Class relations against SciPy, and what a renaming does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from distill.report import label_figures
from distill.report.label_figures import relation_chart
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
    assert None not in values
    assert stats.kstest(values, "uniform").pvalue > 0.001


@pytest.mark.parametrize(
    ("learned", "confusion", "missing"),
    [
        (np.full((4, 4), 0.25), table(0, 4), "the learned labels do not differ between the pairs of classes"),
        (0.25 + 1e-8 * table(1, 4), table(0, 4), "the learned labels do not differ"),  # rounding has ranks, too
        (table(0, 4), np.eye(4), "the other network confuses no class with another"),
        (np.eye(4), np.eye(4), "the other network confuses no class with another"),
        (table(0, 4), np.full((4, 4), 0.25), "the other network confuses all pairs of classes alike"),
    ],
)
def test_a_constant_table_has_no_correlation(learned: np.ndarray, confusion: np.ndarray, missing: str) -> None:
    found = relation(learned, confusion, renamings=99)
    assert found.correlation is found.p_value is None
    assert found.pairs == 12
    assert found.missing.startswith(missing)


def test_one_confused_pair_is_enough_for_a_correlation() -> None:
    confusion = np.eye(4)
    confusion[0, 1] = 0.1
    found = relation(table(0, 4), confusion, renamings=99)
    assert found.correlation is not None
    assert found.missing == ""


def drawn(monkeypatch: pytest.MonkeyPatch, learned: np.ndarray, confusion: np.ndarray) -> Any:
    """The axes of the chart, laid out as they are in the file."""
    figures: list[Any] = []
    monkeypatch.setattr(label_figures, "save", lambda figure, path: figures.append(figure))
    names = [f"class {k}" for k in range(len(learned))]
    relation_chart(Path("none.png"), learned, confusion, names, relation(learned, confusion, renamings=9))
    figures[0].draw_without_rendering()
    return figures[0].axes[0]


@pytest.mark.parametrize("zeros", ["neither", "learned", "confusion", "both"])
def test_every_pair_is_drawn_where_it_is_and_0_is_marked(monkeypatch: pytest.MonkeyPatch, zeros: str) -> None:
    learned, confusion = table(0), table(1)
    for which, each in (("learned", learned), ("confusion", confusion)):
        if zeros in (which, "both"):
            each[0, 1] = each[2, 3] = 0
    axis = drawn(monkeypatch, learned, confusion)
    off = ~np.eye(6, dtype=bool)
    points = axis.lines[0].get_xydata()
    np.testing.assert_array_equal(points, np.stack([learned[off], confusion[off]], axis=1))
    places = axis.transAxes.inverted().transform(axis.transData.transform(points))
    assert np.isfinite(places).all()
    assert (places > -1e-9).all()
    assert (places < 1).all()
    for which, side in (("learned", axis.xaxis), ("confusion", axis.yaxis)):
        labels = [label.get_text() for label in side.get_ticklabels()]
        assert labels[0] == "0" if zeros in (which, "both") else "0" not in labels
        assert len(labels) > 1


def test_pairs_that_nobody_confuses_are_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    confusion = np.eye(6)
    confusion[0, 1], confusion[4, 2] = 0.015, 0.015
    axis = drawn(monkeypatch, table(0), confusion)
    assert sorted(text.get_text().split("  ")[-1] for text in axis.texts if "\u2192" in text.get_text()) == [
        "class 0 \u2192 class 1",
        "class 4 \u2192 class 2",
    ]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "0.015"]


@pytest.mark.parametrize("least", [1e-30, 1e-9, 0.009, 0.3])
def test_the_numbers_along_an_axis_are_few_and_within_it(least: float) -> None:
    marks = label_figures._marks(least, 0.3)
    assert 1 <= len(marks) <= 9
    assert least <= min(marks) <= max(marks) <= 0.3


def test_without_a_correlation_nothing_is_drawn(tmp_path: Path) -> None:
    found = relation(table(0), np.eye(6))
    with pytest.raises(ValueError, match="confuses no class"):
        relation_chart(tmp_path / "a.png", table(0), np.eye(6), list("abcdef"), found)


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


def test_two_classes_have_no_correlation() -> None:
    found = relation(table(0, 2), table(1, 2))
    assert (found.correlation, found.p_value, found.pairs) == (None, None, 2)
    assert "no sample" in found.missing
