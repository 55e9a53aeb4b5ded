"""Which rows of a manifest are positives for a keyword, which are negatives, which neither."""

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from lhotse.cut import Cut

from speechkit.errors import RequestError
from speechkit.manifests import custom_of, is_near_silent, label_of, text_in, text_of

STREAM = "_stream_"
# of clips without speech
_SILENT_LABELS = ("_silence_", "_noise_", "_music_")
_CURLY_APOSTROPHE = "\u2019"
# of speech of which nobody has told the words
_UNTOLD = "_speech_"
# of a mined false alarm: labels and texts of the clips that it was cut from, and their ids
AMID = "amid"
AMID_IDS = "amid_ids"


def normalise(text: str) -> str:
    """Return the form in which labels, texts and keywords are compared.

    A label like ``_music_`` names a kind of sound and no word, and stays as it is.
    """
    if names_a_sound(text):
        return text
    return " ".join(unicodedata.normalize("NFC", text.lower()).replace("_", " ").split())


def names_a_sound(label: str) -> bool:
    """Say whether a label, such as ``_music_``, names a kind of sound and no word."""
    return len(label) > 2 and label[0] == label[-1] == "_"


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of manifests, sorted for one keyword.

    Attributes
    ----------
    positives, negatives
        what to find, and what not to react to.
    left_out
        neither: the keyword inside something longer, streams of many words, near-silent clips.
    unverified
        those of the negatives that carry no text, and no label or ``_speech_``, so that nobody
        knows.
    """

    positives: tuple[Cut, ...]
    negatives: tuple[Cut, ...]
    left_out: tuple[Cut, ...]
    unverified: tuple[Cut, ...]

    def counts(self) -> dict[str, float]:
        """Return the four counts, and the hours of the two kinds of negatives."""
        return {
            "positives": len(self.positives),
            "negatives": len(self.negatives),
            "left_out": len(self.left_out),
            "unverified": len(self.unverified),
            "negative_hours": round(sum(c.duration for c in self.negatives) / 3600, 4),
            "unverified_hours": round(sum(c.duration for c in self.unverified) / 3600, 4),
        }


def sort_rows(cuts: Iterable[Cut], keyword: str) -> Rows:
    """Sort rows for a keyword by their label and text.

    A row is a positive if its label or text equals the keyword. It is left out if the keyword
    stands inside a longer label or text or in one of several supervisions, if its label is
    ``_stream_`` or it is marked near-silent. All others are negatives.
    """
    wanted = normalise(keyword)
    if not wanted:
        raise RequestError(f"keyword {keyword!r}: is empty; give the word or words to spot")
    positives, negatives, left_out, unverified = [], [], [], []
    for cut in cuts:
        names, custom = _names(cut), custom_of(cut)
        if label_of(cut) == STREAM or is_near_silent(cut):
            left_out.append(cut)
        elif wanted in names and len(cut.supervisions) == 1 and AMID not in custom:
            positives.append(cut)
        elif any(_holds(name, wanted) for name in names):
            left_out.append(cut)
        else:
            negatives.append(cut)
            if not set(names) - {_UNTOLD}:
                unverified.append(cut)
    return Rows(tuple(positives), tuple(negatives), tuple(left_out), tuple(unverified))


def name_of(cut: Cut) -> str | None:
    """Return what a clip is called: its label, or its text where it has none."""
    label = label_of(cut)
    return text_of(cut) if label is None else label


def is_silent(cut: Cut) -> bool:
    """Say whether a clip is named as one without speech."""
    name = name_of(cut)
    return name is not None and name.strip() in ("", *_SILENT_LABELS)


def _names(cut: Cut) -> list[str]:
    """Return all that a clip is called, normalised: labels and texts of its supervisions."""
    given = [label_of(cut), text_of(cut), *custom_of(cut).get(AMID, ())]
    for one in cut.supervisions:
        given += [text_in(one), (one.custom or {}).get("label")]
    return list(dict.fromkeys(normalise(str(name)) for name in given if name is not None))


def _holds(text: str, wanted: str) -> bool:
    """Say whether the words of a keyword stand in a text."""
    if names_a_sound(text):
        return False
    keyword, words = _words(wanted), _words(text)
    # letters without case are those of scripts that may write words together
    if any(unicodedata.category(c) == "Lo" for c in keyword):
        return keyword in words
    return f" {keyword} " in f" {words} "


def _words(text: str) -> str:
    """Return the words of a text without punctuation, which would hide a keyword."""
    # marks are the vowel signs and accents of many scripts, and part of their words
    text = text.replace(_CURLY_APOSTROPHE, "'")
    kept = (c if unicodedata.category(c)[0] in "LMN" or c == "'" else " " for c in text)
    return " ".join("".join(kept).split())
