"""Clips that may be selected: the columns of a table of scores that a selection looks at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechkit.active_learning.budget import Budget
from speechkit.active_learning.diversity import Vector
from speechkit.errors import RequestError


@dataclass(frozen=True)
class Candidates:
    """Clips that may be taken, in the order of their ids; N of them.

    Attributes
    ----------
    utility, duration_s, costs
        (N,).
    embeddings
        (N, E), if they are there; NaN of a clip that has none.
    """

    ids: list[str]
    utility: Vector
    duration_s: Vector
    costs: Vector
    embeddings: NDArray[np.float64] | None

    def take(self, index: NDArray[Any]) -> "Candidates":
        """Return those at some places, in ascending order."""
        index = np.sort(index)
        return Candidates(
            [self.ids[i] for i in index],
            self.utility[index],
            self.duration_s[index],
            self.costs[index],
            None if self.embeddings is None else self.embeddings[index],
        )


def candidates_of(
    scores: pa.Table, budget: Budget, *, column: str, per_second: bool, embedding: str
) -> Candidates:
    """Return the candidates of a table whose rows are in the order of their ids.

    Parameters
    ----------
    column
        the scores that are the utility, divided by the duration if ``per_second``.
    embedding
        the column of embeddings, which may be missing.

    Raises
    ------
    RequestError
        if there is no such column of numbers, it reaches below 0 and is to be divided, or
        embeddings differ in length.
    """
    duration_s = _numbers(scores, "duration_s")
    utility = _numbers(scores, column)
    if per_second:
        if (utility < 0).any():
            raise RequestError(
                f"column {column!r}: reaches below 0, which dividing by the duration would turn "
                "round: the longer, the better; leave out per_second"
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            utility = utility / duration_s
    embeddings = None
    if embedding in scores.column_names:
        embeddings = _matrix(scores[embedding].to_pylist(), embedding)
    ids = scores["id"].to_pylist()
    return Candidates(ids, utility, duration_s, budget.costs(duration_s), embeddings)


def _numbers(scores: pa.Table, column: str) -> Vector:
    if column not in scores.column_names:
        known = [
            name
            for name, kind in zip(scores.column_names, scores.schema.types, strict=True)
            if pa.types.is_floating(kind) or pa.types.is_integer(kind)
        ]
        raise RequestError(f"no column {column!r} in the scores; there are {', '.join(known)}")
    try:
        return scores[column].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    except (pa.ArrowException, ValueError) as error:
        raise RequestError(f"column {column!r}: holds no numbers ({error})") from error


def _matrix(rows: Sequence[Sequence[float] | None], column: str) -> NDArray[np.float64]:
    """Return (N, E), with NaN in the rows of clips that have no embedding."""
    sizes = {len(row) for row in rows if row is not None}
    if len(sizes) > 1:
        raise RequestError(f"column {column!r}: embeddings of {sorted(sizes)} numbers; make equal")
    size = max(sizes, default=1)
    empty = np.full(size, math.nan)
    return np.array([empty if row is None else row for row in rows], dtype=np.float64)
