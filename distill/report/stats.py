"""Means, intervals and tests over seeds. numpy and scipy only.

Everything here is a function of the set of values: the order of the seeds does not matter, and nothing is NaN. One seed
gives a mean and no interval. Values that differ by no more than rounding count as the same.

Sources: Student's t interval; the percentile bootstrap of Efron (1979), over all samples there are where they can be
enumerated; Holm (1979), "A simple sequentially rejective multiple test procedure"; power of the t test by the
noncentral t distribution (Cohen 1988).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LEVEL = 0.95  # of intervals
POWER = 0.8  # of the minimum detectable difference
_ENUMERATED = 9  # values whose bootstrap samples are enumerated: C(2n - 1, n) = 24,310 for 9
_RESAMPLES = 10_000  # for more
_ROUNDING = 1e-9  # standard deviation, as a share of the largest value, that is none

Interval = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A mean over seeds. Intervals are at the level of 95 %; None where there is one seed only."""

    n: int
    mean: float
    sd: float | None  # of the sample, n - 1; None for one value
    interval: Interval | None  # Student's t
    bootstrap: Interval | None  # percentile

    @property
    def half(self) -> float | None:
        """Half the width of the t interval."""
        return None if self.interval is None else (self.interval[1] - self.interval[0]) / 2


@dataclass(frozen=True)
class Paired:
    """The difference of two arms over the seeds that both have: first less second."""

    seeds: tuple[int, ...]
    difference: Summary | None  # None: no seed in common
    p: float | None  # two-sided; None for fewer than two seeds
    detectable: float | None  # least true difference found with 80 % power at this n and deviation, where there is one


def summary(values: Sequence[float]) -> Summary:
    """Mean and intervals of values, one a seed.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    found = _sorted(values)
    n, mean = len(found), float(found.mean())
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = _deviation(found)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, (mean - half, mean + half), bootstrap_interval(values))


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """Percentile bootstrap interval of the mean.

    Args:
        values: at least one.
        seed: of the samples that are drawn where there are too many values to enumerate all; each is drawn together
            with its mirror image, so that changing all signs mirrors the interval.
    """
    found = _sorted(values)
    if not _deviation(found):
        return float(found.mean()), float(found.mean())
    counts, weights = _samples(len(found), seed)
    means = counts @ found / len(found)
    tail = (1 - LEVEL) / 2
    return _lower(means, weights, tail), -_lower(-means, weights, tail)


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Paired:
    """Compares two arms, paired by seed.

    The p value is the paired t test's. Where all differences are the same there is no deviation to test with: then it
    is the sign test's, 2^(1-n), and 1 for differences of zero.

    Args:
        first: value by seed.
        second: the same; seeds that only one has are left out.
    """
    seeds = tuple(sorted(first.keys() & second.keys()))
    if not seeds:
        return Paired((), None, None, None)
    # Rounding is judged by the values, not by differences that may be rounding only.
    scale = max(abs(each[seed]) for each in (first, second) for seed in seeds)
    differences = np.array([first[seed] - second[seed] for seed in seeds])
    if np.ptp(differences) <= _ROUNDING * scale:
        differences[:] = 0.0 if np.abs(differences).max() <= _ROUNDING * scale else np.sort(differences).mean()
    found = summary(differences.tolist())
    if found.sd is None:
        return Paired(seeds, found, None, None)
    if found.sd == 0:
        return Paired(seeds, found, 1.0 if found.mean == 0 else 2.0 ** (1 - found.n), None)
    t = found.mean / (found.sd / math.sqrt(found.n))
    return Paired(seeds, found, float(2 * stats.t.sf(abs(t), found.n - 1)), detectable(found.sd, found.n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values: those below alpha are the hypotheses that Holm's procedure rejects at alpha."""
    adjusted = [1.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted


def detectable(sd: float, n: int) -> float:
    """The least true mean difference that a two-sided paired t test at 5 % finds with 80 % power.

    Args:
        sd: standard deviation of the differences, in their unit.
        n: pairs, at least 2.
    """
    return sd * _detectable_effect(n)


@cache
def _detectable_effect(n: int) -> float:
    """In standard deviations of the differences."""
    critical = float(stats.t.ppf((1 + LEVEL) / 2, n - 1))

    def found(effect: float) -> float:
        shift = effect * math.sqrt(n)
        # The wrong side's tail, which SciPy cannot always tell from nothing.
        wrong = np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift))
        return float(stats.nct.sf(critical, n - 1, shift) + wrong)

    most = 1.0
    while found(most) < POWER:
        most *= 1.5
    return float(optimize.brentq(lambda effect: found(effect) - POWER, 0.0, most))


def _sorted(values: Sequence[float]) -> Floats:
    found = np.sort(np.asarray(values, dtype=np.float64))
    if found.ndim != 1 or not found.size or not np.isfinite(found).all():
        raise ValueError(f"found {values!r}, expected at least one number, all of them finite")
    return found


def _deviation(found: Floats) -> float:
    """0 where the values differ by rounding only."""
    sd = float(found.std(ddof=1)) if found.size > 1 else 0.0
    return 0.0 if sd <= _ROUNDING * float(np.abs(found).max()) else sd


@cache
def _samples(n: int, seed: int) -> tuple[Floats, Floats]:
    """How often each of n values comes in a bootstrap sample [S, n], and the samples' probabilities [S]."""
    if n <= _ENUMERATED:
        counts = np.array(list(_compositions(n, n)), dtype=np.float64)
        factorials = np.array([math.factorial(k) for k in range(n + 1)], dtype=np.float64)
        ways = factorials[n] / factorials[counts.astype(np.int64)].prod(axis=1)
        return counts, ways / float(n) ** n
    drawn = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=_RESAMPLES // 2).astype(np.float64)
    return np.concatenate([drawn, drawn[:, ::-1]]), np.full(2 * len(drawn), 0.5 / len(drawn))


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


def _lower(means: Floats, weights: Floats, tail: float) -> float:
    """The smallest mean below or at which at least a share `tail` of the samples lies."""
    order = np.argsort(means, kind="stable")
    share = np.cumsum(weights[order])
    return float(means[order][np.searchsorted(share, tail * (1 - 1e-12))])
