"""Hard negatives: what a trained spotter takes for its keyword, found in audio without it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechkit.audio import SAMPLE_RATE
from speechkit.augment import Span
from speechkit.kws.clips import Clip
from speechkit.kws.detector import Detector
from speechkit.kws.measure import scores_of
from speechkit.kws.streams import Stream, negative_streams

# audio kept on both sides of an alarm, for scenes to be built around it
CONTEXT_S = 2.5
# alarms nearer than this are one
_APART_S = 1.5
# the part of the window that is laid into training windows, so that it can be moved in them
_CORE_S = 1.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """A false alarm: the clip, the time in it where the deciding window has its centre, a score."""

    clip_id: str
    centre_s: float
    keyword: str
    score: float

    @property
    def core(self) -> tuple[float, float]:
        """Start and end in the clip, in seconds, of what training windows must hold."""
        return self.centre_s - _CORE_S / 2, self.centre_s + _CORE_S / 2


def find_alarms(
    detector: Detector,
    clips: Sequence[Clip],
    noises: Sequence[Clip],
    *,
    least_score: float,
    most: int,
    snrs_db: Iterable[float | None] = (None, 5.0),
    seed: int = 0,
) -> list[Alarm]:
    """Return the highest-scoring false alarms, at least 1.5 s apart, in descending order.

    Parameters
    ----------
    least_score, most
        what counts as an alarm, and how many to keep for each keyword.
    snrs_db
        the conditions to listen in; an alarm in several of them counts once.
    """
    alarms = [
        alarm
        for snr_db in snrs_db
        for stream in negative_streams(clips, noises, snr_db=snr_db, seed=seed)
        for alarm in _alarms(detector, stream, least_score)
    ]
    alarms.sort(key=lambda alarm: (-alarm.score, alarm.clip_id, alarm.centre_s))
    kept: dict[str, list[Alarm]] = {keyword: [] for keyword in detector.spotter.keywords}
    heard: dict[tuple[str, str], list[float]] = {}
    for alarm in alarms:
        times_s = heard.setdefault((alarm.keyword, alarm.clip_id), [])
        # the same place alarms in several conditions
        far = all(abs(alarm.centre_s - time_s) >= _APART_S for time_s in times_s)
        if far and len(kept[alarm.keyword]) < most:
            times_s.append(alarm.centre_s)
            kept[alarm.keyword].append(alarm)
    return [alarm for of_keyword in kept.values() for alarm in of_keyword]


def excerpt(clip: Clip, alarm: Alarm) -> Clip:
    """Cut an alarm with some context out of its clip, its core as the span."""
    core = Span(*(round(t * SAMPLE_RATE) for t in alarm.core))
    context = round(CONTEXT_S * SAMPLE_RATE)
    first = max(0, core.start - context)
    last = min(len(clip.samples), core.end + context)
    return Clip(f"{clip.id}@{alarm.centre_s:.2f}", clip.samples[first:last], core.shifted(-first))


def _alarms(detector: Detector, stream: Stream, least_score: float) -> Iterable[Alarm]:
    scores = scores_of(detector, stream)
    offsets = np.array([piece.offset for piece in stream.pieces])
    for column, keyword in enumerate(detector.spotter.keywords):
        for window in _peaks(scores[:, column], least_score, round(_APART_S / detector.shift_s)):
            centre = (window * detector.shift_s + detector.window_s / 2) * SAMPLE_RATE
            piece = stream.pieces[int(np.searchsorted(offsets, centre, side="right")) - 1]
            if centre >= len(stream.audio):
                continue  # in the silence behind the stream
            centre_s = (centre - piece.offset) / SAMPLE_RATE
            yield Alarm(piece.id, centre_s, keyword, float(scores[window, column]))


def _peaks(scores: NDArray[np.float64], least: float, apart: int) -> list[int]:
    """Return the highest windows, each at least ``apart`` from all higher ones."""
    free = scores >= least
    peaks = []
    for window in np.argsort(-scores, kind="stable"):
        if free[window]:
            peaks.append(int(window))
            free[max(0, window - apart + 1) : window + apart] = False
    return peaks
