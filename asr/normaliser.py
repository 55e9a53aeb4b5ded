"""The form of text that a recogniser is trained on and scored against, as a step of its own."""

import unicodedata
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_args

from speechkit.errors import RequestError

UnicodeForm = Literal["NFC", "NFKC", "NFD", "NFKD"]
Case = Literal["lower", "upper", "keep"]

# what writers and word processors use for an apostrophe
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u02bc\u2032\uff07", "'"))

# not seen, though a word with one is another word to a computer: soft hyphens, marks of direction
# and of byte order, and the like; joiners and non-joiners shape letters and stay
_INVISIBLE = dict.fromkeys(
    [0xAD, 0x61C, 0x180E, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
)
# between words of scripts that write none
_ZERO_WIDTH_SPACE = {0x200B: " "}

# categories of punctuation, symbols, control characters and half characters start with these
_NO_PART_OF_WORDS = ("P", "S", "Cc", "Cs")


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """Rewrite a text; applying it twice equals applying it once.

    In this order: what is invisible goes, Unicode form, typographic to plain apostrophe, case,
    punctuation and symbols to spaces (underscores and hyphens among them), white space to single
    spaces. Digits stay: how they are read aloud is for the transcriber to say.

    Parameters
    ----------
    unicode_form
        NFKC joins accents with their letters and folds ligatures, full-width forms and the like.
    case
        the case of the result; "keep" leaves each letter's.
    strip_punctuation
        turn punctuation, symbols and control characters into spaces.
    kept
        exceptions from that; words of nothing else still go.
    """

    unicode_form: UnicodeForm = "NFKC"
    case: Case = "lower"
    strip_punctuation: bool = True
    kept: str = "'"

    def __post_init__(self) -> None:
        """Refuse settings that a hand-written configuration may hold."""
        for name, value, allowed in (
            ("unicode_form", self.unicode_form, get_args(UnicodeForm)),
            ("case", self.case, get_args(Case)),
        ):
            if value not in allowed:
                raise RequestError(f"{name} {value!r}: give one of {', '.join(allowed)}")

    def __call__(self, text: str) -> str:
        """Return the normalised text: words with single spaces between, perhaps none."""
        text = text.translate(_INVISIBLE | _ZERO_WIDTH_SPACE)
        text = unicodedata.normalize(self.unicode_form, text).translate(_APOSTROPHES)
        # letters such as the dotted capital I change their decomposition with their case
        text = unicodedata.normalize(self.unicode_form, self._cased(text))
        if not self.strip_punctuation:
            return " ".join(text.split())
        words = "".join(self._spaced(character) for character in text).split()
        return " ".join(word for word in words if word.strip(self.kept))

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for a model's configuration."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned.

        Raises
        ------
        RequestError
            if a setting is unknown or has a value that is not allowed.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(settings) - set(known)):
            raise RequestError(
                f"normaliser setting {', '.join(unknown)}: give only {', '.join(known)}"
            )
        return cls(**settings)

    def _cased(self, text: str) -> str:
        if self.case == "keep":
            return text
        return text.lower() if self.case == "lower" else text.upper()

    def _spaced(self, character: str) -> str:
        if character in self.kept:
            return character
        return " " if unicodedata.category(character).startswith(_NO_PART_OF_WORDS) else character
