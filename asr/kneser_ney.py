"""Interpolated Kneser-Ney smoothing (Kneser and Ney 1995; Chen and Goodman 1999, section 2.7).

With one discount D for each order: p(w | h) = max(c(h w) - D, 0) / c(h) + D N(h) / c(h) p(w | h'),
where N(h) is how many different words follow h and h' is h without its first word. Below the
highest order, c counts the different words before an n-gram rather than its occurrences. The
unigrams are interpolated with a uniform distribution, whose share of ``<unk>`` is all it gets.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from speechkit.asr.ngram import END, START, UNKNOWN, NGramModel, Words
from speechkit.errors import RequestError

MAX_ORDER = 6

# when the counts of counts say nothing: no n-gram occurs once, or none twice
_DISCOUNT = 0.75


def train(texts: Iterable[str], *, order: int = 2) -> NGramModel:
    """Estimate a model from normalised texts, a sentence each, words split at white space.

    Parameters
    ----------
    order
        length of the longest n-gram, 1 to 6.

    Raises
    ------
    RequestError
        if the order is out of range, the texts hold no word, or a word is a reserved mark.
    """
    if not 1 <= order <= MAX_ORDER:
        raise RequestError(f"order {order}: give 1 to {MAX_ORDER}")
    sentences = [text.split() for text in texts]
    vocabulary = {word for sentence in sentences for word in sentence}
    if not vocabulary:
        raise RequestError("no words to train a language model on; give transcripts")
    if reserved := vocabulary & {START, END, UNKNOWN}:
        raise RequestError(f"word {', '.join(sorted(reserved))} is reserved; normalise the texts")
    counts = _adjusted_counts(sentences, order)
    uniform = 1 / (len(vocabulary) + 2)  # with the end and the unknown word
    probabilities: dict[Words, float] = {}
    backoffs: dict[Words, float] = {}
    for n in range(1, order + 1):
        _estimate(counts[n], probabilities, backoffs, uniform=uniform)
    probabilities.setdefault((UNKNOWN,), backoffs[()] * uniform)
    probabilities[START,] = 0.0
    return NGramModel(
        {
            gram: (_ln(probability), _ln(backoffs.get(gram, 1.0)))
            for gram, probability in probabilities.items()
        }
    )


def _adjusted_counts(sentences: Iterable[list[str]], order: int) -> dict[int, dict[Words, int]]:
    """Return the counts of each order: of occurrences for the highest, of contexts below."""
    counts: dict[int, Counter[Words]] = {n: Counter() for n in range(1, order + 1)}
    for sentence in sentences:
        words = (START, *sentence, END)
        for n in counts:
            counts[n].update(words[i : i + n] for i in range(len(words) - n + 1))
    adjusted: dict[int, dict[Words, int]] = {order: dict(counts[order])}
    for n in range(1, order):
        contexts = Counter(gram[1:] for gram in counts[n + 1])
        # nothing stands before the start of a sentence, so there occurrences must do
        opening = {gram: c for gram, c in counts[n].items() if gram[0] == START}
        adjusted[n] = {**contexts, **opening}
    adjusted[1].pop((START,))  # it is never predicted
    return adjusted


def _estimate(
    counts: Mapping[Words, int],
    probabilities: dict[Words, float],
    backoffs: dict[Words, float],
    *,
    uniform: float,
) -> None:
    """Add the probabilities of one order, and the back-off weights of their histories."""
    discount = _discount(counts.values())
    totals: dict[Words, int] = defaultdict(int)
    followers: dict[Words, int] = defaultdict(int)
    for gram, count in counts.items():
        totals[gram[:-1]] += count
        followers[gram[:-1]] += 1
    for history, total in totals.items():
        backoffs[history] = discount * followers[history] / total
    for gram, count in counts.items():
        history = gram[:-1]
        lower = probabilities[gram[1:]] if history else uniform
        share = (count - discount) / totals[history]
        probabilities[gram] = share + backoffs[history] * lower


def _discount(counts: Iterable[int]) -> float:
    """Return n1 / (n1 + 2 n2), for n_k the number of n-grams that occur k times."""
    times = Counter(counts)
    if not times[1] or not times[2]:
        return _DISCOUNT
    return times[1] / (times[1] + 2 * times[2])


def _ln(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf
