"""How sure an error rate is: the bootstrap over utterances (Bisani and Ney 2004).

N utterances, B resamplings. Intervals are percentiles of the resampled rates. Utterances of one
speaker are not independent, so with few speakers the truth is less sure than an interval says.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speechkit.asr.scoring import CorpusScore
from speechkit.errors import RequestError
from speechkit.metrics import CONFIDENCE, Interval

RESAMPLINGS = 2000

# numbers in memory at a time
_CHUNK = 4_000_000

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired comparison of the word error rates of two systems, in absolute shares.

    Attributes
    ----------
    value
        WER of the second minus WER of the first; negative if the second is better.
    improved
        share of resamplings in which the second has the lower WER.
    """

    value: float
    interval: Interval
    improved: float


def wer_interval(score: CorpusScore, *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Return the interval of the word error rate; [0, 0] for a corpus without utterances."""
    errors, lengths = _columns(score)
    return _percentiles(_rates(errors[None], lengths, seed)[0], confidence)


def compare(
    first: CorpusScore, second: CorpusScore, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Difference:
    """Compare two systems on the same utterances, resampling them together.

    Raises
    ------
    RequestError
        if their utterances or references differ.
    """
    errors, lengths = _columns(first)
    other = {score.transcript.id: score for score in second.utterances}
    ids = [score.transcript.id for score in first.utterances]
    if set(ids) != set(other):
        raise RequestError(
            f"the systems transcribed different utterances ({len(set(ids) ^ set(other))} are "
            "not shared); compare them on the same manifest"
        )
    second = CorpusScore(tuple(other[id_] for id_ in ids))
    other_errors, other_lengths = _columns(second)
    if not np.array_equal(lengths, other_lengths):
        raise RequestError("the systems' references differ; normalise them alike")
    rates = _rates(np.stack([errors, other_errors]), lengths, seed)
    change = rates[1] - rates[0]
    return Difference(
        value=second.words.rate - first.words.rate,
        interval=_percentiles(change, confidence),
        improved=float(np.mean(change < 0)),
    )


def _columns(score: CorpusScore) -> tuple[Floats, Floats]:
    """Return (N,) errors and (N,) lengths."""
    errors = [utterance.words.errors for utterance in score.utterances]
    lengths = [utterance.words.length for utterance in score.utterances]
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
