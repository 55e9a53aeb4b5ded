import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.active_learning.curves import Curve, areas_per_seed, label_saving, reduction
from speechkit.errors import RequestError

X = np.array([0.0, 0.1, 0.2, 0.4, 1.0])


def curve(*means, seeds=4, spread=0.0):
    shift = spread * np.linspace(-1, 1, seeds)[:, None]
    return Curve(X, np.array(means)[None] + shift)


RANDOM = curve(1.0, 0.8, 0.6, 0.4, 0.2)


def test_area_is_the_mean_error_along_the_curve():
    area = RANDOM.area()
    assert area.value == pytest.approx(0.09 + 0.07 + 0.1 + 0.18)
    assert area.interval.low == pytest.approx(area.value)
    assert areas_per_seed(RANDOM) == pytest.approx([area.value] * 4)
    assert Curve(X[:1], np.array([[0.5], [0.7]])).area().value == pytest.approx(0.6)


def test_a_band_holds_the_mean():
    spread = curve(1.0, 0.8, 0.6, 0.4, 0.2, spread=0.1)
    for interval, mean in zip(spread.band(), spread.mean, strict=True):
        assert interval.low < mean < interval.high
        assert interval.high - interval.low < 0.3


def test_nothing_is_less_than_no_errors():
    """A baseline without errors, and a single seed, of which nothing can be said of others."""
    found = reduction(RANDOM, curve(1.0, 0.5, 0.0, 0.0, 0.0), x=0.2)
    assert np.isnan([found.value, found.interval.low, found.interval.high]).all()
    alone = reduction(curve(1, 1, 0.5, 1, 1, seeds=1), curve(1, 1, 1, 1, 1, seeds=1), x=0.2)
    assert alone.value == 0.5
    assert np.isnan([alone.interval.low, alone.interval.high]).all()


def test_half_the_labels_are_saved():
    better = curve(1.0, 0.7, 0.4, 0.3, 0.2)
    saving = label_saving(better, RANDOM, x=0.2)
    assert (saving.equal_x, saving.censored) == (pytest.approx(0.4), "")
    assert saving.saving == pytest.approx(0.5)
    assert (saving.interval.low, saving.interval.high) == pytest.approx((0.5, 0.5))
    assert reduction(better, RANDOM, x=0.2).value == pytest.approx(1 / 3)
    assert label_saving(better, RANDOM, x=0.1).equal_x == pytest.approx(0.15)


def test_a_worse_strategy_saves_less_than_nothing():
    worse = curve(1.0, 0.9, 0.8, 0.5, 0.2)
    assert label_saving(worse, RANDOM, x=0.2).saving == pytest.approx(-1)
    assert reduction(worse, RANDOM, x=0.2).value == pytest.approx(-1 / 3)


def test_savings_beyond_the_ends_are_bounds():
    high = label_saving(curve(1.0, 0.5, 0.1, 0.1, 0.1), RANDOM, x=0.2)
    assert (high.censored, high.equal_x, high.saving) == ("at least", 1.0, pytest.approx(0.8))
    low = label_saving(curve(1.0, 1.1, 1.2, 1.0, 0.2), RANDOM, x=0.2)
    assert (low.censored, low.equal_x, low.saving) == ("at most", 0.0, -np.inf)


@given(st.floats(0.05, 1.0), st.integers(0, 9))
def test_a_strategy_saves_nothing_over_itself(x, seed):
    spread = curve(1.0, 0.8, 0.6, 0.4, 0.2, spread=0.15)
    saving = label_saving(spread, spread, x=x, draws=50, seed=seed)
    assert saving.saving == pytest.approx(0, abs=1e-9)
    assert saving.interval.high == pytest.approx(0, abs=1e-9)


def test_curves_of_other_grids_and_other_seeds():
    short = Curve(X[[0, 2]], np.tile([1.0, 0.4], (4, 1)))
    assert label_saving(short, RANDOM, x=0.2).equal_x == pytest.approx(0.4)
    with pytest.raises(RequestError, match="same seeds"):
        label_saving(curve(1, 1, 1, 1, 1, seeds=3), RANDOM, x=0.2)
    with pytest.raises(RequestError, match=r"reaches from 0 to 0\.2"):
        label_saving(short, RANDOM, x=0.4)
    with pytest.raises(RequestError, match="ascend"):
        Curve(np.array([0.0, 0.0]), np.ones((1, 2)))
    with pytest.raises(RequestError, match="must agree"):
        Curve(X, np.ones((2, 3)))
