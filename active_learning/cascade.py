"""A cheap score for every clip, the dear one for those that it ranks highest.

The output layer's gradient needs no backward pass and ranks clips much as the gradient of all
layers does; so the former says which clips are worth the latter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_type_hints

import numpy as np
import pyarrow as pa

from speechkit.active_learning.blocks import OK
from speechkit.active_learning.jsonl import Row
from speechkit.errors import RequestError

NAME = "cascade"


@dataclass(frozen=True, kw_only=True)
class Cascade:
    """Expected gradient length in two stages.

    Attributes
    ----------
    text
        the strategy as it was asked for, which names its column.
    share
        of the pool that gets the second score.
    weights, k
        of both scores, see `egl.Egl`.
    parameters, passes
        of the second score; the first one is of the output layer.
    """

    text: str = NAME
    share: float = 0.15
    weights: str = "renorm"
    k: int = 16
    parameters: str = "all"
    passes: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RequestError(f"strategy {self.text!r}: share {self.share:g}; give above 0 to 1")

    @classmethod
    def parse(cls, text: str) -> "Cascade":
        """Read "cascade" or "cascade:share=0.1,k=8".

        Raises
        ------
        RequestError
            if a parameter is unknown or its value is none.
        """
        hints = {name: kind for name, kind in get_type_hints(cls).items() if name != "text"}
        values: dict[str, Any] = {}
        for pair in filter(None, text.partition(":")[2].split(",")):
            key, _, value = pair.partition("=")
            if key not in hints:
                known = ", ".join(hints)
                raise RequestError(
                    f"strategy {text!r}: {pair!r} is no parameter; there are {known}"
                )
            try:
                values[key] = hints[key](value)
            except ValueError as error:
                raise RequestError(f"strategy {text!r}: {value!r} is no number") from error
        return cls(text=text, **values)

    @property
    def coarse(self) -> str:
        """The strategy of the first stage."""
        return f"egl:parameters=output,weights={self.weights},k={self.k}"

    @property
    def fine(self) -> str:
        """The strategy of the second stage; passes are saved where hypotheses can share one."""
        text = f"egl:parameters={self.parameters},weights={self.weights},k={self.k}"
        drawn = self.weights in ("sample", "stratified")
        without_pass = self.parameters in ("output", "logits")
        return text if drawn or without_pass else f"{text},passes={self.passes}"

    def chosen(self, coarse: pa.Table) -> list[str]:
        """Return the ids of the clips that get the second score; of equal ones the smaller ids."""
        good = [row for row in _rows(coarse, self.coarse) if row["status"] == OK]
        good.sort(key=lambda row: (-row[self.coarse], row["id"]))
        return sorted(row["id"] for row in good[: round_up(self.share * len(good))])

    def scores(self, coarse: pa.Table, fine: pa.Table) -> dict[str, Row]:
        """Return id -> the columns of the cascade, of the clips that could be scored.

        A clip without the second score gets its first one times the ratio of the two over the
        clips that have both.
        """
        first = {
            row["id"]: row[self.coarse] for row in _rows(coarse, self.coarse) if row["status"] == OK
        }
        second = {
            row["id"]: row[self.fine] for row in _rows(fine, self.fine) if row["status"] == OK
        }
        below = sum(first[id_] for id_ in sorted(second))
        ratio = sum(second[id_] for id_ in sorted(second)) / below if below > 0 else 1.0
        return {
            id_: {
                self.text: second.get(id_, ratio * score),
                f"{self.text}_refined": int(id_ in second),
            }
            for id_, score in first.items()
        }


def separate(texts: Sequence[str]) -> tuple[list[str], list[Cascade]]:
    """Return the strategies of one stage, and the cascades, whose first stages are among them."""
    cascades = [Cascade.parse(text) for text in texts if text.partition(":")[0] == NAME]
    plain = [text for text in texts if text.partition(":")[0] != NAME]
    return list(dict.fromkeys(plain + [one.coarse for one in cascades])), cascades


def merge(row: Mapping[str, Any], found: Sequence[Mapping[str, Row]]) -> Row:
    """Return a row of the first stage with the columns of the cascades."""
    merged = dict(row)
    for columns in found:
        merged |= columns.get(row["id"], {})
    return merged


def round_up(number: float) -> int:
    """Return the next whole number, taking products of decimal fractions for what they mean."""
    return int(np.ceil(number - 1e-9))


def _rows(table: pa.Table, column: str) -> list[Row]:
    if column not in table.column_names:  # every clip failed
        return []
    rows: list[Row] = table.select(["id", "status", column]).to_pylist()
    return rows
