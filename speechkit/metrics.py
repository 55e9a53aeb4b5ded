"""Counts with their uncertainty."""

from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


def wilson_interval(hits: int, trials: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Interval of a proportion (Wilson 1927): sound for few trials and for shares near 0 or 1.

    No trials tell nothing: the interval is [0, 1].
    """
    if trials == 0:
        return Interval(0.0, 1.0)
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    share = hits / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * ((share * (1 - share) + z * z / (4 * trials)) / trials) ** 0.5
    half /= 1 + z * z / trials
    # the ends are exact where rounding would leave 1e-17
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == trials else min(1.0, centre + half)
    return Interval(low, high)


def poisson_rate_interval(
    events: int, exposure: float, *, confidence: float = CONFIDENCE
) -> Interval:
    """Exact interval of a rate, events / exposure (Garwood 1936).

    No exposure tells nothing: the interval is [0, infinity).
    """
    if exposure <= 0:
        return Interval(0.0, float("inf"))
    tail = (1 - confidence) / 2
    low = 0.0 if events == 0 else float(stats.chi2.ppf(tail, 2 * events)) / 2
    high = float(stats.chi2.ppf(1 - tail, 2 * events + 2)) / 2
    return Interval(low / exposure, high / exposure)


def paired_difference_interval(
    only_first: int, only_second: int, trials: int, *, confidence: float = CONFIDENCE
) -> Interval:
    """Interval of the share of the second less that of the first, of the same trials.

    Agresti and Min (2005): half a trial is added to each of the four outcomes, which keeps the
    coverage where few trials or none part the two.

    Parameters
    ----------
    only_first, only_second
        trials that count for one of the two alone.
    """
    size = trials + 2
    centre = (only_second - only_first) / size
    z = float(stats.norm.ppf(0.5 + confidence / 2))
    half = z * ((only_first + only_second + 1) / size - centre**2) ** 0.5 / size**0.5
    return Interval(max(-1.0, centre - half), min(1.0, centre + half))


def mcnemar_test(only_first: int, only_second: int) -> float:
    """Return how probable it is by chance that two differ so much (McNemar's exact test)."""
    apart = only_first + only_second
    return 1.0 if apart == 0 else float(stats.binomtest(only_first, apart).pvalue)
