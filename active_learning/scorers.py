"""Strategies by name, with parameters: "egl", "egl:weights=raw,k=100", "egl:parameters=output"."""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, get_type_hints

from speechkit.active_learning.baselines import (
    Committee,
    Dropout,
    FrameEntropy,
    LeastConfidence,
    Longest,
    Margin,
    PredictedCtc,
    Random,
    Shortest,
    Sketch,
    TrueErrors,
    TrueGradient,
)
from speechkit.active_learning.egl import Columns, Egl
from speechkit.active_learning.keyword_scorers import (
    ClassConfidence,
    ClassEgl,
    ClassEntropy,
    ClassMargin,
)
from speechkit.errors import RequestError


class Scorer(Protocol):
    """Says of each clip of a batch how much its label is wanted; a frozen dataclass."""

    def score(self, batch: Any) -> Columns:
        """Return the scores under "", and what goes with them under other names."""


@dataclass(frozen=True)
class Strategy:
    """A scorer under the name that its column has."""

    name: str
    scorer: Scorer

    def columns(self, batch: Any) -> Columns:
        """Return the columns of a batch: the score, and ``NAME_what`` for what goes with it."""
        found = self.scorer.score(batch)
        return {f"{self.name}_{part}" if part else self.name: v for part, v in found.items()}


Build = Callable[..., Scorer]

_ANY_MODEL: Mapping[str, Build] = {"random": Random, "longest": Longest, "shortest": Shortest}

RECOGNISER: Mapping[str, Build] = {
    **_ANY_MODEL,
    "egl": Egl,
    "confidence": LeastConfidence,
    "confidence_per_token": partial(LeastConfidence, per_token=True),
    "entropy": FrameEntropy,
    "entropy_sum": partial(FrameEntropy, total=True),
    "pctc": PredictedCtc,
    "margin": Margin,
    "dropout": Dropout,
    "committee": Committee,
    "true_gradient": TrueGradient,
    "true_errors": TrueErrors,
    "embedding": Sketch,
}

SPOTTER: Mapping[str, Build] = {
    **_ANY_MODEL,
    "egl": ClassEgl,
    "entropy": ClassEntropy,
    "margin": ClassMargin,
    "confidence": ClassConfidence,
}

# a comma parts strategies, unless what follows is another parameter of the one before
_COMMA = re.compile(r",(?!\s*\w+=)")


def split(texts: Iterable[str]) -> list[str]:
    """Split texts such as "egl:weights=raw,k=100,entropy" into one for each strategy."""
    parts = [part.strip() for text in texts for part in _COMMA.split(text)]
    named = [part for part in parts if part]
    if not named:
        raise RequestError("no strategy given; give names such as egl,entropy")
    return list(dict.fromkeys(named))


def parse(texts: Sequence[str], table: Mapping[str, Build], *, seed: int) -> list[Strategy]:
    """Return the strategies that names with parameters stand for.

    Parameters
    ----------
    table
        `RECOGNISER` or `SPOTTER`.
    seed
        of those that draw, and say no other.

    Raises
    ------
    RequestError
        if a name or a parameter is unknown, or a value is none.
    """
    return [_parse(text, table, seed) for text in split(texts)]


def require_known(texts: Sequence[str]) -> None:
    """Refuse names and parameters that are of neither kind of model, before there is one.

    Raises
    ------
    RequestError
        as `parse` does for a recogniser.
    """
    for text in texts:
        try:
            parse([text], SPOTTER, seed=0)
        except RequestError:
            parse([text], RECOGNISER, seed=0)


def committee_members(text: str) -> list[str]:
    """Return the folders of a committee; none of another strategy."""
    name, _, rest = text.partition(":")
    if name.strip() != "committee":
        return []
    pairs = (part.strip().partition("=") for part in rest.split(","))
    return [folder for key, _, value in pairs if key == "models" for folder in value.split("+")]


def _parse(text: str, table: Mapping[str, Build], seed: int) -> Strategy:
    name, _, rest = text.partition(":")
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = "".join(f"did you mean {candidate}? " for candidate in close)
        there = ", ".join(sorted([*table, "cascade"] if table is RECOGNISER else table))
        model = "a recogniser" if table is RECOGNISER else "a keyword spotter"
        raise RequestError(f"strategy {name!r}: {hint}of {model} there are {there}")
    build = table[name]
    kind = build.func if isinstance(build, partial) else build
    hints = _settable(kind)
    values: dict[str, Any] = {"seed": seed} if "seed" in hints else {}
    for pair in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = pair.partition("=")
        if key not in hints or not equals:
            known = ", ".join(hints) or "none"
            raise RequestError(f"strategy {text!r}: {pair!r} is no parameter; there are: {known}")
        values[key] = _value(value, hints[key], text)
    if missing := _required(kind) - values.keys():
        raise RequestError(f"strategy {text!r}: needs {', '.join(sorted(missing))}=VALUE")
    return Strategy(text, build(**values))


def _required(kind: Any) -> set[str]:
    absent = dataclasses.MISSING
    return {
        field.name
        for field in dataclasses.fields(kind)
        if field.init and field.default is absent and field.default_factory is absent
    }


def _settable(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind) if field.init}


def _value(text: str, hint: Any, where: str) -> Any:
    """Return a value of the type of a parameter: a number or a word."""
    kind = next((one for one in (bool, int, float) if hint in (one, one | None)), None)
    if kind is None:
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise RequestError(f"strategy {where!r}: {text!r} is neither true nor false")
        return text == "true"
    try:
        return kind(text)
    except ValueError as error:
        raise RequestError(f"strategy {where!r}: {text!r} is no number") from error
