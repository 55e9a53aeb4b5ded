"""A long recording transcribed in one pass, in chunks, and utterance by utterance, by one model.

All ways are scored alike: the words of the whole are aligned with those of all utterances, each
error is put where it is in the recording, and ways are compared over the same utterances, and over
the same surroundings of the chunks' seams, by a paired bootstrap.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from speechkit.asr import bootstrap
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.scoring import (
    CorpusScore,
    Counts,
    Pair,
    Transcript,
    UtteranceScore,
    score,
)
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import JobError, RequestError
from speechkit.isolated import GIB, Limits, run_isolated
from speechkit.ranges import require

Way = Literal["one pass", "chunks", "utterances"]
WAYS: tuple[Way, ...] = get_args(Way)


@dataclass(frozen=True, kw_only=True)
class LongFormConfig:
    """How a long recording is transcribed and compared.

    Parameters
    ----------
    chunk_s, overlap_s
        of transcription in chunks.
    near_s
        what lies within so much of a seam of two chunks is near it.
    seed
        of the bootstrap.
    """

    chunk_s: float = 30.0
    overlap_s: float = 4.0
    near_s: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "seed", "overlap_s", at_least=0)
        require(self, "chunk_s", "near_s", above=0)
        if self.overlap_s >= self.chunk_s:
            raise RequestError(
                f"chunk_s {self.chunk_s}, overlap_s {self.overlap_s}: a chunk must be longer than "
                "its overlap"
            )

    def decoding(self, way: Way) -> DecodingConfig:
        """Return the decoder's settings: greedy, so that only what is heard at once differs."""
        chunk_s = self.chunk_s if way == "chunks" else 0.0
        return DecodingConfig(own_lm=False, chunk_s=chunk_s, overlap_s=self.overlap_s)

    def seams_s(self, duration_s: float) -> NDArray[np.float64]:
        """Return where a recording passes from one chunk to the next."""
        step_s = self.chunk_s - self.overlap_s
        further = max(0, int(np.ceil((duration_s - self.chunk_s) / step_s)))
        return np.arange(1.0, further + 1, dtype=np.float64) * step_s + self.overlap_s / 2


@dataclass(frozen=True)
class Spoken:
    """The words of a recording: text, time in s, and which utterance each belongs to."""

    words: tuple[str, ...]
    times_s: tuple[float, ...]
    utterances: tuple[int, ...]


def way_row(
    model: Path, clips: Sequence[Cut], way: Way, *, config: LongFormConfig, limits: Limits
) -> dict[str, Any]:
    """Transcribe a recording one way, in a process of its own.

    Parameters
    ----------
    clips
        the utterances, cuts of one recording, in their order.

    Returns
    -------
    text, seconds (the model being loaded), peak_gib of the whole process, and "stopped": None, or
    at which limit it was stopped.
    """
    outcome = run_isolated(_transcribe, model, list(clips), way, config, limits=limits)
    text, seconds = outcome.value or (None, None)
    return {
        "model": str(model),
        "way": way,
        "text": text,
        "seconds": seconds,
        "peak_gib": outcome.peak_bytes / GIB,
        "stopped": outcome.stopped,
    }


def spoken(model: Path, clips: Sequence[Cut]) -> Spoken:
    """Return what is said where, by forced alignment; in even steps where that is impossible."""
    transcriber = Transcriber.load(model, DecodingConfig(own_lm=False))
    transcriber.recogniser.hear(clips)
    found = [(i, *pair) for i, cut in enumerate(clips) for pair in _words(transcriber, cut)]
    numbers, words, times_s = zip(*found, strict=True) if found else ((), (), ())
    return Spoken(words, times_s, numbers)


def compare(
    said: Spoken, rows: Sequence[dict[str, Any]], *, duration_s: float, config: LongFormConfig
) -> list[dict[str, Any]]:
    """Score one model's rows; each is compared with the first way that was not stopped.

    Returns
    -------
    For each row that has a text: wer, errors; seam_errors, seam_words within ``near_s`` of a seam;
    and, but for the first, the differences of WER with their paired intervals, near seams only
    where something is said there.

    Raises
    ------
    RequestError
        if nothing was said, of which no share can be wrong.
    """
    if not said.words:
        raise RequestError("the utterances have no words to compare with; give some with texts")
    seams_s = config.seams_s(duration_s)
    near = [_near(time_s, seams_s, config.near_s) for time_s in said.times_s]
    results: list[dict[str, Any]] = []
    first: tuple[CorpusScore, CorpusScore] | None = None
    for row in rows:
        if row["text"] is None:
            continue
        pairs = _aligned(said, row["text"])
        whole, seams = _grouped(pairs, said.utterances), _grouped(pairs, near)
        result = {
            "way": row["way"],
            "wer": whole.words.rate,
            "errors": whole.words.errors,
            "words": whole.words.length,
            "real_time_factor": row["seconds"] / duration_s,
            "seams": len(seams_s),
            "seam_errors": seams.words.errors,
            "seam_words": seams.words.length,
        }
        if first is None:
            first = whole, seams
        else:
            result["against"] = results[0]["way"]
            both = zip(
                ("wer_difference", "seam_wer_difference"), first, (whole, seams), strict=True
            )
            for name, before, after in both:
                if before.words.length == 0:
                    continue
                result[name] = bootstrap.compare(before, after, seed=config.seed).to_dict()
        results.append(result)
    return results


def _transcribe(
    model: Path, clips: list[Cut], way: Way, config: LongFormConfig
) -> tuple[str, float]:
    """Return the text of a recording, and the seconds that it took."""
    transcriber = Transcriber.load(model, config.decoding(way))
    begun = time.perf_counter()
    if way == "utterances":
        transcriber.recogniser.hear(clips)
        texts = [transcriber.transcribe(cut).text for cut in clips]
    else:
        # the file, which is read piece by piece
        texts = [transcriber.transcribe(clips[0].recording.sources[0].source).text]
    return " ".join(texts), time.perf_counter() - begun


def _words(transcriber: Transcriber, cut: Cut) -> Iterator[tuple[str, float]]:
    """Yield the words of an utterance with their times in the recording."""
    recogniser = transcriber.recogniser
    text = recogniser.reference(cut) or ""
    words = text.split()
    tokens = recogniser.tokenizer.encode(text)
    places = [(i + 0.5) / len(words) * cut.duration for i in range(len(words))]
    try:
        log_probs = transcriber.log_probs(cut)
        found = transcriber.timed(log_probs, tokens).words
    except JobError:
        found = ()
    if len(found) == len(words):
        places = [(word.start_s + word.end_s) / 2 for word in found]
    for word, place_s in zip(words, places, strict=True):
        # the last frame may reach beyond the end
        yield word, cut.start + min(place_s, cut.duration)


def _aligned(said: Spoken, text: str) -> list[tuple[int, Pair]]:
    """Return the edits, each with the index of the said word that it is at or comes after."""
    transcript = Transcript("recording", " ".join(said.words), text)
    index, pairs = -1, []
    for pair in score([transcript]).utterances[0].alignment:
        index += pair.reference is not None
        pairs.append((max(index, 0), pair))
    return pairs


def _near(time_s: float, seams_s: NDArray[np.float64], near_s: float) -> int | None:
    """Return the nearest seam, if it is near."""
    if not len(seams_s):
        return None
    nearest = int(np.abs(seams_s - time_s).argmin())
    return nearest if abs(seams_s[nearest] - time_s) <= near_s else None


def _grouped(pairs: Sequence[tuple[int, Pair]], groups: Sequence[int | None]) -> CorpusScore:
    """Return the score of each group of said words, those of group None being left out."""
    members: dict[int, list[Pair]] = {
        group: [] for group in dict.fromkeys(groups) if group is not None
    }
    for index, pair in pairs:
        group = groups[index]
        if group is not None:
            members[group].append(pair)
    return CorpusScore(tuple(_unit(str(group), part) for group, part in members.items()))


def _unit(id_: str, pairs: Sequence[Pair]) -> UtteranceScore:
    kinds = [pair.kind for pair in pairs]
    counts = Counts(*(kinds.count(kind) for kind in ("equal", "substitute", "delete", "insert")))
    reference = " ".join(pair.reference for pair in pairs if pair.reference is not None)
    hypothesis = " ".join(pair.hypothesis for pair in pairs if pair.hypothesis is not None)
    return UtteranceScore(Transcript(id_, reference, hypothesis), counts, Counts(), tuple(pairs))
