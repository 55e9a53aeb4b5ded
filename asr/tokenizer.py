"""Texts as sequences of tokens: characters, bytes or learnt pieces of words.

Token 0 is the CTC blank. Every token but that stands for a piece of UTF-8 text, and a piece that
starts with a space starts a word: all that decoding, word times and word language models need to
know of a tokenizer.
"""

import base64
import binascii
import io
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from speechkit.errors import RequestError

BLANK = 0
SPACE = b" "

# SentencePiece's sign for the space before a word
_WORD_MARK = "\u2581"


class Tokenizer(ABC):
    """What all tokenizers share.

    Attributes
    ----------
    pieces
        the text of each token, as UTF-8; the blank's is empty.
    """

    kind: ClassVar[str]

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = (b"", *pieces)

    @property
    def size(self) -> int:
        """Number of tokens, the blank included: the width of the output layer."""
        return len(self.pieces)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the tokens of a normalised text, without blanks; unknown characters are dropped.

        Whether any are is for `out_of_vocabulary` to say, once, before training.
        """

    @abstractmethod
    def knows(self, character: str) -> bool:
        """Say whether a character can be encoded."""

    def writes(self, character: str) -> bool:
        """Say whether a model trained with this tokenizer can be expected to write a character."""
        return self.knows(character)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `from_description` needs to build the same tokenizer; JSON can hold it."""

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, with single spaces; blanks count for nothing.

        Bytes that are no UTF-8 become U+FFFD.
        """
        text = b"".join(self.pieces[token] for token in tokens).decode("utf-8", "replace")
        return " ".join(text.split())

    def starts_word(self, token: int) -> bool:
        """Say whether a token ends the word before it."""
        return self.pieces[token].startswith(SPACE)


class Characters(Tokenizer):
    """A token for each character (Unicode code point); the space is one of them.

    Parameters
    ----------
    symbols
        the characters in the order of their tokens, from token 1.

    Raises
    ------
    RequestError
        if a symbol repeats or is half a character, or the space is missing.
    """

    kind = "characters"

    def __init__(self, symbols: str) -> None:
        if repeated := [symbol for symbol, times in Counter(symbols).items() if times > 1]:
            raise RequestError(f"symbols {''.join(repeated)!r} occur twice; give each once")
        if " " not in symbols:
            raise RequestError(f"symbols {symbols!r} lack the space, which separates words")
        if halves := [symbol for symbol in symbols if unicodedata.category(symbol) == "Cs"]:
            raise RequestError(f"symbols {halves!r} are half characters; mend the transcripts")
        super().__init__(symbol.encode() for symbol in symbols)
        self._token = {symbol: token for token, symbol in enumerate(symbols, start=1)}

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Self:
        """Return a tokenizer of the characters of normalised texts.

        Raises
        ------
        RequestError
            if the texts hold no character but spaces.
        """
        symbols = {" "}.union(*texts)
        if symbols == {" "}:
            raise RequestError("no text to take characters from; give transcripts that are spoken")
        return cls("".join(sorted(symbols)))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of the known characters of a text."""
        return [self._token[character] for character in text if character in self._token]

    def knows(self, character: str) -> bool:
        """Say whether the character is a symbol."""
        return character in self._token

    def describe(self) -> dict[str, Any]:
        """Return the symbols."""
        return {"kind": self.kind, "symbols": b"".join(self.pieces).decode()}


class Bytes(Tokenizer):
    """A token for each byte of UTF-8: token = byte + 1. It knows every character.

    Parameters
    ----------
    seen
        the characters of the training texts, which are those that a model writes; empty: all.
    """

    kind = "bytes"

    def __init__(self, seen: str = "") -> None:
        super().__init__(bytes([value]) for value in range(256))
        self._seen = frozenset(seen)

    @classmethod
    def fit(cls, texts: Iterable[str]) -> Self:
        """Return a tokenizer that remembers the characters of normalised texts."""
        return cls("".join(sorted({" "}.union(*texts))))

    def encode(self, text: str) -> list[int]:
        """Return the tokens of all bytes of a text."""
        return [value + 1 for value in text.encode()]

    def knows(self, character: str) -> bool:
        """Say whether the character has a UTF-8 form: all but lone surrogates have."""
        return not "\ud800" <= character <= "\udfff"

    def writes(self, character: str) -> bool:
        """Say whether the character was in the training texts: of others no byte was learnt."""
        return character in self._seen if self._seen else self.knows(character)

    def describe(self) -> dict[str, Any]:
        """Return the characters seen."""
        return {"kind": self.kind, "seen": "".join(sorted(self._seen))}


class SentencePieces(Tokenizer):
    """Pieces of words learnt from texts (Kudo and Richardson 2018).

    SentencePiece's unknown piece is number 0, where the blank stands: it is never encoded, so its
    number is free.

    Parameters
    ----------
    model
        a trained SentencePiece model whose unknown piece is number 0 and that has no other
        control pieces.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise RequestError("the SentencePiece model is damaged; train again") from error
        if self._processor.unk_id() != BLANK:
            raise RequestError("the SentencePiece model's unknown piece is not number 0")
        self._model = model
        pieces = map(self._processor.id_to_piece, range(1, self._processor.get_piece_size()))
        super().__init__(piece.replace(_WORD_MARK, " ").encode() for piece in pieces)
        self._known = {character for piece in self.pieces for character in piece.decode()}

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        size: int = 500,
        model_type: Literal["unigram", "bpe"] = "unigram",
    ) -> Self:
        """Train on normalised texts.

        Parameters
        ----------
        size
            tokens wanted, the blank included; there are fewer if the texts do not hold as many.

        Raises
        ------
        RequestError
            if the texts are empty, or hold more different characters than ``size`` allows.
        """
        from sentencepiece import SentencePieceTrainer

        lines = [line for line in texts if line.strip()]
        if not lines:
            raise RequestError("no text to learn pieces from; give transcripts that are spoken")
        least = len(set("".join(lines)) | {" "}) + 1
        if size < least:
            raise RequestError(f"size {size}: these texts need at least {least} tokens")
        model = io.BytesIO()
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type=model_type,
                vocab_size=size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                normalization_rule_name="identity",
                max_sentence_length=max(4192, *(len(line.encode()) for line in lines)),
                unk_id=BLANK,
                bos_id=-1,
                eos_id=-1,
                pad_id=-1,
                num_threads=1,  # the result must not depend on the machine
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).replace("\n", " ")
            raise RequestError(f"size {size}: SentencePiece refuses it ({reason})") from error
        return cls(model.getvalue())

    def encode(self, text: str) -> list[int]:
        """Return the likeliest pieces of a text, without those of unknown characters."""
        return [token for token in self._processor.encode(text) if token != BLANK]

    def knows(self, character: str) -> bool:
        """Say whether the character occurs in a piece."""
        return character in self._known

    def describe(self) -> dict[str, Any]:
        """Return the trained model."""
        return {"kind": self.kind, "model": base64.b64encode(self._model).decode()}


def from_description(description: Mapping[str, Any]) -> Tokenizer:
    """Build the tokenizer that `Tokenizer.describe` described.

    Raises
    ------
    RequestError
        if the kind is unknown, or the description is damaged.
    """
    kind = description.get("kind")
    try:
        if kind == Characters.kind:
            return Characters(description["symbols"])
        if kind == Bytes.kind:
            return Bytes(description.get("seen", ""))
        if kind == SentencePieces.kind:
            return SentencePieces(base64.b64decode(description["model"], validate=True))
    except (KeyError, binascii.Error) as error:
        raise RequestError(f"tokenizer {kind!r}: its description is damaged ({error})") from error
    kinds = ", ".join((Characters.kind, Bytes.kind, SentencePieces.kind))
    raise RequestError(f"tokenizer {kind!r} is not known; give one of {kinds}")


@dataclass(frozen=True)
class OutOfVocabulary:
    """What of some texts a tokenizer cannot encode.

    Attributes
    ----------
    total
        characters in all texts.
    characters
        unknown character -> how often it occurs, the most frequent first.
    texts
        texts with at least one of them.
    """

    total: int
    characters: dict[str, int]
    texts: int

    @property
    def rate(self) -> float:
        """Share of unknown characters among all, 0 for empty texts."""
        return sum(self.characters.values()) / max(self.total, 1)

    def require(self, *, at_most: float = 0.0) -> None:
        """Refuse a rate above a limit.

        Raises
        ------
        RequestError
            with the commonest unknown characters.
        """
        if self.rate > at_most:
            shown = ", ".join(f"{c!r} ({n})" for c, n in [*self.characters.items()][:8])
            raise RequestError(
                f"{self.rate:.2%} of the transcripts' characters are unknown to the tokenizer "
                f"(allowed: {at_most:.2%}), in {self.texts} texts: {shown}; normalise the texts "
                "as the model's were, or fit the tokenizer on them"
            )


def out_of_vocabulary(tokenizer: Tokenizer, texts: Sequence[str]) -> OutOfVocabulary:
    """Count the characters of normalised texts that a tokenizer does not know."""
    counts = Counter("".join(texts))
    unknown = {c: n for c, n in counts.most_common() if not tokenizer.knows(c)}
    affected = sum(not unknown.keys().isdisjoint(text) for text in texts)
    return OutOfVocabulary(counts.total(), unknown, affected)
