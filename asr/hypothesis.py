"""What a recogniser says about a recording."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its place in the recording.

    Attributes
    ----------
    confidence
        in [0, 1]; None where nobody asked for it.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float | None = None


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A transcript.

    Attributes
    ----------
    text
        words with single spaces between; empty where nothing was heard.
    tokens
        the tokens of the text, without blanks.
    times
        for each token the time in s of the frame where it is likeliest.
    confidence
        in [0, 1], for the transcript as a whole.
    words
        the words with their times, if they were asked for.
    """

    text: str
    tokens: tuple[int, ...] = ()
    times: tuple[float, ...] = ()
    confidence: float = 1.0
    words: tuple[Word, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self)
