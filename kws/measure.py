"""Miss rate against false alarms per hour, measured through the detector, event by event.

A miss rate belongs to a threshold, a threshold to a number of false alarms per hour. `listen` runs
the detector over streams and keeps what decides about events; `Scored` then answers exactly for
any threshold. Terms: FRR is the share of keywords that no detection hits; a detection hits if it
falls in [start, end + 1.5 s] of the keyword; every event in the negatives is a false alarm.

Shapes: N windows of a stream, K keywords.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speechkit.audio import SAMPLE_RATE
from speechkit.kws.detector import Detector
from speechkit.kws.events import Onsets, StepCount, count_detected, count_events, onsets
from speechkit.kws.streams import Stream
from speechkit.metrics import poisson_rate_interval, wilson_interval

HIT_TOLERANCE_S = 1.5

# relative to the distance from 0 or 1: more than float32 logits differ between batch sizes
_HAIR = 1e-5

_PIECE = 60 * SAMPLE_RATE

Status = Literal["ok", "unresolved", "not reached", "no data"]


@dataclass(frozen=True, slots=True)
class Occurrence:
    """A keyword in a stream: the windows in which a detection hits it.

    Attributes
    ----------
    onsets
        of those windows alone.
    delays_s
        from the keyword's end to the decision of each.
    """

    id: str
    onsets: Onsets
    delays_s: NDArray[np.float64]


@dataclass(frozen=True)
class Scored:
    """What the detector made of the positives and negatives of one keyword in one condition.

    Attributes
    ----------
    threshold
        frozen on dev, before any of this was heard; None where none was.
    """

    occurrences: list[Occurrence] = field(default_factory=list)
    negatives: list[Onsets] = field(default_factory=list)
    negative_hours: float = 0.0
    threshold: float | None = None

    def __add__(self, other: "Scored") -> "Scored":
        """Pool two measurements, of several folds say; of unlike thresholds none is left."""
        return Scored(
            self.occurrences + other.occurrences,
            self.negatives + other.negatives,
            self.negative_hours + other.negative_hours,
            self.threshold if self.threshold == other.threshold else None,
        )

    def curve(self) -> "Curve":
        """Return the exact trade-off between misses and false alarms."""
        return Curve(
            detected=count_detected([o.onsets for o in self.occurrences]),
            alarms=count_events(self.negatives),
            positives=len(self.occurrences),
            negative_hours=self.negative_hours,
        )

    def latencies_s(self, threshold: float) -> NDArray[np.float64]:
        """Return the delay from the end of each detected keyword to its first detection."""
        firsts = [o.onsets.starts(threshold) for o in self.occurrences]
        delays = [
            o.delays_s[hits[0]]
            for o, hits in zip(self.occurrences, firsts, strict=True)
            if len(hits)
        ]
        return np.array(delays)


def _just_above(edges: NDArray[np.float64], index: int) -> float | None:
    """Return a threshold just above an edge, 0 for none of them; None if nothing is above it."""
    if index < 0:
        return 0.0
    edge = float(edges[index])
    if edge >= 1:
        return None
    following = float(edges[index + 1]) if index + 1 < len(edges) else 1.0
    hair = min((following - edge) / 2, _HAIR * min(edge, 1 - edge))
    # so near to 0 or 1 that a hair is nothing, the next number still is something
    return max(edge + hair, float(np.nextafter(edge, 1)))


@dataclass(frozen=True)
class Curve:
    """Detections and false alarms as step functions of the threshold."""

    detected: StepCount
    alarms: StepCount
    positives: int
    negative_hours: float

    def misses(self, threshold: float) -> int:
        """Count the keywords that no detection hits."""
        return self.positives - int(self.detected.at(threshold))

    def false_alarms(self, threshold: float) -> int:
        """Count the events in the negatives."""
        return int(self.alarms.at(threshold))

    def threshold_for(self, fa_per_hour: float) -> float | None:
        """Return the lowest threshold from which on upwards the target is met.

        A hair above the score that spoils it, so that rounding in its last digits decides nothing.
        None if that score is 1, which no posterior can exceed. Where nothing spoils the target, the
        lowest at which there are most alarms (without any, most detections): lower down events
        merge, and keywords are lost in them.
        """
        # a product of floats may fall short of the whole number that it stands for
        allowed = fa_per_hour * self.negative_hours * (1 + 1e-9)
        # counts[i] holds up to edges[i]: the threshold must lie above the last failing edge
        failing = np.flatnonzero(self.alarms.counts > allowed)
        if len(failing):
            return _just_above(self.alarms.edges, int(failing[-1]))
        merging = self.alarms if self.alarms.counts.any() else self.detected
        return _just_above(merging.edges, int(np.argmax(merging.counts)) - 1)

    def trade_off(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (false alarms per hour, FRR) at every threshold at which either changes."""
        points = np.union1d(self.detected.edges, self.alarms.edges)
        hours = self.negative_hours or float("nan")
        frr = 1 - self.detected.at(points) / max(1, self.positives)
        return self.alarms.at(points) / hours, frr


def listen(
    detector: Detector,
    *,
    positives: Mapping[str, Iterable[Stream]],
    negatives: Iterable[Stream],
) -> dict[str, Scored]:
    """Run the detector over streams; return what it made of them for each keyword.

    Parameters
    ----------
    positives
        keyword -> streams that hold it.
    negatives
        streams that hold none of the keywords.
    """
    keywords = detector.spotter.keywords
    refractory = detector.refractory_windows
    alarms: list[NDArray[np.float64]] = []
    samples = 0
    for stream in negatives:
        alarms.append(scores_of(detector, stream))
        samples += len(stream.audio)
    scored = {}
    for keyword, streams in positives.items():
        column = keywords.index(keyword)
        occurrences: list[Occurrence] = []
        for stream in streams:
            events = onsets(scores_of(detector, stream)[:, column], refractory)
            occurrences += _occurrences(detector, stream, events)[1]
        scored[keyword] = Scored(
            occurrences,
            [onsets(scores[:, column], refractory) for scores in alarms],
            samples / SAMPLE_RATE / 3600,
            _frozen(detector, keyword),
        )
    return scored


def listen_amid(detector: Detector, stream: Stream, keyword: str) -> Scored:
    """Run the detector over one stream that holds keywords amid other audio.

    An event outside every hit window is a false alarm, and the hours are those outside them.
    """
    column = detector.spotter.keywords.index(keyword)
    events = onsets(scores_of(detector, stream)[:, column], detector.refractory_windows)
    inside, occurrences = _occurrences(detector, stream, events)
    alarms = Onsets(events.floor[~inside], events.score[~inside])
    hours = len(alarms.score) * detector.shift_s / 3600
    return Scored(occurrences, [alarms], hours, _frozen(detector, keyword))


def _frozen(detector: Detector, keyword: str) -> float | None:
    stored = detector.spotter.config.thresholds.get(keyword)
    return None if stored is None else stored.value


def scores_of(detector: Detector, stream: Stream) -> NDArray[np.float64]:
    """Return the scores (N, K) along a stream, heard from a reset on."""
    detector.reset()
    if stream.features is not None:
        return detector.feature_scores(stream.features)
    # piece by piece: an hour at once would take a gigabyte
    starts = range(0, len(stream.audio), _PIECE)
    scores = [detector.scores(stream.audio[start : start + _PIECE]) for start in starts]
    return np.concatenate([*scores, detector.tail_scores()])


def _occurrences(
    detector: Detector, stream: Stream, events: Onsets
) -> tuple[NDArray[np.bool_], list[Occurrence]]:
    """Return which windows (N,) hit a keyword, and what each keyword's windows hold."""
    times_s = detector.decision_time_s(np.arange(len(events.score)))
    found = []
    anywhere = np.zeros(len(events.score), dtype=bool)
    for piece in stream.pieces:
        start_s, end_s = piece.span.start / SAMPLE_RATE, piece.span.end / SAMPLE_RATE
        inside = (times_s >= start_s) & (times_s <= end_s + HIT_TOLERANCE_S)
        anywhere |= inside
        found.append(
            Occurrence(
                piece.id,
                Onsets(events.floor[inside], events.score[inside]),
                times_s[inside] - end_s,
            )
        )
    return anywhere, found


def operating_point(
    parts: Sequence[Scored], *, fa_per_hour: float, frozen: bool = False
) -> dict[str, Any]:
    """Return the report row of one operating point, but for the names of what was measured.

    Parameters
    ----------
    parts
        one measurement, or those of several folds, which are pooled.
    fa_per_hour
        the target.
    frozen
        take the threshold that each part has; else the lowest common one that meets the target on
        these negatives.

    Returns
    -------
    dict
        with ``status``: "ok"; "unresolved" if the target is under one event in all the negatives,
        so that the audio cannot tell; "not reached" if no threshold meets it or none was frozen,
        and then no FRR; "no data" without positives or without negatives.
    """
    hours = sum(part.negative_hours for part in parts)
    positives = sum(len(part.occurrences) for part in parts)
    used = thresholds_of(parts, fa_per_hour=fa_per_hour, frozen=frozen)
    row: dict[str, Any] = {
        "fa_per_hour": fa_per_hour,
        "frr": None,
        "frr_low": None,
        "frr_high": None,
        "threshold": used[0] if len(set(used)) == 1 else None,
        "threshold_from": "dev" if frozen else "eval",
        "status": "not reached",
        "misses": None,
        "positives": positives,
        "false_alarms": None,
        "measured_fa_per_hour": None,
        "fa_per_hour_low": None,
        "fa_per_hour_high": None,
        "negative_hours": hours,
        "latency_p50_s": None,
        "latency_p95_s": None,
    }
    if positives == 0 or hours == 0:
        return row | {"status": "no data"}
    if not used:
        return row
    curves = [part.curve() for part in parts]
    misses = sum(curve.misses(h) for curve, h in zip(curves, used, strict=True))
    alarms = sum(curve.false_alarms(h) for curve, h in zip(curves, used, strict=True))
    status: Status = "unresolved" if fa_per_hour * hours < 1 else "ok"
    row |= {"status": status, "misses": misses, "false_alarms": alarms}
    row |= rates(misses, positives, alarms=alarms, hours=hours)
    latencies = np.concatenate([p.latencies_s(h) for p, h in zip(parts, used, strict=True)])
    if len(latencies):
        row["latency_p50_s"], row["latency_p95_s"] = (
            float(value) for value in np.percentile(latencies, [50, 95])
        )
    return row


def rates(misses: int, positives: int, *, alarms: int, hours: float) -> dict[str, float]:
    """Return FRR and false alarms per hour as a report names them, with 95 % intervals."""
    frr, rate = wilson_interval(misses, positives), poisson_rate_interval(alarms, hours)
    return {
        "frr": misses / positives,
        "frr_low": frr.low,
        "frr_high": frr.high,
        "measured_fa_per_hour": alarms / hours,
        "fa_per_hour_low": rate.low,
        "fa_per_hour_high": rate.high,
    }


def thresholds_of(
    parts: Sequence[Scored], *, fa_per_hour: float, frozen: bool = False
) -> list[float]:
    """Return the threshold of each part, as for `operating_point`; none where there is none."""
    if frozen:
        own = [part.threshold for part in parts if part.threshold is not None]
        return own if len(own) == len(parts) else []
    common = sum(parts, Scored()).curve().threshold_for(fa_per_hour)
    return [] if common is None else [common] * len(parts)


def mean_frr(scored: Scored, targets: Sequence[float]) -> float:
    """Return the FRR averaged over targets of false alarms per hour; 1.0 where not reached."""
    rows = [operating_point([scored], fa_per_hour=target) for target in targets]
    return float(np.mean([1.0 if row["frr"] is None else row["frr"] for row in rows]))
