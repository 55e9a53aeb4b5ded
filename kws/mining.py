"""Hard negatives: what a trained spotter takes for its keyword, found in audio without it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechkit.audio import INT16_SCALE, SAMPLE_RATE
from speechkit.augment import Span
from speechkit.kws.clips import Clip
from speechkit.kws.detector import Detector
from speechkit.kws.measure import scores_of
from speechkit.kws.streams import Stream, negative_streams

LEAST_SCORE, MOST_ALARMS = 0.1, 1000
"""One under this score teaches little, and more of them for a keyword crowd the rest out."""

# audio kept on both sides of an alarm, for scenes to be cut from
_CONTEXT_S = 2.5
# alarms nearer than this are one
_APART_S = 1.5
# the part of the window that is laid into training windows, so that it can be moved in them
_CORE_S = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Alarm:
    """A false alarm.

    Attributes
    ----------
    clip_id, centre_s
        the clip, and the time in it where the deciding window has its centre.
    keyword, score
        what it was taken for.
    heard, amid
        what the detector heard, noise and neighbours included: the second that is in training
        windows (its span), and 2.5 s on both sides as far as the stream goes; and the ids of the
        clips in it.
    """

    clip_id: str
    centre_s: float
    keyword: str
    score: float
    heard: Clip
    amid: tuple[str, ...]


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
    """Return each keyword's highest-scoring false alarms, at least 1.5 s apart, highest first.

    Parameters
    ----------
    least_score, most
        what counts as an alarm, and how many to keep for each keyword.
    snrs_db
        the conditions to listen in; an alarm in several of them counts once.
    """
    kept: dict[str, list[Alarm]] = {keyword: [] for keyword in detector.spotter.keywords}
    for snr_db in snrs_db:
        for stream in negative_streams(clips, noises, snr_db=snr_db, seed=seed):
            found = list(_alarms(detector, stream, least_score))
            # at once: what they heard takes memory
            for keyword, alarms in kept.items():
                new = [alarm for alarm in found if alarm.keyword == keyword]
                kept[keyword] = _best([*alarms, *new], most)
    return [alarm for alarms in kept.values() for alarm in alarms]


def _best(alarms: list[Alarm], most: int) -> list[Alarm]:
    """Return the highest of one keyword's; where a place alarms in several conditions, once."""
    best: list[Alarm] = []
    heard: dict[str, list[float]] = {}
    for alarm in sorted(alarms, key=lambda a: (-a.score, a.clip_id, a.centre_s)):
        times_s = heard.setdefault(alarm.clip_id, [])
        far = all(abs(alarm.centre_s - time_s) >= _APART_S for time_s in times_s)
        if far and len(best) < most:
            times_s.append(alarm.centre_s)
            best.append(alarm)
    return best


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
            heard, amid = _heard(stream, round(centre), f"{piece.id}@{centre_s:.2f} {keyword}")
            score = float(scores[window, column])
            yield Alarm(piece.id, centre_s, keyword, score, heard, amid)


def _heard(stream: Stream, centre: int, id_: str) -> tuple[Clip, tuple[str, ...]]:
    """Cut what was heard about a moment out of a stream; also name the clips in it."""
    half, context = round(_CORE_S / 2 * SAMPLE_RATE), round(_CONTEXT_S * SAMPLE_RATE)
    first = max(0, centre - half - context)
    audio = stream.audio[first : centre + half + context]
    # noise may carry it beyond full scale: quieter then, never clipped
    scale = (INT16_SCALE - 1) / max(1.0, float(np.abs(audio).max()))
    core = Span(max(0, centre - half - first), min(len(audio), centre + half - first))
    ends = [*(piece.offset for piece in stream.pieces[1:]), len(stream.audio)]
    amid = tuple(
        piece.id
        for piece, end in zip(stream.pieces, ends, strict=True)
        if piece.offset < first + len(audio) and end > first
    )
    return Clip(id_, np.round(audio * scale).astype(np.int16), core), amid


def _peaks(scores: NDArray[np.float64], least: float, apart: int) -> list[int]:
    """Return the highest windows, each at least ``apart`` from all higher ones."""
    free = scores >= least
    peaks = []
    for window in np.argsort(-scores, kind="stable"):
        if free[window]:
            peaks.append(int(window))
            free[max(0, window - apart + 1) : window + apart] = False
    return peaks
