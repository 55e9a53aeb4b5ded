"""Intervals against published values and against scipy."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from speechkit.metrics import poisson_rate_interval, wilson_interval


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, table I), method 3: the score interval
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_values_of_newcombe(hits, trials, low, high):
    interval = wilson_interval(hits, trials)
    assert interval.low == pytest.approx(low, abs=6e-5)
    assert interval.high == pytest.approx(high, abs=6e-5)


@given(st.integers(0, 300), st.integers(1, 300), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_equals_scipy(hits, trials, confidence):
    hits = min(hits, trials)
    wanted = stats.binomtest(hits, trials).proportion_ci(confidence, method="wilson")
    interval = wilson_interval(hits, trials, confidence=confidence)
    assert interval.low == pytest.approx(wanted.low, abs=1e-12)
    assert interval.high == pytest.approx(wanted.high, abs=1e-12)
    assert 0 <= interval.low <= hits / trials <= interval.high <= 1


def test_wilson_at_the_ends():
    assert wilson_interval(0, 7).low == 0.0
    assert wilson_interval(7, 7).high == 1.0
    none = wilson_interval(0, 0)
    assert (none.low, none.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("events", "low", "high"),
    # the exact limits of a Poisson mean, as tabulated since Garwood 1936
    [
        (0, 0.0, 3.689),
        (1, 0.0253, 5.572),
        (2, 0.242, 7.225),
        (3, 0.619, 8.767),
        (5, 1.623, 11.668),
        (10, 4.795, 18.390),
    ],
)
@pytest.mark.parametrize("exposure", [1.0, 0.5, 24.0])
def test_garwood_gives_the_tabulated_limits(events, low, high, exposure):
    interval = poisson_rate_interval(events, exposure)
    assert interval.low * exposure == pytest.approx(low, abs=6e-4)
    assert interval.high * exposure == pytest.approx(high, abs=6e-4)


@given(st.integers(0, 200), st.sampled_from([0.8, 0.95, 0.99]))
def test_garwood_is_exact_by_its_definition(events, confidence):
    """At either end of the interval, what was seen or more extreme has the tail's probability."""
    interval = poisson_rate_interval(events, 1.0, confidence=confidence)
    tail = (1 - confidence) / 2
    assert stats.poisson.cdf(events, interval.high) == pytest.approx(tail)
    if events:
        assert stats.poisson.sf(events - 1, interval.low) == pytest.approx(tail)


def test_no_event_in_some_hours():
    """The rule of three, one-sided at 95 %: nothing in 3 h speaks against one an hour."""
    assert poisson_rate_interval(0, 3.0, confidence=0.9).high == pytest.approx(-math.log(0.05) / 3)


@pytest.mark.parametrize("exposure", [0.0, -1.0])
def test_no_exposure_tells_nothing(exposure):
    interval = poisson_rate_interval(3, exposure)
    assert (interval.low, interval.high) == (0.0, math.inf)
