"""What learned labels say: against numbers worked out by hand, and against the slow way."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.report import labels
from distill.report.label_report import Suspect, printable, suspects_csv
from distill.report.labels import (
    Left,
    Pair,
    class_means,
    confused_pairs,
    judge,
    left_classes,
    look_at_rows,
    most_confused,
)

TABLE = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0], [0.1, 0.9, 0.0], [0.4, 0.4, 0.2]], np.float32)
GIVEN = np.array([0, 0, 2, 1, 1])


def test_rows_by_hand() -> None:
    rows = look_at_rows(TABLE, GIVEN)
    assert rows.learned.tolist() == [0, 2, 1, 1, 0]  # of equal ones the first
    assert rows.confidence.tolist() == pytest.approx([0.7, 0.5, 1.0, 0.9, 0.4])
    assert rows.kept.tolist() == pytest.approx([0.7, 0.25, 0.0, 0.9, 0.4])
    assert rows.entropy.tolist() == pytest.approx([0.801819, 1.039721, 0.0, 0.325083, 1.054920], abs=1e-6)
    assert not np.signbit(rows.entropy).any()
    assert rows.suspected.tolist() == [False, True, True, False, True]
    assert rows.suspects().tolist() == [2, 1, 4]


def test_equally_confident_suspects() -> None:
    """The one whose given label keeps less first, then the earlier row."""
    table = np.array([[0.2, 0.6, 0.2], [0.2, 0.6, 0.2], [0.1, 0.6, 0.3]], np.float32)
    assert look_at_rows(table, np.array([0, 0, 0])).suspects().tolist() == [2, 0, 1]


def test_means_and_pairs_by_hand() -> None:
    means = class_means(TABLE, GIVEN, np.arange(3))
    expected = np.array([[0.475, 0.225, 0.3], [0.25, 0.65, 0.1], [0.0, 1.0, 0.0]])
    np.testing.assert_allclose(means, expected, atol=1e-7)
    np.testing.assert_allclose(class_means(TABLE, GIVEN, np.array([2, 0])), [[0, 0], [0.3, 0.475]], atol=1e-7)
    pairs = confused_pairs(means, look_at_rows(TABLE, GIVEN), 4)
    assert [(pair.given, pair.learned, pair.images) for pair in pairs] == [(2, 1, 1), (0, 2, 1), (1, 0, 1), (0, 1, 0)]
    assert [pair.mass for pair in pairs] == pytest.approx([1.0, 0.3, 0.25, 0.225])


def test_a_class_without_rows_has_no_mass() -> None:
    means = class_means(TABLE[:2], GIVEN[:2], np.arange(3))
    assert means[1:].tolist() == [[0, 0, 0], [0, 0, 0]]
    pairs = confused_pairs(means, look_at_rows(TABLE[:2], GIVEN[:2]), 9)
    assert [(pair.given, pair.learned) for pair in pairs] == [(0, 2), (0, 1)]


@given(
    rows=st.integers(1, 40),
    classes=st.integers(1, 9),
    chunk=st.integers(1, 60),
    half=st.booleans(),
    seed=st.integers(0),
)
@settings(deadline=None, max_examples=60)
def test_chunks_change_nothing(rows: int, classes: int, chunk: int, half: bool, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = generator.dirichlet(np.full(classes, 0.3), rows).astype(np.float16 if half else np.float32)
    labelled = generator.integers(0, classes, rows)
    before = labels._CHUNK
    labels._CHUNK = chunk
    try:
        found = look_at_rows(table, labelled)
        chosen = generator.permutation(classes)[: generator.integers(1, classes + 1)]
        means, every = class_means(table, labelled, chosen), class_means(table, labelled, np.arange(classes))
        pairs = confused_pairs(every, found, 7)
    finally:
        labels._CHUNK = before
    exact = table.astype(np.float64)
    assert found.learned.tolist() == exact.argmax(1).tolist()
    np.testing.assert_allclose(found.confidence, exact.max(1), atol=1e-7)
    slow = np.zeros((classes, classes))
    for k in set(labelled.tolist()):
        slow[k] = exact[labelled == k].mean(0)
    np.testing.assert_allclose(every, slow, atol=1e-12)
    np.testing.assert_allclose(means, slow[np.ix_(chosen, chosen)], atol=1e-12)
    np.fill_diagonal(slow, 0)
    largest = np.sort(slow[slow > 0])[::-1][:7]
    assert [pair.mass for pair in pairs] == pytest.approx(largest.tolist())
    for pair in pairs:
        assert pair.images == int(((labelled == pair.given) & (found.learned == pair.learned)).sum())


def test_the_most_confused_classes() -> None:
    pairs = [Pair(7, 3, 0.5, 0), Pair(3, 9, 0.4, 0), Pair(1, 2, 0.3, 0), Pair(9, 7, 0.2, 0), Pair(3, 4, 0.1, 0)]
    assert most_confused(pairs, 4, 4).tolist() == [0, 1, 2, 3]
    assert most_confused(pairs, 10, 4).tolist() == [3, 4, 7, 9]
    assert most_confused([], 10, 2).tolist() == [0, 1]


def test_classes_that_most_images_have_left() -> None:
    """Of 0 seven of twelve go, most to 2; of 1 half; of 2 all, but there are only nine."""
    kept = np.repeat([0, 1, 2], [12, 12, 9])
    learned = np.repeat([2, 1, 0, 0, 1, 0], [4, 3, 5, 6, 6, 9])
    rows = look_at_rows(np.eye(3)[learned], kept)
    assert left_classes(rows, 3, 10) == [Left(given=0, learned=2, gone=7, images=12)]
    assert left_classes(look_at_rows(np.eye(3)[kept], kept), 3, 10) == []


def test_judged_by_hand() -> None:
    def of(given: list[int], learned: list[int], true: list[int]) -> labels.Judged | None:
        return judge(*(np.array(column) for column in (given, learned, true)))

    judged = of(given=[0, 1, 2, 0, 1], learned=[1, 2, 2, 2, 1], true=[1, 1, 0, 1, 1])
    assert judged is not None
    # Wrong: rows 0, 2, 3. Suspected: rows 0, 1, 3; row 3 rightly, though it learned another wrong class.
    assert (judged.wrong, judged.right_before) == pytest.approx((3 / 5, 2 / 5))
    assert (judged.precision, judged.recall, judged.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert judged.right_after == 2 / 5
    assert of([0, 1], [1, 1], [0, 1]) is None  # every given label is true
    nothing = of([0, 1], [0, 1], [1, 1])
    assert nothing is not None
    assert (nothing.precision, nothing.recall, nothing.f1) == (None, 0.0, 0.0)


ODD = ['=SUM("x"),1', "a\nb", "a\rb", "ä ö\tü", "'quoted'", " spaces ", "", "日本", "half\udce4"]


@pytest.mark.parametrize("true", [True, False])
def test_csv_comes_back(true: bool) -> None:
    suspects = [
        Suspect(k, f"{name}/{k}.png" if k % 2 else "", name, name[::-1], 1 / 3, 1e-12, name if true else None)
        for k, name in enumerate(ODD)
    ]
    data = b"".join(suspects_csv(suspects, true=true))
    rows = list(csv.DictReader(io.StringIO(data.decode("utf-8", "surrogateescape"), newline=""), strict=True))
    assert len(rows) == len(ODD)
    for suspect, row in zip(suspects, rows, strict=True):
        expected = {"index": str(suspect.index), "path": suspect.path, "given": suspect.given}
        expected |= {"learned": suspect.learned, "confidence": "0.333333", "given_probability": "1e-12"}
        assert row == (expected | {"true": suspect.true} if true else expected)


def test_csv_of_nothing() -> None:
    assert b"".join(suspects_csv([], true=False)) == b"index,path,given,learned,confidence,given_probability\r\n"


def test_printable() -> None:
    assert [printable(name) for name in ("ä b", "a\nb\x1b", "half\udce4")] == ["ä b", "a\\nb\\x1b", "half\\xe4"]
