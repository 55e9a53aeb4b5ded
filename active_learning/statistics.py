"""Do strategies differ? Paired tests, corrected for their number, and how alike scores rank."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from speechkit.errors import RequestError
from speechkit.metrics import CONFIDENCE, Interval

Test = Literal["sign-flip", "t", "wilcoxon"]
Vector = NDArray[np.float64]

_EXACT_PAIRS = 14  # all 2^14 sign patterns are looked at
_RANDOM_FLIPS = 20_000


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """How a strategy differs from another one over paired seeds.

    Attributes
    ----------
    pairs
        number of seeds.
    mean
        mean difference.
    effect
        mean difference over its standard deviation (Cohen's d of pairs); None if that is 0.
    p
        two-sided p-value.
    """

    pairs: int
    mean: float
    effect: float | None
    p: float


def paired_test(a: ArrayLike, b: ArrayLike, *, test: Test = "sign-flip") -> PairedDifference:
    """Test whether paired values differ.

    sign-flip: permutation of the signs of the differences, exact up to 14 pairs; t: assumes normal
    differences; wilcoxon: signed ranks. With n pairs, sign-flip and wilcoxon never go below
    2 / 2^n.

    Raises
    ------
    RequestError
        if there are fewer than 2 pairs, or the values do not pair up.
    """
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape or left.ndim != 1 or len(left) < 2:
        raise RequestError(f"{left.size} and {right.size} values: give at least 2 pairs")
    difference = left - right
    # equal differences may differ in the last digits, as 0.3 - 0.2 and 0.5 - 0.4 do
    equal = float(np.ptp(difference)) <= 1e-12 * float(np.abs(difference).max())
    return PairedDifference(
        pairs=len(difference),
        mean=float(difference.mean()),
        effect=None if equal else float(difference.mean() / difference.std(ddof=1)),
        p=_p_value(difference, test),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number (Holm 1979): the family-wise error stays at its level."""
    count = len(p_values)
    adjusted = [0.0] * count
    largest = 0.0
    for place, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def resamples(count: int, *, draws: int, seed: int) -> NDArray[np.int64]:
    """Return (draws, count) indices with replacement: which seeds each bootstrap draw takes."""
    return np.random.default_rng(seed).integers(count, size=(draws, count))


def mean_interval(values: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Return Student's t interval of a mean; NaN of a single value, which says nothing of others.

    The middle of bootstrap means is no substitute where seeds are few: of three, 95 % are 76 %.
    """
    sample = np.asarray(values, dtype=np.float64)
    count, mean = len(sample), float(sample.mean())
    if count < 2:
        return Interval(math.nan, math.nan)
    half = float(_t_factor(count, confidence) * sample.std(ddof=1) / math.sqrt(count))
    return Interval(mean - half, mean + half)


def ratio_interval(
    above: ArrayLike, below: ArrayLike, *, confidence: float = CONFIDENCE
) -> Interval:
    """Return the t interval of a ratio of means of pairs, linearised about its value.

    NaN of a single pair, and where the lower mean is 0.
    """
    over, under = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if under.mean() == 0:
        return Interval(math.nan, math.nan)
    ratio = over.mean() / under.mean()
    return mean_interval(ratio + (over - ratio * under) / under.mean(), confidence=confidence)


def percentile_interval(
    replicates: ArrayLike, *, count: int, confidence: float = CONFIDENCE
) -> Interval:
    """Return the middle of bootstrap values from ``count`` seeds, widened as Student's t is.

    After Hesterberg (2015, section 4.2, "expanded percentiles"), without which the interval of few
    seeds is too narrow. That of fewer than six still is: no draw lies beyond what was seen. NaN of
    a single one.
    """
    if count < 2:
        return Interval(math.nan, math.nan)
    widened = math.sqrt(count / (count - 1)) * _t_factor(count, confidence)
    tail = 100 * float(stats.norm.sf(widened))
    # of two infinite neighbours an interpolation would make NaN
    low, high = np.percentile(
        np.asarray(replicates, dtype=np.float64), [tail, 100 - tail], method="nearest"
    )
    return Interval(float(low), float(high))


def _t_factor(count: int, confidence: float) -> float:
    return float(stats.t.ppf((1 + confidence) / 2, count - 1))


def spearman_matrix(columns: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
    """Return rank correlations between all columns, each over the rows where both are finite.

    NaN where fewer than 3 rows are left, or one column is constant there.
    """
    values = [np.asarray(column, dtype=np.float64) for column in columns.values()]
    matrix = np.full((len(values), len(values)), math.nan)
    for row, a in enumerate(values):
        for column, b in enumerate(values[: row + 1]):
            matrix[row, column] = matrix[column, row] = _spearman(a, b)
    return matrix


def top_overlap(a: ArrayLike, b: ArrayLike, *, share: float = 0.1) -> float:
    """Return which part of the ``share`` of clips with the highest ``a`` has the highest ``b`` too.

    Rows where either is not finite are left out; at least one clip counts as top; of ties the
    earlier row goes first. NaN without rows.
    """
    left, right = _both_finite(np.asarray(a, np.float64), np.asarray(b, np.float64))
    if not len(left):
        return math.nan
    count = max(1, round(share * len(left)))
    tops = [set(np.argsort(-values, kind="stable")[:count]) for values in (left, right)]
    return len(tops[0] & tops[1]) / count


def _p_value(difference: Vector, test: Test) -> float:
    if not difference.any():
        return 1.0
    if test == "sign-flip":
        return _sign_flip(difference)
    if test == "wilcoxon":
        return float(stats.wilcoxon(difference, zero_method="pratt").pvalue)
    if np.ptp(difference) <= 1e-12 * np.abs(difference).max():
        return 0.0  # one and the same difference in every pair
    return float(stats.ttest_1samp(difference, 0.0).pvalue)


def _sign_flip(difference: Vector) -> float:
    pairs = len(difference)
    if pairs <= _EXACT_PAIRS:
        patterns = np.arange(2**pairs)[:, None] >> np.arange(pairs) & 1
        extra = 0
    else:
        patterns = np.random.default_rng(0).integers(2, size=(_RANDOM_FLIPS, pairs))
        extra = 1  # the observed pattern counts as one of those drawn
    sums = np.abs((1 - 2 * patterns) @ difference)
    observed = abs(difference.sum())
    tolerance = 1e-12 * np.abs(difference).sum()
    return float((np.sum(sums >= observed - tolerance) + extra) / (len(sums) + extra))


def _both_finite(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    finite = np.isfinite(a) & np.isfinite(b)
    return a[finite], b[finite]


def _spearman(a: Vector, b: Vector) -> float:
    left, right = _both_finite(a, b)
    if len(left) < 3 or np.ptp(left) == 0 or np.ptp(right) == 0:
        return math.nan
    return float(stats.spearmanr(left, right).statistic)
