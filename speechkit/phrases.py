"""English text for the synthetic corpus: a word list, random sentences, near-sounding phrases."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from speechkit.espeak import phonemes

_PEOPLE = """
anna oliver maria david priya hassan chloe victor nadia george ingrid samuel yuki teresa walter
fatima henry claudia omar julia the~teacher the~doctor my~neighbour our~driver the~manager
the~captain my~sister your~brother the~baker her~uncle his~daughter the~plumber the~waiter
the~tutor the~nurse a~tourist the~mayor the~gardener our~lawyer the~farmer my~cousin the~editor
the~painter a~stranger the~butcher the~pilot the~minister the~commander the~composer
"""
_NOUNS = """
apple answer arrow bag ball basket battery bed bell bicycle bird blanket boat book bottle bowl box
branch bread bridge brush bucket building bus butter button cabin cable cake calendar camera candle
car card carpet castle cat chain chair cheese chicken church circle clock cloth cloud coat coffee
coin collar commuter compass compost concert contract cooker corner cotton cup curtain cushion
desk diamond dinner dog door drawer dress drum duck engine envelope evening farm fence ferry field
fire fish flag flower forest fork fountain fridge frog fruit furniture garage garden gate ghost
glass glove goat grape guitar hammer harbour hat heater hill holiday horse hospital hotel house
island jacket jar jewel journey judge jungle kettle key kitchen kite ladder lake lamp laptop leaf
lemon letter library light lion magazine map market meadow meal medicine message mirror monkey
mountain mouse museum music napkin necklace needle nest newspaper notebook number nut ocean office
onion orange oven package paint palace paper parcel park passport pencil pepper photograph piano
picture pillow pipe plane planet plate pocket pond postcard potato printer puppet purse puzzle
queen question rabbit radio railway rainbow recipe ribbon ring river road robot rocket roof room
rope rose ruler salad sandwich scarf school scissors scooter screen sculpture shadow sheep shelf
ship shirt shoe shop shower signal singer sky soap sofa spider spoon square stadium staircase stamp
star station stone storm story street suitcase summer sweater table tailor teapot telephone
television temple tent theatre thread ticket tiger toast tomato torch tower towel train tree
trousers truck tunnel umbrella valley van vase vegetable village violin wallet warehouse watch
water whistle window winter wood yard yoghurt zebra
"""
_ADJECTIVES = """
red blue green yellow purple brown grey white black golden big small tiny huge long short wide
narrow heavy light old new young quiet noisy bright dark clean dirty warm cold dry wet soft hard
empty full cheap expensive broken famous gentle hungry lazy lucky modern odd plain quick rusty
sharp silent simple smooth strange strong thick thin useful wooden foreign secret crowded curious
commercial complete common complex competent compact
"""
_PAST_VERBS = """
found bought lost painted carried cleaned dropped followed fixed hid kept measured moved noticed
opened packed photographed polished pushed remembered repaired sold shook shared stole studied
threw touched used washed watched wrapped borrowed brought built chose described drew examined
forgot gathered handed inspected joined lifted mentioned ordered pulled replaced sketched compared
computed completed commanded collected considered
"""
_COMMANDS = """
open~{the} close~{the} clean~{the} move~{the} paint~{the} find~{the} check~{the} bring~me~{the}
switch~off~{the} switch~on~{the} turn~{the}~around wrap~{the} empty~{the} count~every measure~{the}
show~me~{the} put~away~{the} look~behind~{the} throw~away~{the} take~a~picture~of~{the}
"""
_PLACES = """
in~the~kitchen near~the~station behind~the~church at~the~corner under~the~bridge on~the~table
beside~the~river in~the~garden next~to~the~hotel inside~the~museum on~the~top~shelf by~the~window
across~the~street at~the~market above~the~garage outside~the~theatre in~the~old~harbour
on~the~second~floor between~the~trees around~the~lake
"""
_TIMES = """
yesterday today tomorrow~morning last~week next~summer at~noon before~breakfast after~lunch
on~monday on~tuesday on~wednesday on~thursday on~friday this~evening every~day once~a~month
at~half~past~three at~quarter~to~nine two~hours~ago in~the~afternoon late~at~night
during~the~holidays in~january in~february in~august in~november since~then
"""
_NUMBERS = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety
"""
_REMARKS = """
it~looked~rather~{a} nobody~could~explain~why that~was~a~great~surprise the~weather~was~{a}
we~were~all~very~{a} the~{n}~is~still~{a} there~was~no~{n}~left it~costs~{d}~pounds
we~waited~for~{d}~minutes everybody~laughed the~rest~can~wait i~have~never~seen~it~before
that~is~hardly~fair please~remind~me~again it~happened~so~quickly
"""
_OTHERS = """
alexander alexis amazing america annexe banana because beetle belong between cabbage calculator
centre chapter chocolate comet comfort command commit committee commotion communicate community
companion company compartment compel compete competing competition competitor compile complain
complaint component compose compound comprehend compress compromise compute computing concrete
confuse conquer consume contribute cucumber daisy decorate disco distribute dispute echo electric
elephant execute friendly frankfurter future gargle google goggles googol hay haystack hazy
helicopter hello hey highway hooter impostor institute intruder jacuzzi jersey jarring jobless
june jupiter lecture looter lounge loop luxury marvellous marbles maple mercury minute moisture
monitor muter neuter nature octopus okra okay perhaps permute pewter picnic pollute porcupine
portrait posture producer promoter recruiter refuse remote reporter reputed router sharpen shooter
sirloin sister smarter snow snowball snowboard snowed solution suitor supper surely syringe syrup
texture theory transmuter travel tribute trooper troubadour trumpet vapour venture viewer volume
whatever wizard yourself alert alexandria relax election lexicon harvest jargon charming service
mirage smart smear start marker mere merry nero mirrored clear fuel view class grass brass
"""

_TEMPLATES = (
    "{p} {v} the {a} {n} {l}.",
    "{p} {v} {d} {a} things {l} {t}.",
    "{T}, {p} {v} the {n} and the {n}.",
    "Please {c} {a} {n} {l}.",
    "Could you {c} {n}, or ask {p} to do it {t}?",
    "Why has {p} never {v} a {a} {n}?",
    "There are {d} {a} boxes {l}, and {r}.",
    "{p} said that the {n} was {a}, but {r}.",
    "The {a} {n} {l} belongs to {p}.",
    "I think {p} {v} our {n} {t}.",
    "{r}, said {p} {t}.",
    "My {n} and {p}'s {a} {n} were {l} {t}, so {r}.",
    "Where did {p} leave the {n}, and who {v} the {a} {n}?",
    "Is the {n} {l} really {a}, or has {p} {v} another one?",
    "{n}, {n}, {n} and {d} more.",
    "We say {o}, not {o}.",
    "The word after {o} is {o}, and then comes {o}.",
)
_LISTS = {
    key: [entry.replace("~", " ") for entry in text.split()]
    for key, text in {
        "p": _PEOPLE,
        "n": _NOUNS,
        "a": _ADJECTIVES,
        "v": _PAST_VERBS,
        "c": _COMMANDS,
        "l": _PLACES,
        "t": _TIMES,
        "d": _NUMBERS,
        "r": _REMARKS,
        "o": _OTHERS,
    }.items()
}
_SLOT = re.compile(r"{(\w+)}")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")
# spaces, IPA's primary and secondary stress, and length
_MARKS = re.compile("[\\s\u02c8\u02cc\u02d0]")
# single words that may stand for a word of a keyword
_WORDS = sorted({entry for entries in _LISTS.values() for entry in entries if entry.isalpha()})


def normalize(text: str) -> str:
    """Return lower-case words, separated by single spaces, without punctuation."""
    return " ".join(_WORD.findall(text.lower()))


def contains(text: str, phrase: str) -> bool:
    """Say whether the words of ``phrase`` occur in ``text`` one after the other."""
    return f" {normalize(phrase)} " in f" {normalize(text)} "


def sentence(generator: np.random.Generator) -> str:
    """Return a random sentence."""
    text = str(generator.choice(_TEMPLATES))
    while _SLOT.search(text):
        text = _SLOT.sub(lambda slot: _fill(slot.group(1), generator), text, count=1)
    return text[0].upper() + text[1:]


def sounds(texts: Sequence[str]) -> list[str]:
    """Return each text's phonemes as one string, without stress, length and spaces."""
    return [_MARKS.sub("", ipa) for ipa in phonemes(texts)]


def without(texts: Sequence[str], phrases: Iterable[str]) -> list[str]:
    """Return the texts in which none of ``phrases`` is written or heard, as a part or whole."""
    phrases = list(phrases)
    heard = sounds(phrases)
    return [
        text
        for text, sound in zip(texts, sounds(texts), strict=True)
        if not any(contains(text, phrase) for phrase in phrases)
        and not any(keyword in sound for keyword in heard)
    ]


def confusables(keyword: str, count: int) -> list[str]:
    """Return phrases that sound like ``keyword`` or like a part of it, the nearest kinds first.

    They are the runs of its words, the beginnings and ends of its long words, and the keyword
    with one of its words replaced by a word that shares most phonemes with it.
    """
    words = normalize(keyword).split()
    found = [
        " ".join(words[i:j])
        for i in range(len(words))
        for j in range(i + 1, len(words) + 1)
        if j - i < len(words)
    ]
    found += [part for word in words for part in _parts(word)]
    nearest = [_nearest(word, count) for word in words]
    for rank in range(count):
        for i, near in enumerate(nearest):
            if rank < len(near):
                found.append(" ".join([*words[:i], near[rank], *words[i + 1 :]]))
    return without(list(dict.fromkeys(found)), [keyword])[:count]


def _fill(key: str, generator: np.random.Generator) -> str:
    if key == "the":
        return str(generator.choice(["the", "that", "your", "this"]))
    text = str(generator.choice(_LISTS[key.lower()]))
    return text.capitalize() if key.isupper() else text


def _parts(word: str) -> list[str]:
    """Return the first and last two thirds and halves of a long word, where one can say them."""
    ends = [part for n in (2 * len(word) // 3, len(word) // 2) for part in (word[:n], word[-n:])]
    return [part for part in ends if len(part) >= 3 and re.search("[aeiouy]", part)]


def _nearest(word: str, count: int) -> list[str]:
    target, *heard = sounds([word, *_WORDS])
    ranked = sorted(
        (_distance(target, sound), near) for near, sound in zip(_WORDS, heard, strict=True)
    )
    return [near for distance, near in ranked if distance > 0][:count]


def _distance(a: str, b: str) -> float:
    """Return the edit distance of two phoneme strings, divided by the longer one's length."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            cost = diagonal + (left != right)
            diagonal, row[j] = row[j], min(cost, row[j] + 1, row[j - 1] + 1)
    return row[-1] / max(len(a), len(b), 1)
