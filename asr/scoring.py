"""Word and character errors of transcripts: counts, alignments, confusions, tables by speaker.

Rates are errors over the length of the reference, for a corpus the sums of both (micro average).
Words are split at white space; characters are those of the words with single spaces between.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import jiwer

from speechkit.errors import RequestError

Kind = Literal["equal", "substitute", "insert", "delete"]


@dataclass(frozen=True, slots=True)
class Counts:
    """Edits that turn references into hypotheses."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def length(self) -> int:
        """Words or characters of the reference."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors over length; an empty reference counts as one of length 1."""
        return self.errors / max(self.length, 1)

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True, slots=True)
class Pair:
    """A step of an alignment; None stands for a word that the other side lacks."""

    kind: Kind
    reference: str | None
    hypothesis: str | None


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said, normalised, and what was recognised."""

    id: str
    reference: str
    hypothesis: str
    speaker: str | None = None


@dataclass(frozen=True, slots=True)
class UtteranceScore:
    """The errors of one utterance."""

    transcript: Transcript
    words: Counts
    characters: Counts
    alignment: tuple[Pair, ...]

    @property
    def correct(self) -> list[bool]:
        """For each word of the hypothesis, whether it is right."""
        return [pair.kind == "equal" for pair in self.alignment if pair.hypothesis is not None]


@dataclass(frozen=True)
class CorpusScore:
    """The errors of a corpus, utterance by utterance."""

    utterances: tuple[UtteranceScore, ...]

    @property
    def words(self) -> Counts:
        """Sum over utterances; its rate is the WER."""
        return _total(score.words for score in self.utterances)

    @property
    def characters(self) -> Counts:
        """Sum over utterances; its rate is the CER."""
        return _total(score.characters for score in self.utterances)

    @property
    def wrong_utterances(self) -> int:
        """Utterances with at least one word error."""
        return sum(score.words.errors > 0 for score in self.utterances)

    def by_speaker(self) -> dict[str | None, "CorpusScore"]:
        """Return a score for each speaker, the highest WER first."""
        groups: dict[str | None, list[UtteranceScore]] = {}
        for score in self.utterances:
            groups.setdefault(score.transcript.speaker, []).append(score)
        parts = {speaker: CorpusScore(tuple(scores)) for speaker, scores in groups.items()}
        return dict(sorted(parts.items(), key=lambda item: (-item[1].words.rate, str(item[0]))))

    def confusions(self, kind: Kind, *, top: int = 20) -> list[tuple[Pair, int]]:
        """Return the commonest edits of a kind and how often each happens."""
        pairs = Counter(
            pair for score in self.utterances for pair in score.alignment if pair.kind == kind
        )
        # equal counts in the order of the alphabet, so that reports can be compared
        return sorted(pairs.items(), key=lambda item: (-item[1], str(item[0])))[:top]


def score(transcripts: Iterable[Transcript]) -> CorpusScore:
    """Align hypotheses with references by least edits.

    Raises
    ------
    RequestError
        if an id occurs twice.
    """
    transcripts = list(transcripts)
    ids = Counter(transcript.id for transcript in transcripts)
    if repeated := [id_ for id_, times in ids.items() if times > 1]:
        raise RequestError(f"id {repeated[0]!r} occurs {ids[repeated[0]]} times; give each once")
    return CorpusScore(tuple(_score_one(transcript) for transcript in transcripts))


def _score_one(transcript: Transcript) -> UtteranceScore:
    reference, hypothesis = transcript.reference.split(), transcript.hypothesis.split()
    alignment = _align(reference, hypothesis)
    characters = _align(list(" ".join(reference)), list(" ".join(hypothesis)))
    return UtteranceScore(transcript, _counts(alignment), _counts(characters), tuple(alignment))


def _align(reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    as_they_are = jiwer.Compose([])
    output = jiwer.process_words(
        [list(reference)],
        [list(hypothesis)],
        reference_transform=as_they_are,
        hypothesis_transform=as_they_are,
    )
    return [
        pair
        for chunk in output.alignments[0]
        for pair in _pairs(
            chunk.type,
            reference[chunk.ref_start_idx : chunk.ref_end_idx],
            hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx],
        )
    ]


def _pairs(kind: Kind, reference: Sequence[str], hypothesis: Sequence[str]) -> list[Pair]:
    if kind == "insert":
        return [Pair(kind, None, word) for word in hypothesis]
    if kind == "delete":
        return [Pair(kind, word, None) for word in reference]
    return [Pair(kind, *words) for words in zip(reference, hypothesis, strict=True)]


def _counts(alignment: Sequence[Pair]) -> Counts:
    kinds = Counter(pair.kind for pair in alignment)
    return Counts(kinds["equal"], kinds["substitute"], kinds["delete"], kinds["insert"])


def _total(counts: Iterable[Counts]) -> Counts:
    return reduce(add, counts, Counts())
