"""How sure an error rate is: the bootstrap over utterances (Bisani and Ney 2004).

N utterances, B resamplings. Intervals are percentiles of the resampled rates. Utterances of one
speaker are not independent, so with few speakers the truth is less sure than an interval says.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from speechkit.asr.scoring import CorpusScore, Counts
from speechkit.errors import RequestError
from speechkit.metrics import CONFIDENCE, Interval

RESAMPLINGS = 2000

# numbers in memory at a time
_CHUNK = 4_000_000

Floats = NDArray[np.float64]
Unit = Literal["words", "characters"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired comparison of the error rates of two systems, in absolute shares.

    Attributes
    ----------
    value
        rate of the second minus rate of the first; negative if the second is better.
    improved
        share of resamplings in which the second has the lower rate.
    """

    value: float
    interval: Interval
    improved: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures, and as ``points`` how tables show them: in percentage points."""
        low, high = 100 * self.interval.low, 100 * self.interval.high
        points = f"{100 * self.value:+.2f} ({low:+.2f} to {high:+.2f})"
        return {**asdict(self), "points": points}


def wer_interval(score: CorpusScore, *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the word error rate; [0, 0] for a corpus without utterances."""
    errors, lengths = _columns(score, "words")
    return _percentiles(_rates(errors[None], lengths, seed)[0], confidence)


def compare(
    first: CorpusScore,
    second: CorpusScore,
    *,
    unit: Unit = "words",
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Compare WER, or CER, of two systems on the same utterances, resampling them together.

    Raises
    ------
    RequestError
        if their utterances or references differ.
    """
    errors, lengths = _columns(first, unit)
    other = {score.transcript.id: score for score in second.utterances}
    ids = [score.transcript.id for score in first.utterances]
    if set(ids) != set(other):
        raise RequestError(
            f"the systems transcribed different utterances ({len(set(ids) ^ set(other))} are "
            "not shared); compare them on the same manifest"
        )
    second = CorpusScore(tuple(other[id_] for id_ in ids))
    if any(
        score.transcript.reference != other[score.transcript.id].transcript.reference
        for score in first.utterances
    ):
        raise RequestError("the systems' references differ; normalise them alike")
    other_errors, _ = _columns(second, unit)
    rates = _rates(np.stack([errors, other_errors]), lengths, seed)
    change = rates[1] - rates[0]
    return Difference(
        value=getattr(second, unit).rate - getattr(first, unit).rate,
        interval=_percentiles(change, confidence),
        improved=float(np.mean(change < 0)),
    )


def _columns(score: CorpusScore, unit: Unit) -> tuple[Floats, Floats]:
    """Return (N,) errors and (N,) lengths."""
    counts: list[Counts] = [getattr(utterance, unit) for utterance in score.utterances]
    errors, lengths = [c.errors for c in counts], [c.length for c in counts]
    return np.array(errors, dtype=float), np.array(lengths, dtype=float)


def _rates(errors: Floats, lengths: Floats, seed: int) -> Floats:
    """Return (S, B) error rates of resampled corpora from (S, N) errors and (N,) lengths."""
    if not len(lengths):
        return np.zeros((len(errors), 1))
    parts = [
        (errors @ times.T) / np.maximum(times @ lengths, 1)
        for times in _resamplings(len(lengths), seed)
    ]
    return np.concatenate(parts, axis=1)


def _resamplings(count: int, seed: int) -> Iterator[Floats]:
    """Yield (<= B, N) how often each utterance is drawn, in pieces."""
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // count)
    for start in range(0, RESAMPLINGS, rows):
        size = min(rows, RESAMPLINGS - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=size).astype(float)


def _percentiles(values: Floats, confidence: float) -> Interval:
    tail = 50 * (1 - confidence)
    low, high = np.percentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
