import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from speechkit.active_learning.statistics import (
    holm,
    mean_interval,
    paired_test,
    percentile_interval,
    ratio_interval,
    resamples,
    spearman_matrix,
    top_overlap,
)
from speechkit.errors import RequestError


def test_sign_flips_are_exact(rng):
    a, b = rng.normal(size=(2, 7))
    difference = a - b
    sums = [abs(np.dot(s, difference)) for s in itertools.product([-1, 1], repeat=7)]
    wanted = np.mean(np.array(sums) >= abs(difference.sum()) - 1e-12)
    assert paired_test(a, b).p == pytest.approx(wanted)
    assert paired_test(np.arange(6) + 1.0, np.zeros(6)).p == pytest.approx(2 / 64)


def test_many_pairs_are_sampled(rng):
    a = rng.normal(0.4, 1, 40)
    sampled, exact = paired_test(a, np.zeros(40)).p, stats.ttest_1samp(a, 0).pvalue
    assert sampled == pytest.approx(exact, abs=0.02)
    assert 0 < paired_test(a + 9, np.zeros(40)).p < 1e-4


@pytest.mark.parametrize("test", ["sign-flip", "t", "wilcoxon"])
def test_tests_agree_on_the_plain_cases(test, rng):
    a = rng.normal(size=8)
    assert paired_test(a, a, test=test).p == 1
    assert paired_test(a, a, test=test).effect is None
    found = paired_test(a + 5 + 0.1 * rng.normal(size=8), a, test=test)
    assert found.p < 0.01
    assert found.mean == pytest.approx(5, abs=0.2)
    assert found.effect > 10
    assert found.pairs == 8


def test_equal_differences_have_no_effect_size():
    found = paired_test([0.3, 0.5, 0.2], [0.2, 0.4, 0.1], test="t")
    assert found.effect is None
    assert found.mean == pytest.approx(0.1)


def test_too_few_pairs():
    with pytest.raises(RequestError, match="at least 2 pairs"):
        paired_test([1.0], [2.0])
    with pytest.raises(RequestError, match="2 and 3 values"):
        paired_test([1.0, 2.0], [1.0, 2.0, 3.0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_rank_correlations_leave_out_what_is_missing(rng):
    a = rng.normal(size=50)
    b = np.exp(a)
    b[:4] = np.nan
    columns = {"a": a, "b": b, "minus": -a, "flat": np.ones(50), "few": np.full(50, np.nan)}
    matrix = spearman_matrix(columns)
    assert matrix[0, 1] == pytest.approx(1)
    assert matrix[0, 2] == pytest.approx(-1)
    assert np.isnan(matrix[3]).all()
    assert np.isnan(matrix[4]).all()
    assert np.array_equal(matrix, matrix.T, equal_nan=True)


def test_overlap_of_the_top(rng):
    a = rng.permutation(100).astype(float)
    assert top_overlap(a, a) == 1
    assert top_overlap(a, -a) == 0
    assert top_overlap(a, rng.normal(size=100), share=1.0) == 1
    assert top_overlap([1.0, 2.0], [2.0, 1.0], share=0.1) == 0
    assert np.isnan(top_overlap([], []))


@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_intervals_of_few_seeds_cover(rng, seeds):
    """Shares of 600 trials that hold the truth; 3 standard errors of 95 % are 2.7 %."""
    inside = {"mean": 0, "ratio": 0, "bootstrap": 0}
    for trial in range(600):
        shared = rng.normal(scale=0.1, size=seeds)
        ours, theirs = (m + shared + rng.normal(scale=0.05, size=seeds) for m in (0.9, 1.0))
        means = ours[resamples(seeds, draws=400, seed=trial)].mean(axis=1)
        for name, found, truth in (
            ("mean", mean_interval(ours), 0.9),
            ("ratio", ratio_interval(ours, theirs), 0.9),
            ("bootstrap", percentile_interval(means, count=seeds), 0.9),
        ):
            inside[name] += found.low <= truth <= found.high
    assert 0.92 < inside["mean"] / 600 < 0.98
    assert 0.92 < inside["ratio"] / 600 < 0.98
    # between three values lies their mean in three of four cases, and no draw goes beyond
    low = 0.7 if seeds == 3 else 0.91
    assert low < inside["bootstrap"] / 600 < 0.985


def test_intervals_of_what_is_not_known():
    infinite = percentile_interval([-np.inf] * 50 + [1.0] * 50, count=4)
    assert (infinite.low, infinite.high) == (-np.inf, 1.0)
    for found in (
        mean_interval([0.5]),
        ratio_interval([0.5], [0.6]),
        ratio_interval([0.5, 0.6], [0.0, 0.0]),
        percentile_interval([0.5] * 10, count=1),
    ):
        assert np.isnan([found.low, found.high]).all()
