"""Statistics over seeds against SciPy and statsmodels, and their laws: order, sign and shift of the values."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from distill.report.stats import bootstrap_interval, detectable, holm, paired, summary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what statsmodels and pandas say of each other's versions is not our business
    from statsmodels.stats.multitest import multipletests
    from statsmodels.stats.power import TTestPower

SHARES = st.floats(0, 1, allow_subnormal=False)
SEVERAL = st.lists(SHARES, min_size=2, max_size=12)


@given(SEVERAL)
@settings(deadline=None)
def test_the_interval_is_student_s(values: list[float]) -> None:
    found = summary(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.interval is not None
    if np.std(values, ddof=1) < 1e-6:
        return
    sem = scipy_stats.sem(values)
    expected = scipy_stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=sem)
    assert found.interval == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert found.sd == pytest.approx(np.std(values, ddof=1))
    assert found.half == pytest.approx((expected[1] - expected[0]) / 2)


def test_one_value_has_no_interval() -> None:
    found = summary([0.25])
    assert (found.n, found.mean, found.sd, found.interval, found.bootstrap, found.half) == (1, 0.25, *[None] * 4)


@pytest.mark.parametrize("values", [[], [math.nan], [0.5, math.inf]])
def test_no_values_and_what_is_no_number_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="expected at least one number"):
        summary(values)


@pytest.mark.parametrize("values", [[0.8] * 4, [0.1 + 0.2, 0.3, 0.3], [0.0, 0.0]])
def test_ties_have_an_interval_of_no_width(values: list[float]) -> None:
    found = summary(values)
    assert found.sd == 0
    assert found.interval == (found.mean, found.mean) == found.bootstrap


@given(st.lists(SHARES, min_size=2, max_size=12), st.floats(-1, 1), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_laws_of_summaries(values: list[float], shift: float, random) -> None:  # type: ignore[no-untyped-def]
    found = summary(values)
    shuffled = list(values)
    random.shuffle(shuffled)
    assert summary(shuffled) == found
    mirrored = summary([-value for value in values])
    moved = summary([value + shift for value in values])
    for interval, mirror, away in (
        (found.interval, mirrored.interval, moved.interval),
        (found.bootstrap, mirrored.bootstrap, moved.bootstrap),
    ):
        assert interval is not None
        assert mirror is not None
        assert away is not None
        assert mirror == pytest.approx((-interval[1], -interval[0]), abs=1e-12)
        assert away == pytest.approx((interval[0] + shift, interval[1] + shift), abs=1e-7)
        assert interval[0] - 1e-12 <= found.mean <= interval[1] + 1e-12
        assert not any(map(math.isnan, interval))


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 30])
def test_the_bootstrap_is_scipy_s_percentile(n: int) -> None:
    values = np.random.default_rng(n).normal(size=n)
    theirs = scipy_stats.bootstrap(
        (values,), np.mean, n_resamples=200_000, method="percentile", rng=np.random.default_rng(0), batch=20_000
    ).confidence_interval
    assert bootstrap_interval(list(values)) == pytest.approx(tuple(theirs), abs=0.03 * values.std())
    assert bootstrap_interval(list(values)) == bootstrap_interval(list(values))


def test_few_values_are_resampled_in_every_way() -> None:
    """All n^n samples, one by one."""
    values = [0.1, 0.4, 0.2, 0.9]
    means = np.sort([np.mean(sample) for sample in itertools.product(values, repeat=4)])
    low, high = bootstrap_interval(values)
    assert low == pytest.approx(means[math.ceil(0.025 * len(means)) - 1])
    assert high == pytest.approx(means[len(means) - math.ceil(0.025 * len(means))])


def test_more_values_are_resampled_by_a_seed() -> None:
    values = list(np.random.default_rng(1).normal(size=12))
    assert bootstrap_interval(values, 0) != bootstrap_interval(values, 1)


@given(SEVERAL, SEVERAL)
@settings(deadline=None)
def test_the_paired_test_is_scipy_s(first: list[float], second: list[float]) -> None:
    n = min(len(first), len(second))
    found = paired(dict(enumerate(first)), dict(enumerate(second)))
    assert found.seeds == tuple(range(n))
    differences = np.subtract(first[:n], second[:n])
    if np.std(differences, ddof=1) < 1e-6:
        return
    theirs = scipy_stats.ttest_rel(first[:n], second[:n])
    assert found.p == pytest.approx(theirs.pvalue, rel=1e-6)
    interval = theirs.confidence_interval(0.95)
    assert found.difference is not None
    assert found.difference.interval == pytest.approx((interval.low, interval.high), abs=1e-9)


@given(SEVERAL, SEVERAL, st.floats(-1, 1))
@settings(deadline=None)
def test_laws_of_pairs(first: list[float], second: list[float], shift: float) -> None:
    one, other = dict(enumerate(first)), dict(enumerate(second))
    there, back = paired(one, other), paired(other, one)
    assert there.difference is not None
    assert back.difference is not None
    assert back.difference.mean == pytest.approx(-there.difference.mean, abs=1e-12)
    assert (back.p, back.detectable) == pytest.approx((there.p, there.detectable))
    turned = paired(dict(reversed(one.items())), other)
    assert turned == there
    both = paired({k: v + shift for k, v in one.items()}, {k: v + shift for k, v in other.items()})
    assert both.difference is not None
    assert both.difference.mean == pytest.approx(there.difference.mean, abs=1e-9)
    for value in (there.p, there.difference.mean, there.difference.sd, *(there.difference.interval or ())):
        assert value is not None
        assert math.isfinite(value)


def test_pairs_are_the_seeds_that_both_have() -> None:
    found = paired({0: 0.9, 1: 0.8, 3: 0.7}, {1: 0.7, 2: 0.1, 3: 0.5})
    assert found.seeds == (1, 3)
    assert found.difference is not None
    assert found.difference.mean == pytest.approx(0.15)


def test_one_pair_and_none() -> None:
    one = paired({0: 0.9, 1: 0.8}, {1: 0.7})
    assert one.difference is not None
    assert (one.seeds, one.difference.interval, one.p, one.detectable) == ((1,), None, None, None)
    none = paired({0: 0.9}, {1: 0.7})
    assert (none.seeds, none.difference, none.p, none.detectable) == ((), None, None, None)


@pytest.mark.parametrize(("n", "p"), [(2, 0.5), (3, 0.25), (5, 0.0625), (6, 0.03125)])
def test_the_same_difference_at_every_seed_is_judged_by_its_sign(n: int, p: float) -> None:
    """Accuracy comes in steps of one image: two seeds with the same difference are no proof."""
    first = {seed: 0.8 + 0.01 * seed for seed in range(n)}
    second = {seed: value - 0.1 for seed, value in first.items()}  # but for rounding
    found = paired(first, second)
    assert found.difference is not None
    assert found.difference.sd == 0
    assert found.p == p == pytest.approx(scipy_stats.binomtest(n, n).pvalue)
    assert found.detectable is None
    assert paired(first, first).p == 1.0
    assert paired(first, {seed: value + 1e-16 for seed, value in first.items()}).p == 1.0


@given(st.lists(st.sampled_from([0.001, 0.01, 0.02, 0.04, 0.05, 0.3, 1.0]) | st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=12, deadline=None)  # theirs takes a quarter of a second, however few there are
def test_holm_is_statsmodels(p_values: list[float]) -> None:
    found = holm(p_values)
    assert found == pytest.approx(multipletests(p_values, method="holm")[1], abs=1e-15)
    assert all(adjusted >= p for adjusted, p in zip(found, p_values, strict=True))


def test_holm_of_nothing() -> None:
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 4, 5, 10, 20, 100])
def test_the_detectable_difference_is_statsmodels(n: int) -> None:
    theirs = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8, alternative="two-sided")
    assert detectable(0.01, n) == pytest.approx(0.01 * theirs, rel=1e-4)


def test_the_detectable_difference_is_found_four_times_of_five() -> None:
    """By simulation, which shares no formula with the code."""
    generator, n, sd = np.random.default_rng(0), 5, 0.01
    samples = generator.normal(detectable(sd, n), sd, size=(40_000, n))
    found = scipy_stats.ttest_1samp(samples, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
