"""Selection under a budget: from a table of scores to the clips to label.

A higher utility means that a clip is wanted more. Nothing depends on the order of the table: ties
go by clip id, and every random choice derives from (seed, clip id).
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from speechkit.active_learning.blocks import OK, require_unique
from speechkit.active_learning.budget import Budget
from speechkit.active_learning.candidates import Candidates, candidates_of
from speechkit.active_learning.diversity import Vector, clusters, fits_in, spread_out
from speechkit.active_learning.keyed import keys_of, uniforms
from speechkit.errors import RequestError

Method = Literal["top", "proportional", "kmeans++", "k-centre"]
METHODS: tuple[Method, ...] = get_args(Method)
DIVERSE = ("kmeans++", "k-centre")

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How to select.

    Attributes
    ----------
    column
        the column of scores that is the utility.
    method
        top: the highest utilities; proportional: at random, without replacement, in proportion to
        the weights; kmeans++, k-centre: far from each other, by weight.
    per_second
        divide the score by the clip's duration: the utility of a second of audio.
    weights
        what proportional and diverse methods weigh by: the utility itself, its rank, or nothing.
    embedding
        the column with a list of numbers for each clip, which diverse methods need.
    shortlist
        diverse methods look at the highest utilities only, of so many times the budget.
    seed
        of the random choices.
    """

    column: str = "egl"
    method: Method = "top"
    per_second: bool = False
    weights: Literal["utility", "rank", "uniform"] = "utility"
    embedding: str = "embedding"
    shortlist: float = 10.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise RequestError(f"method {self.method!r}: there are {', '.join(METHODS)}")
        if not self.shortlist >= 1:
            raise RequestError(f"shortlist {self.shortlist:g}: give 1 or more times the budget")


@dataclass(frozen=True, slots=True)
class Picked:
    """A selected clip: its place from 1, why, and what it and those before take of the budget."""

    id: str
    rank: int
    utility: float
    duration_s: float
    cost: float
    cumulative_cost: float
    cluster: int | None = None


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What was selected, and what was not.

    Attributes
    ----------
    picks
        in rank order.
    unused
        what is left of the budget.
    skipped
        id -> why the clip could not be taken; of clips that could, and were worth less than those
        taken, nothing is kept.
    """

    budget: Budget
    picks: tuple[Picked, ...]
    unused: float
    skipped: Mapping[str, str] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        """Ids in rank order."""
        return [pick.id for pick in self.picks]

    @property
    def seconds(self) -> float:
        """Audio selected."""
        return math.fsum(pick.duration_s for pick in self.picks)

    def reasons(self) -> dict[str, int]:
        """Return how many clips were skipped for each kind of reason."""
        return dict(Counter(reason.partition(":")[0] for reason in self.skipped.values()))


def choose(
    scores: pa.Table,
    budget: Budget,
    *,
    config: SelectionConfig = SelectionConfig(),
    labelled: Collection[str] = (),
    unfit: Mapping[str, str] | None = None,
) -> Selection:
    """Select clips to label.

    A clip that would overflow the budget is passed over and the next one tried; so the budget is
    never exceeded, and what stays unused is reported.

    Parameters
    ----------
    scores
        rows of a pool, as `blocks.read_scores` returns them.
    labelled
        ids that have their labels already.
    unfit
        id -> why the clip is not worth labelling.

    Raises
    ------
    RequestError
        if ids repeat, a column is missing, or weights would be negative.
    """
    ids = scores["id"].to_pylist()
    require_unique(ids, "the table of scores")
    scores = scores.sort_by("id")
    skipped, usable = _sort_out(scores, labelled=set(labelled), unfit=unfit or {})
    candidates = Candidates([], np.zeros(0), np.zeros(0), np.zeros(0), None)
    if usable:
        found = candidates_of(
            scores.take(usable),
            budget,
            column=config.column,
            per_second=config.per_second,
            embedding=config.embedding,
        )
        candidates = _without_unusable(found, budget, config, skipped)
    order = _pick(candidates, budget, config) if candidates.ids else []
    picks = tuple(_picks(candidates, order))
    unused = budget.amount - (picks[-1].cumulative_cost if picks else 0.0)
    skipped |= _passed_over(candidates, order, config)
    return Selection(budget=budget, picks=picks, unused=max(0.0, unused), skipped=skipped)


def _sort_out(
    scores: pa.Table, *, labelled: set[str], unfit: Mapping[str, str]
) -> tuple[dict[str, str], list[int]]:
    """Return why rows are skipped, and the places of the others."""
    skipped, usable = {}, []
    names = ("id", "status", "error")
    rows = zip(*(scores[name].to_pylist() for name in names), strict=True)
    for place, (id_, status, error) in enumerate(rows):
        if id_ in labelled:
            skipped[id_] = "labelled"
        elif status != OK:
            skipped[id_] = f"failed: {error}"
        elif id_ in unfit:
            skipped[id_] = unfit[id_]
        else:
            usable.append(place)
    return skipped, usable


def _without_unusable(
    found: Candidates, budget: Budget, config: SelectionConfig, skipped: dict[str, str]
) -> Candidates:
    """Return the candidates that can be taken at all; note in ``skipped`` why others cannot."""
    finite: Mask = np.isfinite(found.utility) & np.isfinite(found.costs)
    embedded: Mask = np.ones(len(found.ids), dtype=bool)
    if config.method in DIVERSE:
        if found.embeddings is None:
            raise RequestError(
                f"method {config.method}: needs a column {config.embedding!r} of embeddings; score "
                "the pool with one, or use another method"
            )
        embedded = np.asarray(np.isfinite(found.embeddings).all(axis=1))
    short = fits_in(found.costs, budget.amount)
    for place in np.flatnonzero(~(finite & embedded & short)):
        if not finite[place]:
            reason = f"not finite: utility {found.utility[place]}, {found.duration_s[place]:g} s"
        elif not embedded[place]:
            reason = "no embedding"
        else:
            reason = f"longer than the budget: takes {found.costs[place]:g} of {budget}"
        skipped[found.ids[place]] = reason
    return found.take(np.flatnonzero(finite & embedded & short))


def _pick(candidates: Candidates, budget: Budget, config: SelectionConfig) -> list[int]:
    """Return places in rank order."""
    amount = budget.amount
    if config.method == "top":
        return _fill(_ranking(candidates.utility), candidates.costs, amount)
    keys = keys_of(candidates.ids, seed=config.seed)
    weights = _weights(candidates.utility, config)
    if config.method == "proportional":
        # relative, since times of tiny weights would all be infinite
        largest = weights.max(initial=0.0)
        weights = weights / largest if largest > 0 else weights
        with np.errstate(divide="ignore", over="ignore"):
            # the order in which exponential clocks of these rates ring (Efraimidis, Spirakis 2006)
            times = -np.log(uniforms(keys)) / weights
        return _fill(_ranking(-times), candidates.costs, amount)
    near = np.sort(_shortlist(candidates, amount * config.shortlist))
    part = candidates.take(near)
    assert part.embeddings is not None
    places = spread_out(
        part.embeddings,
        weights[near],
        costs=part.costs,
        amount=amount,
        keys=keys[near],
        how="kmeans++" if config.method == "kmeans++" else "k-centre",
    )
    return [int(near[place]) for place in places]


def _weights(utility: Vector, config: SelectionConfig) -> Vector:
    if config.weights == "uniform":
        return np.ones(len(utility))
    if config.weights == "rank":
        # equal utilities get equal weights, the highest one 1
        return np.searchsorted(np.sort(utility), utility, side="right") / max(1, len(utility))
    if len(utility) and utility.min() < 0:
        raise RequestError(
            f"column {config.column!r}: reaches down to {utility.min():g}, and weights cannot be "
            "negative; weigh by rank, or use method top"
        )
    return utility


def _ranking(utility: Vector) -> NDArray[np.int64]:
    """Return places by falling utility; ties keep the order of ids."""
    return np.argsort(-utility, kind="stable")


def _fill(order: NDArray[np.int64], costs: Vector, amount: float) -> list[int]:
    """Take places in order while they fit."""
    taken: list[int] = []
    left = amount
    least = costs.min(initial=math.inf)
    for place in order:
        if not fits_in(least, left):
            break
        if fits_in(costs[place], left):
            taken.append(int(place))
            left -= costs[place]
    return taken


def _shortlist(candidates: Candidates, amount: float) -> NDArray[np.int64]:
    order = _ranking(candidates.utility)
    return order[np.cumsum(candidates.costs[order]) <= amount]


def _picks(candidates: Candidates, order: Sequence[int]) -> Iterator[Picked]:
    groups: Sequence[int | None] = [None] * len(order)
    if candidates.embeddings is not None and order:
        embeddings = np.nan_to_num(candidates.embeddings[order])
        groups = clusters(embeddings, math.ceil(math.sqrt(len(order)))).tolist()
    spent = 0.0
    for rank, (place, group) in enumerate(zip(order, groups, strict=True), start=1):
        spent += float(candidates.costs[place])
        yield Picked(
            id=candidates.ids[place],
            rank=rank,
            utility=float(candidates.utility[place]),
            duration_s=float(candidates.duration_s[place]),
            cost=float(candidates.costs[place]),
            cumulative_cost=spent,
            cluster=group,
        )


def _passed_over(
    candidates: Candidates, order: Sequence[int], config: SelectionConfig
) -> dict[str, str]:
    """Return the clips that a lower ranked one was taken for, because they did not fit the rest."""
    if config.method != "top" or not order:
        return {}
    ranking = _ranking(candidates.utility)
    last = int(np.flatnonzero(ranking == order[-1])[0])
    taken = set(order)
    reason = "did not fit the rest of the budget"
    return {candidates.ids[place]: reason for place in ranking[:last] if place not in taken}
