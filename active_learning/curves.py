"""Learning curves over paired seeds: bands, area, and the labels that a strategy saves.

Letters: S seeds, X points of a curve (shares of the pool, or seconds), B bootstrap draws. Errors
are better when lower.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechkit.active_learning.statistics import (
    mean_interval,
    percentile_interval,
    ratio_interval,
    resamples,
)
from speechkit.errors import RequestError
from speechkit.metrics import CONFIDENCE, Interval

Vector = NDArray[np.float64]
Censored = Literal["", "at least", "at most"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its interval over seeds."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True)
class Saving:
    """What a strategy saves at a point x: the baseline needs ``equal_x`` for the same error.

    Attributes
    ----------
    x
        where the strategy was measured.
    equal_x
        where the baseline first reaches the strategy's error.
    saving
        1 - x / equal_x: 0.5 if half the labels do; negative if the baseline needs fewer.
    censored
        "at least" if the baseline never gets there within its curve, "at most" if it starts better,
        or as good: ``equal_x`` and ``saving`` are bounds then.
    interval
        of the saving, over seeds; its ends may be bounds too.
    """

    x: float
    equal_x: float
    saving: float
    censored: Censored
    interval: Interval


@dataclass(frozen=True)
class Curve:
    """Errors of a strategy.

    Attributes
    ----------
    x
        (X,), ascending: share of the pool, or seconds, the mean over seeds.
    errors
        (S, X), row by row the same seeds in every curve that it is compared with.
    """

    x: Vector
    errors: Vector

    def __post_init__(self) -> None:
        if self.errors.ndim != 2 or self.errors.shape[1:] != self.x.shape:
            raise RequestError(
                f"errors of {self.errors.shape} at {self.x.shape} points: must agree"
            )
        if len(self.x) == 0 or len(self.errors) == 0 or (np.diff(self.x) <= 0).any():
            raise RequestError("a curve needs a seed, and points that ascend")

    @property
    def mean(self) -> Vector:
        """Mean over seeds (X,)."""
        return self.errors.mean(axis=0)

    def at(self, x: float) -> Vector:
        """Return each seed's error at a point, on straight lines between those measured (S,).

        Raises
        ------
        RequestError
            if the point lies outside the curve.
        """
        if not self.x[0] <= x <= self.x[-1]:
            raise RequestError(f"point {x:g}: a curve reaches from {self.x[0]:g} to {self.x[-1]:g}")
        return np.array([np.interp(x, self.x, errors) for errors in self.errors])

    def within(self, low: float, high: float) -> "Curve":
        """Return the part of the curve between two points, which lie on it."""
        inner = self.x[(low < self.x) & (self.x < high)]
        x = np.unique([low, *inner, high])
        return Curve(x, np.stack([self.at(point) for point in x], axis=1))

    def band(self, *, confidence: float = CONFIDENCE) -> list[Interval]:
        """Return the interval of the mean at each point."""
        return [mean_interval(column, confidence=confidence) for column in self.errors.T]

    def area(self) -> Estimate:
        """Return the area under the curve over its width: the mean error along it."""
        areas = areas_per_seed(self)
        return Estimate(float(areas.mean()), mean_interval(areas))


def areas_per_seed(curve: Curve) -> Vector:
    """Return each seed's area under its curve over the width (S,)."""
    return _area(curve.x, curve.errors)


def reduction(curve: Curve, baseline: Curve, *, x: float) -> Estimate:
    """Return by which part the mean error at a point lies below the baseline's (paired seeds).

    NaN where the baseline makes no error.
    """
    _require_pairs(curve, baseline)
    ours, theirs = curve.at(x), baseline.at(x)
    if theirs.mean() == 0:
        return Estimate(math.nan, Interval(math.nan, math.nan))
    ratio = ratio_interval(ours, theirs)
    value = 1 - float(ours.mean() / theirs.mean())
    return Estimate(value, Interval(1 - ratio.high, 1 - ratio.low))


def label_saving(
    curve: Curve, baseline: Curve, *, x: float, draws: int = 2000, seed: int = 0
) -> Saving:
    """Return how many labels a strategy saves at a point, against a baseline (paired seeds).

    Both mean curves are resampled with the same seeds, and read by straight lines between points;
    see `percentile_interval` for how far the interval of a few seeds can be trusted.

    Raises
    ------
    RequestError
        if the curves have other numbers of seeds, or the point lies outside either.
    """
    _require_pairs(curve, baseline)
    equal_x, censored = _reaches(baseline.x, baseline.mean, float(curve.at(x).mean()))
    ours = curve.at(x)[_indices(curve, draws, seed)].mean(axis=1)
    replicates = [
        _saving(x, _reaches(baseline.x, theirs, float(error))[0])
        for error, theirs in zip(ours, _means(baseline, draws, seed), strict=True)
    ]
    interval = percentile_interval(replicates, count=len(curve.errors))
    return Saving(x, equal_x, _saving(x, equal_x), censored, interval)


def _saving(x: float, equal_x: float) -> float:
    return 1 - x / equal_x if equal_x > 0 else -math.inf


def _reaches(x: Vector, errors: Vector, wanted: float) -> tuple[float, Censored]:
    """Return where a curve first comes down to an error."""
    below = np.flatnonzero(errors <= wanted)
    if not len(below):
        return float(x[-1]), "at least"
    place = int(below[0])
    if place == 0:
        return float(x[0]), "at most"
    drop = errors[place - 1] - errors[place]
    part = (errors[place - 1] - wanted) / drop
    return float(x[place - 1] + part * (x[place] - x[place - 1])), ""


def _indices(curve: Curve, draws: int, seed: int) -> NDArray[np.int64]:
    return resamples(len(curve.errors), draws=draws, seed=seed)


def _means(curve: Curve, draws: int, seed: int) -> Vector:
    """Return the mean curves of the bootstrap draws (B, X)."""
    return curve.errors[_indices(curve, draws, seed)].mean(axis=1)


def _area(x: Vector, errors: Vector) -> Vector:
    """Return trapezoids over (..., X) by the width; of a single point its error."""
    if len(x) == 1:
        return errors[..., 0]
    return np.trapezoid(errors, x, axis=-1) / (x[-1] - x[0])


def _require_pairs(curve: Curve, baseline: Curve) -> None:
    if len(curve.errors) != len(baseline.errors):
        raise RequestError(
            f"{len(curve.errors)} and {len(baseline.errors)} seeds: pairs need the same seeds"
        )
