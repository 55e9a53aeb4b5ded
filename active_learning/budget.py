"""Budgets: how much may be labelled, in clips, in seconds of audio, or in annotation cost."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from speechkit.errors import RequestError

_FORMS = "give clips (500), audio (1800s, 30min, 2h) or annotation cost (cost:120)"
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_AMOUNT = re.compile(
    r"(?P<cost>cost:)?(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>clips?|s|min|h)?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class AnnotationCost:
    """What it costs to annotate a clip, in any unit; the defaults are seconds of work.

    Transcribing takes about eight times as long as the audio lasts, and each clip must be opened.

    Attributes
    ----------
    fixed
        cost of a clip, however short.
    per_second
        cost of a second of its audio.
    """

    fixed: float = 5.0
    per_second: float = 8.0

    def __post_init__(self) -> None:
        costs = (self.fixed, self.per_second)
        if not all(math.isfinite(cost) and cost >= 0 for cost in costs) or max(costs) == 0:
            raise RequestError(
                f"annotation cost {self.fixed:g} + {self.per_second:g} a second: give numbers of 0 "
                "or more, one of them above 0"
            )


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount to spend on labels.

    Attributes
    ----------
    kind
        what is counted: clips, seconds of audio, or annotation cost.
    amount
        how much of it.
    """

    kind: Literal["clips", "seconds", "cost"]
    amount: float
    annotation: AnnotationCost = AnnotationCost()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.amount) and self.amount > 0):
            raise RequestError(f"budget of {self.amount:g} {self.kind}: must be above 0; {_FORMS}")

    @classmethod
    def parse(cls, text: str, *, annotation: AnnotationCost = AnnotationCost()) -> "Budget":
        """Read "500", "500clips", "1800s", "30min", "2h" or "cost:120".

        Raises
        ------
        RequestError
            if it is none of these, zero, negative, or a fraction of a clip.
        """
        match = _AMOUNT.fullmatch(text.strip().lower())
        if match is None or (match["cost"] and match["unit"]):
            raise RequestError(f"budget {text!r}: is none; {_FORMS}, above 0")
        amount, unit = float(match["number"]), match["unit"]
        if match["cost"]:
            return cls("cost", amount, annotation)
        if unit in _SECONDS:
            return cls("seconds", amount * _SECONDS[unit], annotation)
        if not amount.is_integer():
            raise RequestError(f"budget {text!r}: clips come whole; {_FORMS}")
        return cls("clips", amount, annotation)

    def costs(self, duration_s: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what clips of these durations take of the budget."""
        if self.kind == "clips":
            return np.ones(len(duration_s))
        if self.kind == "seconds":
            return duration_s.astype(np.float64)
        return self.annotation.fixed + self.annotation.per_second * duration_s

    def __str__(self) -> str:
        return f"{self.amount:g} {self.kind}"
