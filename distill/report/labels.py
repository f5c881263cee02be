"""What learned labels say, in numbers: who is confused with whom, which given labels look wrong. No torch.

Tables may be memory maps of millions of rows: they are walked over in chunks, and only what is small is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

_CHUNK = 2**22  # values of a table that are looked at together

Table: TypeAlias = NDArray[np.floating[Any]]
Indices: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rows:
    """What each of N label rows says.

    Attributes:
        given: the label that it started from, int64 [N].
        learned: its likeliest class, the first of equal ones, int64 [N].
        confidence: probability of that class, float32 [N].
        kept: probability that the given label keeps, float32 [N].
        entropy: in nats, float32 [N].
    """

    given: Indices
    learned: Indices
    confidence: NDArray[np.float32]
    kept: NDArray[np.float32]
    entropy: NDArray[np.float32]

    @property
    def suspected(self) -> NDArray[np.bool_]:
        """Whether the learned label is not the given one, [N]."""
        return np.not_equal(self.learned, self.given)

    def suspects(self) -> Indices:
        """Rows whose learned label is not the given one, the most confident first, int64 [K].

        Of equally confident ones the one whose given label keeps less comes first, then the earlier row.
        """
        rows = np.flatnonzero(self.suspected)
        return rows[np.lexsort((self.kept[rows], -self.confidence[rows]))]


@dataclass(frozen=True)
class Pair:
    """Two classes that are confused, by number."""

    given: int
    learned: int
    mass: float  # mean probability that labels given as the one have learned for the other
    images: int  # whose likeliest class has become the other


@dataclass(frozen=True)
class Left:
    """A class that most of its images have left, by number."""

    given: int
    learned: int  # the class that most of them have gone to
    gone: int  # images whose likeliest class is another
    images: int  # that were given as it


@dataclass(frozen=True)
class Judged:
    """Suspected label errors against the true labels, where these are known. Shares from 0 to 1."""

    wrong: float  # given labels that are wrong
    precision: float | None  # suspected ones that are wrong; None: nothing is suspected
    recall: float | None  # wrong ones that are suspected
    f1: float | None  # recall and this are None where no image is suspected by itself, of a class table
    right_before: float  # given labels that are true
    right_after: float  # learned labels that are true


def look_at_rows(table: Table, given: Indices) -> Rows:
    """What each row of a table says.

    Args:
        table: probabilities, float [N, C].
        given: classes, int64 [N].
    """
    count = len(given)
    learned = np.empty(count, np.int64)
    confidence, kept, entropy = (np.empty(count, np.float32) for _ in range(3))
    for part in _chunks(count, table.shape[1]):
        values = table[part]
        learned[part] = values.argmax(axis=1)
        confidence[part] = np.take_along_axis(values, learned[part, None], axis=1)[:, 0]
        kept[part] = np.take_along_axis(values, given[part, None], axis=1)[:, 0]
        logarithms = np.log(values, out=np.zeros_like(values), where=values > 0)
        entropy[part] = 0 - np.einsum("nc,nc->n", values, logarithms)
    return Rows(given, learned, confidence, kept, entropy)


def class_means(table: Table, given: Indices, classes: Indices) -> NDArray[np.float64]:
    """Mean label of the rows of each class: where the probability of the given class goes.

    Args:
        table: probabilities, float [N, C].
        given: classes, int64 [N].
        classes: which to look at, int64 [K], each once.

    Returns:
        [K, K]: row a, column b is the mean probability of `classes[b]` among rows given as `classes[a]`; zeros in the
        row of a class that no row was given as.
    """
    every = np.array_equal(classes, np.arange(table.shape[1]))
    place = np.full(table.shape[1], -1)
    place[classes] = np.arange(len(classes))
    rows = np.flatnonzero(place[given] >= 0)
    sums, counts = np.zeros((len(classes), len(classes))), np.zeros(len(classes), np.int64)
    for part in _chunks(len(rows), table.shape[1]):
        chosen = rows[part]
        chosen = chosen[np.argsort(place[given[chosen]], kind="stable")]
        values = table[chosen] if every else table[chosen][:, classes]
        found, starts, times = np.unique(place[given[chosen]], return_index=True, return_counts=True)
        sums[found] += np.add.reduceat(values, starts, axis=0, dtype=np.float64)
        counts[found] += times
    sums /= np.maximum(counts, 1)[:, None]
    return sums


def confused_pairs(means: Table, rows: Rows, count: int) -> list[Pair]:
    """The `count` pairs of different classes with the most mass between them, the largest first; none without mass.

    Args:
        means: [C, C], of all classes in order, as `class_means` gives them or as a class table is.
        rows: of the table, for the number of images; of a class table these are classes.
        count: pairs, at most.
    """
    classes = means.shape[1]
    best, masses = np.empty(0, np.int64), np.empty(0)
    for part in _chunks(classes, classes):
        block = np.array(means[part], np.float64)
        block[np.arange(len(block)), np.arange(part.start, part.start + len(block))] = 0.0
        flat = block.ravel()
        found = np.argpartition(flat, -count)[-count:] if len(flat) > count else np.arange(len(flat))
        masses, best = np.concatenate([masses, flat[found]]), np.concatenate([best, found + part.start * classes])
        order = np.lexsort((best, -masses))[:count]
        masses, best = masses[order], best[order]
    suspected = rows.suspected
    moves, times = np.unique(rows.given[suspected] * classes + rows.learned[suspected], return_counts=True)
    images = dict(zip(moves.tolist(), times.tolist(), strict=True))
    return [
        Pair(pair // classes, pair % classes, mass, images.get(pair, 0))
        for pair, mass in zip(best.tolist(), masses.tolist(), strict=True)
        if mass > 0
    ]


def left_classes(rows: Rows, classes: int, least: int) -> list[Left]:
    """Classes that more than half of their images have left, in order.

    Args:
        rows: of a table of images.
        classes: C.
        least: images of a class that is named; fewer can all be wrong.
    """
    given = np.bincount(rows.given, minlength=classes)
    gone = np.bincount(rows.given[rows.suspected], minlength=classes)
    left = np.flatnonzero((given >= least) & (2 * gone > given)).tolist()
    return [Left(k, _likeliest_goal(rows, k, classes), int(gone[k]), int(given[k])) for k in left]


def _likeliest_goal(rows: Rows, left: int, classes: int) -> int:
    """The class that most of those that left have gone to."""
    return int(np.bincount(rows.learned[rows.suspected & (rows.given == left)], minlength=classes).argmax())


def most_confused(pairs: list[Pair], classes: int, count: int) -> Indices:
    """All classes where there are at most `count`; else those that the largest pairs are made of, in order, int64 [K].

    Args:
        pairs: the largest first; enough of them.
        classes: C.
        count: K, at most.
    """
    if classes <= count:
        return np.arange(classes)
    chosen: set[int] = set()
    for pair in pairs:
        if len(chosen | {pair.given, pair.learned}) <= count:
            chosen |= {pair.given, pair.learned}
    return np.array(sorted(chosen or range(count)), np.int64)


def judge(given: Indices, learned: Indices, true: Indices) -> Judged | None:
    """Holds the suspected errors against the true labels, all int64 [N]; None where every given label is true."""
    wrong, suspected = given != true, given != learned
    if not wrong.any():
        return None
    found = int((wrong & suspected).sum())
    return Judged(
        wrong=float(wrong.mean()),
        precision=found / int(suspected.sum()) if suspected.any() else None,
        recall=found / int(wrong.sum()),
        f1=2 * found / int(wrong.sum() + suspected.sum()),
        right_before=float(1 - wrong.mean()),
        right_after=float((learned == true).mean()),
    )


def _chunks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over `rows` rows of `columns` values."""
    size = max(1, _CHUNK // columns)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))
