"""Knowledge about words for beam search: a word n-gram model, a list of allowed words.

Each class here is a `speechkit.ctc_beam.Scorer`; bonuses are in nats, states are values: hashable,
never changed.

Words are met as bytes of UTF-8, since that is what tokens stand for (`Tokenizer.pieces`); a piece
that starts with a space ends the word before it. Which words begin with what has been spelled so
far is read off a sorted list by bisection: what a trie does, in a fraction of its memory.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable
from typing import Any, NamedTuple

from speechkit.asr.ngram import NGramModel, Words
from speechkit.asr.tokenizer import SPACE, Tokenizer
from speechkit.ctc_beam import Scorer
from speechkit.errors import RequestError

_FORBIDDEN = -math.inf
# of the words that a recogniser can write; below it a vocabulary is another model's
_LEAST_SHARE = 0.5


class Spelled(NamedTuple):
    """State of `WordLanguageModel`.

    Attributes
    ----------
    history
        the words before, as far as the model looks back.
    partial
        the word being spelled.
    unknown
        whether no word of the model starts so, for which the penalty has been paid.
    """

    history: Words
    partial: bytes
    unknown: bool


class WordLanguageModel:
    """Scores each word as it ends: weight * ln p(word | words before) + word_bonus.

    A word outside the model counts as ``<unk>``, whose probability is that of all unknown words
    together, so a penalty stands for the choice among them. It is paid as soon as the letters rule
    out every known word, since a search that learns of it at the end of the word has by then
    spent its beam on variants of it.

    Parameters
    ----------
    model
        a word n-gram model.
    tokenizer
        the recogniser's tokenizer.
    weight
        factor on the model's log-probabilities, the penalty included.
    word_bonus
        nats for each word; positive values make up for the model's preference for few words.
    unknown_penalty
        ln probability of one unknown word among all of them; -inf forbids unknown words.

    Raises
    ------
    RequestError
        if the tokenizer cannot spell most of the model's words.
    """

    def __init__(
        self,
        model: NGramModel,
        tokenizer: Tokenizer,
        *,
        weight: float = 0.5,
        word_bonus: float = 0.0,
        unknown_penalty: float = -10.0,
    ) -> None:
        finite = math.isfinite(weight) and math.isfinite(word_bonus)
        if not (finite and weight >= 0 and unknown_penalty <= 0):
            raise RequestError(
                f"weight {weight:g}, word_bonus {word_bonus:g}, unknown_penalty "
                f"{unknown_penalty:g}: give a weight of 0 or more and a penalty of 0 or less"
            )
        check_vocabulary(model.vocabulary, tokenizer)
        self.model = model
        self.weight = weight
        self.word_bonus = word_bonus
        self.unknown_penalty = unknown_penalty
        self._pieces = tokenizer.pieces
        self._words = _Words(model.vocabulary)

    def start(self) -> Spelled:
        """Return the state before the first word."""
        return Spelled(self.model.start(), b"", False)

    def score(self, state: Spelled, token: int) -> tuple[float, Spelled]:
        """Return the bonus of a token, and the state after it."""
        piece = self._pieces[token]
        bonus = 0.0
        history, partial, unknown = state
        if piece.startswith(SPACE):
            bonus, history = self._word(state)
            partial, unknown = b"", False
            piece = piece[1:]
        partial += piece
        if piece and not unknown and not self._words.any_starts_with(partial):
            unknown = True
            bonus += self._weighted(self.unknown_penalty)
        return bonus, Spelled(history, partial, unknown)

    def finish(self, state: Spelled) -> float:
        """Return the bonus of the last word and of the end of the sentence."""
        bonus, history = self._word(state)
        return bonus + self._weighted(self.model.finish(history))

    def _word(self, state: Spelled) -> tuple[float, Words]:
        """Return the bonus of the word that ends here, and the history after it."""
        if not state.partial:
            return 0.0, state.history
        word = state.partial.decode("utf-8", "replace")
        log_probability, history = self.model.score(state.history, word)
        if not self.model.knows(word):
            # a model without <unk> has nothing to say of the word but the penalty
            known = 0.0 if log_probability == _FORBIDDEN else log_probability
            log_probability = known + (0.0 if state.unknown else self.unknown_penalty)
        return self._weighted(log_probability) + self.word_bonus, history

    def _weighted(self, log_probability: float) -> float:
        # a weight of 0 switches the model off, also where it says "impossible"
        return self.weight * log_probability if self.weight else 0.0


class Lexicon:
    """Allows the words of a list and no others; its state is the word being spelled.

    Raises
    ------
    RequestError
        if the list is empty, or the tokenizer cannot spell most of it.
    """

    def __init__(self, words: Iterable[str], tokenizer: Tokenizer) -> None:
        allowed = frozenset(words)
        if not allowed:
            raise RequestError("the lexicon holds no word; give at least one")
        check_vocabulary(allowed, tokenizer)
        self._pieces = tokenizer.pieces
        self._words = _Words(allowed)

    def start(self) -> bytes:
        """Return the empty word."""
        return b""

    def score(self, state: bytes, token: int) -> tuple[float, bytes]:
        """Return 0 while the word can become an allowed one, else -inf."""
        piece = self._pieces[token]
        if piece.startswith(SPACE):
            if state and state not in self._words:
                return _FORBIDDEN, state
            state, piece = b"", piece[1:]
        state += piece
        return (0.0 if self._words.any_starts_with(state) else _FORBIDDEN), state

    def finish(self, state: bytes) -> float:
        """Return 0 after a whole word, else -inf."""
        return 0.0 if not state or state in self._words else _FORBIDDEN


class Sum:
    """Several scorers as one: bonuses add up, and what any of them forbids is forbidden."""

    def __init__(self, *scorers: Scorer[Any]) -> None:
        self.scorers = scorers

    def start(self) -> tuple[Hashable, ...]:
        """Return the states of all scorers."""
        return tuple(scorer.start() for scorer in self.scorers)

    def score(self, state: tuple[Hashable, ...], token: int) -> tuple[float, tuple[Hashable, ...]]:
        """Return the sum of bonuses, and the states after the token."""
        total, after = 0.0, []
        for scorer, own in zip(self.scorers, state, strict=True):
            bonus, own_after = scorer.score(own, token)
            if bonus == _FORBIDDEN:
                return _FORBIDDEN, state
            total += bonus
            after.append(own_after)
        return total, tuple(after)

    def finish(self, state: tuple[Hashable, ...]) -> float:
        """Return the sum of the bonuses for ending."""
        return sum(scorer.finish(own) for scorer, own in zip(self.scorers, state, strict=True))


def check_vocabulary(words: Iterable[str], tokenizer: Tokenizer) -> float:
    """Return the share of words that a recogniser can produce.

    Raises
    ------
    RequestError
        if it is so low that the vocabulary is another model's.
    """
    words = list(words)
    strange = [word for word in words if not all(map(tokenizer.writes, word))]
    share = 1 - len(strange) / max(len(words), 1)
    if not words or share < _LEAST_SHARE:
        raise RequestError(
            f"the recogniser can write {share if words else 0:.0%} of the {len(words)} words "
            f"(needed: {_LEAST_SHARE:.0%}), not, say, {', '.join(sorted(strange)[:3]) or 'any'}; "
            "give words in the form of the model's training texts (mind the case)"
        )
    return share


class _Words:
    """A sorted list of words, asked for prefixes."""

    def __init__(self, words: Iterable[str]) -> None:
        self._sorted = sorted(word.encode() for word in words)

    def __contains__(self, word: bytes) -> bool:
        place = bisect_left(self._sorted, word)
        return place < len(self._sorted) and self._sorted[place] == word

    def any_starts_with(self, prefix: bytes) -> bool:
        """Say whether a word starts so; all do with nothing."""
        place = bisect_left(self._sorted, prefix)
        return place < len(self._sorted) and self._sorted[place].startswith(prefix)
