"""Word n-gram models with back-off: ARPA files in and out, probabilities, perplexity.

Probabilities are natural logarithms here, and logarithms to base 10 in files. Katz's rule
(1987): p(w | h) is listed, or else is backoff(h) p(w | h without its first word).
"""

import gzip
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, cast

from speechkit.errors import RequestError
from speechkit.files import atomic_path

START, END, UNKNOWN = "<s>", "</s>", "<unk>"

Words = tuple[str, ...]

_LN10 = math.log(10)

# how files write the logarithm of zero, and what is shown for it in memory
_ZERO_LOG10 = -99.0


@dataclass(frozen=True)
class Perplexity:
    """How well a model predicts texts.

    Attributes
    ----------
    value
        exp of the mean negative log-probability of the known words and the ends of sentences.
    known, unknown
        number of events (words and ends) that entered the mean, and of words left out.
    """

    value: float
    known: int
    unknown: int


class NGramModel:
    """A back-off model.

    Attributes
    ----------
    entries
        n-gram -> (ln probability of its last word after the others, ln back-off weight); in
        memory some 200 bytes an entry.
    order
        length of the longest n-gram.
    """

    def __init__(self, entries: dict[Words, tuple[float, float]]) -> None:
        self.entries = entries
        self.order = max(map(len, entries))

    @property
    def vocabulary(self) -> frozenset[str]:
        """The words it knows, without the marks of sentence start, end and unknown words."""
        words = {gram[0] for gram in self.entries if len(gram) == 1}
        return frozenset(words - {START, END, UNKNOWN})

    def start(self) -> Words:
        """Return the history at the start of a sentence."""
        return (START,) if self.order > 1 and (START,) in self.entries else ()

    def knows(self, word: str) -> bool:
        """Say whether the model lists a word."""
        return (word,) in self.entries

    def score(self, history: Words, word: str) -> tuple[float, Words]:
        """Return ln p(word | history) and the history after it.

        A word that is not listed is taken for ``<unk>``; in a model without that it has
        probability 0. Histories are cut to what can matter, so that equal futures compare equal.
        """
        if not self.knows(word):
            if not self.knows(UNKNOWN):
                return -math.inf, ()
            word = UNKNOWN
        return self._log_probability(history, word), self._after(history, word)

    def finish(self, history: Words) -> float:
        """Return ln p(end of sentence | history), 0 for a model that lists no end."""
        return self._log_probability(history, END) if self.knows(END) else 0.0

    def sentence(self, words: Iterable[str]) -> float:
        """Return the ln probability of a whole sentence, its end included."""
        history, total = self.start(), 0.0
        for word in words:
            log_probability, history = self.score(history, word)
            total += log_probability
        return total + self.finish(history)

    def perplexity(self, texts: Iterable[str]) -> Perplexity:
        """Measure the model on texts, one sentence each, words split at white space.

        Raises
        ------
        RequestError
            if there is no text.
        """
        total, known, unknown = 0.0, 0, 0
        for text in texts:
            history = self.start()
            for word in text.split():
                log_probability, history = self.score(history, word)
                if self.knows(word):
                    total, known = total + log_probability, known + 1
                else:
                    unknown += 1
            total, known = total + self.finish(history), known + 1
        if known == 0:
            raise RequestError("no text to measure the language model on; give one or more")
        try:
            value = math.exp(-total / known)
        except OverflowError:  # of words that a file calls all but impossible
            value = math.inf
        return Perplexity(value, known, unknown)

    def save(self, path: Path | str) -> None:
        """Write an ARPA file, gzipped if its name ends in .gz."""
        with atomic_path(path) as temporary, _opened(temporary, "wt") as file:
            file.writelines(line + "\n" for line in self._lines())

    @classmethod
    def load(cls, path: Path | str) -> "NGramModel":
        """Read an ARPA file, gzipped if its name ends in .gz.

        Raises
        ------
        RequestError
            with the number of the line, if the file is missing, cut off or no ARPA file.
        """
        return cls(_Reader(Path(path)).entries())

    def _log_probability(self, history: Words, word: str) -> float:
        total = 0.0
        while True:
            entry = self.entries.get((*history, word))
            if entry is not None:
                return total + entry[0]
            if not history:
                return -math.inf
            total += self.entries.get(history, (0.0, 0.0))[1]
            history = history[1:]

    def _after(self, history: Words, word: str) -> Words:
        after = (*history, word)[-(self.order - 1) :] if self.order > 1 else ()
        while after and after not in self.entries:
            after = after[1:]
        return after

    def _lines(self) -> Iterator[str]:
        by_order: list[list[Words]] = [[] for _ in range(self.order)]
        for gram in self.entries:
            by_order[len(gram) - 1].append(gram)
        yield "\\data\\"
        yield from (f"ngram {n}={len(grams)}" for n, grams in enumerate(by_order, start=1))
        for n, grams in enumerate(by_order, start=1):
            yield ""
            yield f"\\{n}-grams:"
            for gram in sorted(grams):
                log_probability, backoff = self.entries[gram]
                line = f"{_log10(log_probability)}\t{' '.join(gram)}"
                yield line if n == self.order else f"{line}\t{_log10(backoff)}"
        yield ""
        yield "\\end\\"


def _log10(ln: float) -> str:
    return f"{max(ln / _LN10, _ZERO_LOG10):.9g}"


def _opened(path: Path, mode: str) -> TextIO:
    opened = gzip.open if path.suffix == ".gz" else open
    return cast(TextIO, opened(path, mode, encoding="utf-8"))


class _Reader:
    """A reader of one ARPA file, which knows the line that it is at."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = 0
        self._words: dict[str, str] = {}

    def entries(self) -> dict[Words, tuple[float, float]]:
        """Read the whole file."""
        if not self.path.is_file():
            raise RequestError(f"{self.path}: no such file; give an n-gram model in ARPA format")
        try:
            with _opened(self.path, "rt") as file:
                return self._parse(self._numbered(file))
        except UnicodeDecodeError as error:
            raise self._error("is no UTF-8 text, so no ARPA file") from error
        except (OSError, EOFError, zlib.error) as error:
            raise RequestError(f"{self.path}: cannot be read ({error})") from error

    def _numbered(self, file: TextIO) -> Iterator[str]:
        """Yield stripped lines that are not empty, and keep count."""
        for self.number, line in enumerate(file, start=1):
            if stripped := line.strip():
                yield stripped

    def _parse(self, lines: Iterator[str]) -> dict[Words, tuple[float, float]]:
        # text before the header is a comment
        if "\\data\\" not in lines:
            raise self._error("no line \\data\\; this is no ARPA file")
        counts: list[int] = []
        line = next(lines, "")
        while line.startswith("ngram "):
            counts.append(self._count(line, len(counts) + 1))
            line = next(lines, "")
        if not counts:
            raise self._error("wanted is a line such as 'ngram 1=1000'")
        entries: dict[Words, tuple[float, float]] = {}
        for n, count in enumerate(counts, start=1):
            if line != f"\\{n}-grams:":
                raise self._error(f"wanted is \\{n}-grams:, found is {line!r}")
            before = len(entries)
            for line in lines:
                if line.startswith("\\") and line.endswith((":", "\\")):
                    break
                self._entry(line, n, entries)
            if len(entries) - before != count:
                raise self._error(
                    f"{len(entries) - before} {n}-grams are there, announced are {count}"
                )
        if line != "\\end\\":
            raise self._error("the file ends without \\end\\; it is cut off")
        if not entries:
            raise self._error("the model is empty")
        return entries

    def _count(self, line: str, order: int) -> int:
        name, _, count = line.removeprefix("ngram ").partition("=")
        if name.strip() != str(order) or not count.strip().isdecimal():
            raise self._error(f"wanted is 'ngram {order}=COUNT', found is {line!r}")
        return int(count)

    def _entry(self, line: str, order: int, entries: dict[Words, tuple[float, float]]) -> None:
        fields = line.split()
        if len(fields) - order not in (1, 2):
            raise self._error(f"wanted are a number, {order} words and a back-off, found {line!r}")
        try:
            log_probability = float(fields[0])
            backoff = float(fields[order + 1]) if len(fields) == order + 2 else 0.0
        except ValueError:
            raise self._error(f"a number is malformed in {line!r}") from None
        # some tools round a probability of 1 up
        if not log_probability < 1e-4 or not backoff < math.inf:
            raise self._error(f"{log_probability:g} is no logarithm of a probability, in {line!r}")
        gram = tuple(self._words.setdefault(word, word) for word in fields[1 : order + 1])
        if gram in entries:
            raise self._error(f"{' '.join(gram)!r} is there twice")
        entries[gram] = (min(log_probability, 0.0) * _LN10, backoff * _LN10)

    def _error(self, reason: str) -> RequestError:
        return RequestError(f"{self.path}, line {self.number}: {reason}")
