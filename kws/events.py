"""From scores along a stream to events, and the exact count of events at every threshold.

An event is a run of scores at or above the threshold, whose gaps are shorter than the refractory
time. Whether a window starts an event depends on few numbers: window i starts one at threshold h
exactly if ``floor_i < h <= score_i``, where ``floor_i`` is the highest score in the refractory
time before it. So one pass over the scores gives the number of events at *every* threshold, and
the detector, which sees one threshold and one score at a time, finds the same events.

Shapes: N windows of one keyword.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass
class Trigger:
    """Find event starts in scores that come piece by piece.

    Parameters
    ----------
    threshold
        a score at or above it is above the threshold.
    refractory_windows
        scores above the threshold that are fewer windows apart belong to one event.
    """

    threshold: float
    refractory_windows: int
    _since_above: int = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget the stream so far."""
        self._since_above = self.refractory_windows

    def push(self, scores: Scores) -> list[int]:
        """Return the indices into ``scores`` at which events start."""
        starts: list[int] = []
        for index, above in enumerate(scores >= self.threshold):
            self._since_above += 1
            if above:
                if self._since_above >= self.refractory_windows:
                    starts.append(index)
                self._since_above = 0
        return starts


@dataclass(frozen=True, slots=True)
class Onsets:
    """For every window the thresholds, ``floor < h <= score``, at which it starts an event."""

    floor: Scores
    score: Scores

    def starts(self, threshold: float) -> NDArray[np.intp]:
        """Return the windows that start an event at one threshold."""
        return np.flatnonzero((self.floor < threshold) & (threshold <= self.score))


def onsets(scores: Scores, refractory_windows: int) -> Onsets:
    """Compute the `Onsets` of one stream (N,)."""
    reach = max(0, refractory_windows - 1)
    before = np.concatenate([np.full(reach + 1, -np.inf), scores[: max(0, len(scores) - 1)]])
    if reach == 0 or len(scores) == 0:
        floor = np.full(len(scores), -np.inf)
    else:
        # row i of the view holds the scores of windows i - reach .. i - 1
        floor = sliding_window_view(before, reach)[1 : len(scores) + 1].max(axis=1)
    return Onsets(floor, scores.astype(np.float64))


@dataclass(frozen=True, slots=True)
class StepCount:
    """A count as an exact step function of the threshold.

    ``counts[i]`` holds for thresholds in ``(edges[i - 1], edges[i]]``; ``counts[-1]`` above the
    last edge. It has one entry more than ``edges``.
    """

    edges: Scores
    counts: NDArray[np.int64]

    def at(self, thresholds: float | Scores) -> NDArray[np.int64]:
        """Return the count at each threshold."""
        return self.counts[np.searchsorted(self.edges, thresholds, side="left")]


def count_events(streams: Sequence[Onsets]) -> StepCount:
    """Count the events of all streams together as a function of the threshold."""
    lows = np.concatenate([s.floor for s in streams]) if streams else np.zeros(0)
    highs = np.concatenate([s.score for s in streams]) if streams else np.zeros(0)
    live = lows < highs
    return _cover_count(lows[live], highs[live])


def count_detected(occurrences: Sequence[Onsets]) -> StepCount:
    """Count the occurrences in which at least one window starts an event, by threshold.

    Each item holds the onsets of the windows in which one occurrence of the keyword may be hit.
    """
    lows: list[float] = []
    highs: list[float] = []
    for occurrence in occurrences:
        for low, high in _union(occurrence):
            lows.append(low)
            highs.append(high)
    return _cover_count(np.asarray(lows, dtype=np.float64), np.asarray(highs, dtype=np.float64))


def _union(onset: Onsets) -> list[tuple[float, float]]:
    """Merge the half-open intervals (floor, score] of one occurrence into disjoint ones."""
    live = onset.floor < onset.score
    merged: list[tuple[float, float]] = []
    for low, high in sorted(zip(onset.floor[live], onset.score[live], strict=True)):
        if merged and low <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return merged


def _cover_count(lows: Scores, highs: Scores) -> StepCount:
    """Count the intervals (low, high] that cover a threshold."""
    edges = np.unique(np.concatenate([lows[np.isfinite(lows)], highs]))
    points = np.append(edges, np.inf)
    # a threshold in (edges[i-1], edges[i]] is covered by intervals with low < edges[i] <= high
    begun = np.searchsorted(np.sort(lows), points, side="left")
    ended = np.searchsorted(np.sort(highs), points, side="left")
    return StepCount(edges, (begun - ended).astype(np.int64))
