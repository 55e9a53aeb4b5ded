import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from speechkit.active_learning.statistics import (
    holm,
    paired_test,
    percentile_interval,
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


def test_bootstrap_intervals_cover(rng):
    hits = 0
    for trial in range(200):
        sample = rng.normal(size=20)
        means = sample[resamples(20, draws=400, seed=trial)].mean(axis=1)
        interval = percentile_interval(means)
        hits += interval.low <= 0 <= interval.high
    assert 0.87 < hits / 200 <= 0.99
    infinite = percentile_interval([-np.inf] * 50 + [1.0] * 50)
    assert (infinite.low, infinite.high) == (-np.inf, 1.0)
