"""A source of English-like text that knows its own entropy, for demonstrations of minutes.

A tale invents names, gives each person a trade, a home and a thing, and goes on from there. Much of
it follows from what was said long before: homes, sums, who holds which thing, the brackets to
close, the names at the end. A model that remembers is certain there; one that does not pays.

Text and choices determine each other, so the cost of the choices is that of the text: the mean over
many tales is the entropy of the source, and no model can expect to need less.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Any

import numpy as np

from speechkit.density.corpus import Bytes, Corpus, Stream
from speechkit.errors import RequestError


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_VOWELS = tuple("aeiou")
_CONSONANTS = tuple("bdfgklmnprstvz")
_ENDINGS = ("", "n", "r", "s", "l")
_PLACE_ENDINGS = ("ford", "ham", "wick", "mouth", "stead")
_TRADES = _words("""
baker carpenter gardener miller tailor potter weaver sailor teacher painter farmer clockmaker
doctor printer shepherd musician blacksmith librarian
""")
_THINGS = _words("""
lantern kettle violin compass ladder mirror basket hammer telescope umbrella anchor saddle
teapot drum globe candlestick wheelbarrow map
""")
_NOUNS = _words("""
apple bridge river window letter garden stone tower market horse winter song door road boat
field cloud table candle forest story fire wall harbour bird chair blanket orchard bell path
lake fence book island storm roof meadow shadow valley street
""")
_ADJECTIVES = _words("""
old small bright quiet heavy broken green golden narrow warm strange empty patient crooked
silver gentle distant wooden dusty early forgotten tall simple hidden
""")
_VERBS = _words("""
found painted remembered watched repaired drew crossed praised sold searched described missed
measured built cleaned visited followed noticed
""")
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))

_MOST = 50


@dataclass(frozen=True)
class Choice:
    """Options with weights."""

    options: tuple[Any, ...]
    weights: tuple[int, ...]
    bits: tuple[float, ...] = field(init=False)
    cumulative: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        total = sum(self.weights)
        object.__setattr__(self, "bits", tuple(math.log2(total / w) for w in self.weights))
        shares = (weight / total for weight in accumulate(self.weights[:-1]))
        object.__setattr__(self, "cumulative", tuple(shares))


class Writer:
    """Collects a text and the cost in bits of the choices behind it.

    Parameters
    ----------
    index
        takes a choice; returns the number of the option to take.
    """

    def __init__(self, index: Callable[[Choice], int]) -> None:
        self._index = index
        self._parts: list[str] = []
        self.length = 0
        self.bits = 0.0

    @property
    def text(self) -> str:
        """All that was said."""
        return "".join(self._parts)

    def say(self, text: str) -> None:
        """Append text."""
        self._parts.append(text)
        self.length += len(text)

    def word(self, options: Sequence[str]) -> str:
        """Say one of the options."""
        word: str = self.pick(options)
        self.say(word)
        return word

    def pick(self, options: Sequence[Any], weights: Sequence[int] | None = None) -> Any:
        """Take one of the options: by equal weights, if not told."""
        return self.take(_choice(tuple(options), tuple(weights) if weights else None))

    def take(self, choice: Choice) -> Any:
        """Take an option of a choice."""
        number = self._index(choice)
        self.bits += choice.bits[number]
        return choice.options[number]


@dataclass(frozen=True, eq=False)
class GeneratedText:
    """Bytes of text, and the bits of the choices behind them."""

    data: Bytes
    bits: float

    @property
    def bits_per_byte(self) -> float:
        """The cost of the choices: that of the best possible model, on average."""
        return self.bits / len(self.data)


def generate_text(size: int, *, seed: int = 0) -> GeneratedText:
    """Return ``size`` bytes of tales; the last one may break off.

    Raises
    ------
    RequestError
        if no bytes are asked for.
    """
    if size < 1:
        raise RequestError(f"{size} bytes of text: give 1 or more")
    random = Random(seed).random
    writer = Writer(lambda choice: bisect(choice.cumulative, random()))
    while True:
        length, bits = writer.length, writer.bits
        write_tale(writer)
        if writer.length >= size:
            break
    # of the last tale, as many bits as of its text
    bits += (writer.bits - bits) * (size - length) / (writer.length - length)
    return GeneratedText(np.frombuffer(writer.text[:size].encode(), dtype=np.uint8), bits)


def generated_corpus(
    *, train_bytes: int = 2_000_000, valid_bytes: int = 100_000, seed: int = 0
) -> Corpus:
    """Return a corpus of tales, other ones in each split, with the entropy of each."""
    train = generate_text(train_bytes, seed=2 * seed)
    valid = generate_text(valid_bytes, seed=2 * seed + 1)
    return Corpus(
        name=f"tales, seed {seed}",
        kind="text",
        splits={"train": Stream(train.data), "valid": Stream(valid.data)},
        entropy={"train": train.bits_per_byte, "valid": valid.bits_per_byte},
    )


@dataclass(frozen=True, slots=True)
class _Person:
    name: str
    trade: str
    home: str


class _Tale:
    """The people of a tale, and who holds what."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.people: list[_Person] = []
        self.holders: dict[str, _Person] = {}
        self.depth = 0

    def introduce(self, name: str) -> None:
        """Say who somebody is; trades and things differ within a tale."""
        say, word = self.writer.say, self.writer.word
        say(f"{name} is a ")
        taken = {person.trade for person in self.people}
        trade = word([t for t in _TRADES if t not in taken])
        say(" from ")
        home = _syllables(self.writer, (1, 2)) + word(_PLACE_ENDINGS)
        kind = self.writer.pick(_ADJECTIVES)
        say(f" with {'an' if kind[0] in _VOWELS else 'a'} {kind} ")
        thing = word([t for t in _THINGS if t not in self.holders])
        say(". ")
        person = _Person(name, trade, home)
        self.people.append(person)
        self.holders[thing] = person

    def anybody(self, *, but: _Person | None = None, start: bool = False) -> _Person:
        """Name a person, or use the trade."""
        person: _Person = self.writer.pick([p for p in self.people if p != but])
        by_trade = self.writer.pick((False, True), (3, 1))
        self.writer.say(f"{'The' if start else 'the'} {person.trade}" if by_trade else person.name)
        return person

    def deed(self) -> None:
        self.anybody(start=True)
        self._did()
        self.writer.say(". ")

    def speech(self) -> None:
        self.writer.say('"')
        self.anybody(start=True)
        self._did()
        self.writer.say('", said ')
        self.anybody()
        self.writer.say(". ")

    def way_home(self) -> None:
        person = self.anybody(start=True)
        self.writer.say(f" went home to {person.home}. ")

    def where(self) -> None:
        self.writer.say("Where does ")
        person = self.anybody()
        self.writer.say(f" live? In {person.home}. ")

    def gift(self) -> None:
        thing = self.writer.pick(list(self.holders))
        giver = self.holders[thing]
        self.writer.say(f"{giver.name} gave the {thing} to ")
        self.holders[thing] = self.anybody(but=giver)
        self.writer.say(". ")

    def who(self) -> None:
        thing = self.writer.pick(list(self.holders))
        self.writer.say(f"Who has the {thing}? {self.holders[thing].name}. ")

    def count(self) -> None:
        say, pick = self.writer.say, self.writer.pick
        self.anybody(start=True)
        first = pick(range(2, _MOST))
        say(f" counted {first} of ")
        self.writer.word(_NOUNS)
        second = pick(range(2, _MOST))
        say(f" and {second} more, {first + second} in all. ")

    def _did(self) -> None:
        say, word, pick = self.writer.say, self.writer.word, self.writer.pick
        say(" ")
        word(_VERBS)
        say(" the ")
        word(_ADJECTIVES)
        say(" ")
        word(_NOUNS)
        if self.depth < len(_BRACKETS) and pick((False, True), (3, 1)):
            opening, closing = _BRACKETS[self.depth]
            self.depth += 1
            self.writer.say(f" {opening}")
            self.anybody()
            self._did()
            self.writer.say(closing)
            self.depth -= 1


_SENTENCES = {
    _Tale.deed: 6,
    _Tale.speech: 3,
    _Tale.way_home: 3,
    _Tale.where: 2,
    _Tale.gift: 3,
    _Tale.who: 3,
    _Tale.count: 2,
    None: 1,
}


def write_tale(writer: Writer) -> None:
    """Write one tale."""
    writer.say("A tale of ")
    names = _names(writer, writer.pick((2, 3, 4)))
    writer.say(".\n")
    tale = _Tale(writer)
    for name in names:
        tale.introduce(name)
    sentences = _choice(tuple(_SENTENCES), tuple(_SENTENCES.values()))
    while sentence := writer.take(sentences):
        sentence(tale)
    writer.say(f"So ends the tale of {', '.join(names[:-1])} and {names[-1]}.\n\n")


def _names(writer: Writer, count: int) -> list[str]:
    """Say invented names with different initials, so that none is the beginning of another."""
    names: list[str] = []
    for place in range(count):
        if place:
            writer.say(" and " if place == count - 1 else ", ")
        taken = {name[0].lower() for name in names}
        free = tuple(letter for letter in _CONSONANTS if letter not in taken)
        names.append(_syllables(writer, (2, 3), initials=free) + writer.word(_ENDINGS))
    return names


def _syllables(
    writer: Writer, counts: tuple[int, ...], *, initials: tuple[str, ...] = _CONSONANTS
) -> str:
    """Say syllables of a consonant and a vowel, the first one with a capital."""
    count = writer.pick(counts)
    text = writer.word([letter.upper() for letter in initials]) + writer.word(_VOWELS)
    for _ in range(count - 1):
        text += writer.word(_CONSONANTS) + writer.word(_VOWELS)
    return text


@lru_cache(maxsize=1024)
def _choice(options: tuple[Any, ...], weights: tuple[int, ...] | None) -> Choice:
    return Choice(options, weights or (1,) * len(options))
