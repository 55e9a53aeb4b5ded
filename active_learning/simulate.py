"""Simulated rounds: what a strategy's choice of clips is worth, with known transcripts for labels.

The protocol of Huang et al. 2016: a base model scores the pool once, each strategy queries growing
shares of it, and training goes on (or starts anew) with base and queried clips; so it does at a
share of 0, with the base alone, that a curve shows what labels bring and not what training longer
does. Runs of one seed are paired: they share the split, the base model, and all that training
draws.

Every trained model is a cell, with one row of results (`cells`); cells that have theirs are not
trained again, and several processes may work on one folder if they are given different seeds.
"""

import importlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import pyarrow as pa
from lhotse.cut import Cut

from speechkit import manifests
from speechkit.active_learning import cascade
from speechkit.active_learning.blocks import digest, read_scores
from speechkit.active_learning.budget import Budget
from speechkit.active_learning.cells import Cells
from speechkit.active_learning.jsonl import Row
from speechkit.active_learning.query import Query
from speechkit.active_learning.score import score_pool
from speechkit.active_learning.scorers import require_known
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.select import write_selection
from speechkit.active_learning.selection import choose
from speechkit.errors import RequestError

logger = logging.getLogger(__name__)

Cuts = Sequence[Cut]
M = TypeVar("M")

SHARES = (0.0, 0.05, 0.1, 0.2, 0.4, 1.0)
_TARGET = re.compile(r"speechkit(\.[a-z_]+)+:[A-Za-z_]+")
# rows of another one are not comparable: what a share of 0 means has changed once
_PROTOCOL = 2
_LONGEST_NAME = 80


class Fit(Protocol[M]):
    """Trains a model."""

    def __call__(self, cuts: Cuts, init: M | None, *, seed: int, out: Path) -> M:
        """Return a model trained on clips, from ``init`` if there is one.

        Asked again for an ``out`` where it was finished, it returns the model that is there; where
        it was interrupted, it goes on or starts again.
        """


Evaluate = Callable[[Any, Cuts], dict[str, float]]
"""Measures a model on clips: errors by name, such as wer and cer."""


@dataclass(frozen=True)
class Split:
    """Clips with labels, clips to choose from, and clips to measure on."""

    base: Cuts
    pool: Cuts
    test: Cuts

    def __post_init__(self) -> None:
        parts = {"base": self.base, "pool": self.pool, "test": self.test}
        ids = {name: {cut.id for cut in cuts} for name, cuts in parts.items()}
        for one, other in combinations(ids, 2):
            if shared := ids[one] & ids[other]:
                raise RequestError(
                    f"{len(shared)} clips are in {one} and in {other} ({min(shared)}): each may be "
                    "in one of base, pool and test"
                )


@dataclass(frozen=True, kw_only=True)
class SimulationConfig:
    """What is simulated.

    Attributes
    ----------
    shares
        of the pool that are queried; 0 and 1 are the same for all strategies.
    budget
        what a share is of: the pool's clips, or its seconds.
    training
        continue from the base model, or start from scratch with the seed's own weights.
    scoring
        how the pool is scored.
    """

    shares: tuple[float, ...] = SHARES
    budget: Literal["clips", "seconds"] = "clips"
    training: Literal["continue", "scratch"] = "continue"
    scoring: ScoringConfig = ScoringConfig(nbest=0, quality=False)

    def __post_init__(self) -> None:
        if not self.shares or not all(0 <= share <= 1 for share in self.shares):
            raise RequestError(f"shares {list(self.shares)}: give numbers from 0 to 1")
        if self.scoring.seed:
            raise RequestError(
                f"scoring.seed {self.scoring.seed}: each run scores by its own seed; leave it out"
            )


def simulate(
    split: Callable[[int], Split],
    *,
    queries: Sequence[str | Query],
    seeds: Iterable[int],
    fit: Fit[Any],
    evaluate: Evaluate,
    out: Path,
    config: SimulationConfig = SimulationConfig(),
    carried: Path | None = None,
    settings: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Train and measure a model for every seed, strategy and share; return the rows of all.

    Parameters
    ----------
    split
        base, pool and test of a seed.
    queries
        strategies, see `Query.parse`.
    out
        a folder for results.jsonl, which `al compare` reads, and a folder for each seed.
    carried
        a file of rows that come from other folders, or go to them, see `cells`.
    settings
        of training and data, which rows must share beside ``config``.

    Raises
    ------
    RequestError
        if the folder holds the results of another simulation, or queries are not what they
        should be.
    """
    parsed = [query if isinstance(query, Query) else Query.parse(query) for query in queries]
    names = [query.name for query in parsed]
    if len(set(names)) < len(names):
        raise RequestError(f"queries {names}: give each one once")
    for query in parsed:  # before hours of training
        first, cascades = cascade.separate(query.strategies)
        require_known([*first, *(one.fine for one in cascades)])
    fixed = {name: value for name, value in asdict(config).items() if name != "shares"}
    cells = Cells(out, {"protocol": _PROTOCOL, **fixed, **(settings or {})}, carried)
    cells.claim()
    for seed in seeds:
        run = _Run(split(seed), seed, fit, evaluate, out, config, cells)
        run.base_and_whole()
        for query in parsed:
            run.query(query)
    return cells.collect()


def run(
    learner: str,
    *,
    base: Path,
    pool: Path,
    test: Path,
    out: Path,
    queries: list[str] | None = None,
    seeds: int = 6,
    first_seed: int = 0,
    cells: Path | None = None,
    config: SimulationConfig = SimulationConfig(),
) -> None:
    """Simulate rounds of active learning on labelled clips, to see whether a strategy pays.

    Parameters
    ----------
    learner
        speechkit.asr.learner:RECOGNISER, speechkit.kws.learner:SPOTTER, or another
        package.module:name within speechkit with the functions fit and evaluate.
    base, pool, test
        manifests, or folders with one: labelled clips to begin with, clips to choose from, clips
        to measure on.
    out
        a folder for results.jsonl; run again to go on.
    queries
        such as egl:k=4/per_second, egl/kmeans++, cascade; random and egl if not given.
    seeds, first_seed
        how many, counted from which.
    cells
        a file of rows that were measured elsewhere and are not to be measured again; gets the new
        ones.
    """
    if seeds < 1:
        raise RequestError(f"seeds {seeds}: give 1 or more")
    teacher = load_learner(learner)
    parts = Split(*(list(manifests.read(path)) for path in (base, pool, test)))
    rows = simulate(
        lambda seed: parts,
        queries=queries or ["random", "egl"],
        seeds=range(first_seed, first_seed + seeds),
        fit=teacher.fit,
        evaluate=teacher.evaluate,
        out=out,
        config=config,
        carried=cells,
        settings={
            "learner": learner,
            "data": [manifests.fingerprint(part) for part in (parts.base, parts.pool, parts.test)],
        },
    )
    report = out / "report"
    logger.info("%d rows; next: speechkit al compare %s --out %s", len(rows), out, report)


def load_learner(target: str) -> Any:
    """Return what ``package.module:name`` within speechkit names.

    Raises
    ------
    RequestError
        if there is none, or it lacks fit or evaluate.
    """
    if not _TARGET.fullmatch(target):
        raise RequestError(f"learner {target!r}: give package.module:name within speechkit")
    module, _, name = target.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise RequestError(f"learner {target!r}: is unknown ({error})") from error
    if not all(callable(getattr(found, part, None)) for part in ("fit", "evaluate")):
        raise RequestError(f"learner {target!r}: has no functions fit and evaluate")
    return found


@dataclass
class _Run:
    """All cells of one seed."""

    split: Split
    seed: int
    fit: Fit[Any]
    evaluate: Evaluate
    out: Path
    config: SimulationConfig
    cells: Cells

    @property
    def folder(self) -> Path:
        return self.out / f"seed-{self.seed}"

    @cached_property
    def base_model(self) -> Any:
        """The base model: trained once, then what ``fit`` finds in its folder."""
        manifests.write(self.split.pool, self.folder / "pool.jsonl.gz")
        return self.fit(list(self.split.base), None, seed=self.seed, out=self.folder / "base")

    def base_and_whole(self) -> None:
        """Fill the cells that all strategies share."""
        if 0.0 in self.config.shares:
            continued = self.config.training == "continue"
            self._cell("base", 0.0, [], None if continued else lambda: self.base_model)
        if 1.0 in self.config.shares:
            self._cell("whole", 1.0, list(self.split.pool))

    def query(self, query: Query) -> None:
        """Fill the cells of a strategy."""
        shares = [share for share in self.config.shares if 0 < share < 1]
        if all(self._name(query.name, share) in self.cells for share in shares):
            return
        table = self._scores(query)
        cuts = {cut.id: cut for cut in self.split.pool}
        for share in shares:
            budget = self._budget(share)
            selection = choose(table, budget, config=query.selection(self.seed))
            chosen = self.folder / "selections" / self._name(query.name, share)
            write_selection(chosen, selection, scores=table, pool=self.split.pool)
            self._cell(query.name, share, [cuts[id_] for id_ in selection.ids])

    def _scores(self, query: Query) -> pa.Table:
        """Return the pool's scores by all that the query needs."""
        table = self._scored(query.strategy)
        for name in query.strategies[1:]:
            table = table.append_column(name, self._scored(name)[name])  # all are sorted by id
        return table

    def _scored(self, strategy: str) -> pa.Table:
        """Score the pool by one strategy, once for all queries that choose by it."""
        folder = self.folder / "scores" / digest([strategy])
        config = replace(self.config.scoring, seed=self.seed)
        score_pool(list(self.split.pool), self.base_model, [strategy], folder=folder, config=config)
        return read_scores(folder)

    def _budget(self, share: float) -> Budget:
        pool = self.split.pool
        if self.config.budget == "seconds":
            return Budget("seconds", share * sum(float(cut.duration) for cut in pool))
        return Budget("clips", max(1, round(share * len(pool))))

    def _cell(
        self, name: str, share: float, queried: Cuts, train: Callable[[], Any] | None = None
    ) -> None:
        """Train and measure one model, unless its row is there."""
        cell = self._name(name, share)
        if cell in self.cells:
            return
        model = train() if train is not None else self._train(cell, queried)
        row = {
            "strategy": name,
            "seed": self.seed,
            "share": share,
            "clips": len(queried),
            "seconds": sum(float(cut.duration) for cut in queried),
            "speakers": len({manifests.speaker_of(cut) for cut in queried}),
            **self.evaluate(model, self.split.test),
        }
        kept = self.cells.add(cell, row)
        logger.info("seed %d, %s, share %g: %s", self.seed, name, share, kept)

    def _train(self, cell: str, queried: Cuts) -> Any:
        init = self.base_model if self.config.training == "continue" else None
        cuts = [*self.split.base, *sorted(queried, key=lambda cut: cut.id)]
        return self.fit(cuts, init, seed=self.seed, out=self.folder / cell)

    def _name(self, name: str, share: float) -> str:
        plain = re.sub(r"[^A-Za-z0-9_.=+-]", "_", name)[:_LONGEST_NAME]  # the digest tells apart
        return f"{self.seed}-{plain}-{digest(name)[:6]}-{share:g}"
