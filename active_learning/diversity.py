"""Diverse picks: k-means++ and k-centre on embeddings, weighted by how much a clip is wanted.

Letters: N candidates (in the order of their ids), E dimensions of an embedding.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechkit.active_learning.keyed import Keys, uniforms

Vector = NDArray[np.float64]
# (weights x squared distances (N,), step) -> index of the clip to take
Choice = Callable[[Vector, int], int]
Spread = Literal["kmeans++", "k-centre"]


def spread_out(
    embeddings: NDArray[np.floating],
    weights: Vector,
    *,
    costs: Vector,
    amount: float,
    keys: Keys,
    how: Spread,
) -> list[int]:
    """Pick candidates one after the other, each far from those before, while the budget lasts.

    The first one is chosen by its weight alone, the others by weight times squared distance to the
    nearest pick: at random in proportion to it (k-means++, Arthur and Vassilvitskii 2007), or the
    largest (greedy k-centre, Gonzalez 1985). Candidates that no longer fit the budget are passed
    over. Once all that is left repeats a pick, weights decide alone again.

    Parameters
    ----------
    embeddings
        (N, E).
    weights
        (N,), 0 or more.
    costs, amount
        what each takes of the budget, and the budget.
    keys
        (N,), from which every random choice derives.
    """
    points = np.ascontiguousarray(embeddings, dtype=np.float64)
    choose = _race(keys) if how == "kmeans++" else _largest
    open_ = np.ones(len(points), dtype=bool)
    nearest = np.full(len(points), math.inf)
    picks: list[int] = []
    left = amount
    while (fits := open_ & fits_in(costs, left)).any():
        gain = weights * nearest if picks else weights
        if not (gain[fits] > 0).any():
            gain = weights if (weights[fits] > 0).any() else np.ones(len(points))
        pick = choose(np.where(fits, gain, -1.0), len(picks))
        picks.append(pick)
        open_[pick] = False
        left -= costs[pick]
        nearest = np.minimum(nearest, np.square(points - points[pick]).sum(axis=1))
    return picks


def fits_in(costs: Vector, left: float) -> NDArray[np.bool_]:
    """Say which costs fit what is left, taking sums of decimal fractions for what they mean."""
    return costs <= left * (1 + 1e-9) + 1e-9


def clusters(embeddings: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """Assign points (N, E) to the nearest of ``count`` of them, found by greedy k-centre."""
    points = np.ascontiguousarray(embeddings, dtype=np.float64)
    labels = np.zeros(len(points), dtype=np.int64)
    nearest = np.full(len(points), math.inf)
    centre = 0
    for label in range(min(count, len(points))):
        distances = np.square(points - points[centre]).sum(axis=1)
        labels[distances < nearest] = label
        nearest = np.minimum(nearest, distances)
        centre = int(np.argmax(nearest))
    return labels


def _largest(gain: Vector, step: int) -> int:
    return int(np.argmax(gain))  # the first one, so ties go by id


def _race(keys: Keys) -> Choice:
    """Return a choice with probability proportional to the gain, as the winner of a race.

    The candidate whose exponential time over its gain is shortest wins (Efraimidis and Spirakis
    2006), so that a candidate's luck is its own and not a matter of who else is there.
    """

    def choose(gain: Vector, step: int) -> int:
        # relative, since times of tiny gains would all be infinite
        speed = np.maximum(gain, 0.0) / (gain.max() if gain.max() > 0 else 1.0)
        with np.errstate(divide="ignore", over="ignore"):
            times = -np.log(uniforms(keys, step=step)) / speed
        return int(np.nanargmin(np.where(gain < 0, np.nan, times)))

    return choose
