"""Batches of utterances of like duration: what a run reads in which epoch, and from where on.

The plan of an epoch is a function of (cuts, config, seed, epoch, ranks) alone, whatever the order
of the manifest; so a run that is resumed at an epoch reads exactly what it would have read.

lhotse's bucketing sampler keeps its place by replaying, depends on the order of the manifest, may
step over its limit, and leaves an unfilled batch in every bucket (a tenth of the batches of a
small set); here the limit holds and one batch in all is unfilled.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch.utils.data import Sampler

from speechkit.errors import RequestError
from speechkit.seeds import seed_of


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How large batches are.

    Parameters
    ----------
    max_s
        seconds in a batch, padding included: utterances times the longest.
    quadratic_s
        an utterance of d seconds counts as d + d^2 / quadratic_s, since the cost of dense
        attention grows with the square: twice as much for one of this length. None for sparse
        attention.
    max_cuts
        utterances in a batch at most; None for any number.
    buckets
        classes of duration, of equal total duration, within which utterances are shuffled: more
        give less padding, fewer give batches of more mixed durations. Their limits differ from
        epoch to epoch.
    too_long
        an utterance that counts for more than ``max_s`` gets a batch of its own ("alone"), or is
        an error ("refuse").
    """

    max_s: float = 120.0
    quadratic_s: float | None = None
    max_cuts: int | None = None
    buckets: int = 20
    too_long: Literal["alone", "refuse"] = "alone"

    def __post_init__(self) -> None:
        limits = (("max_s", self.max_s), ("quadratic_s", self.quadratic_s))
        for name, value in (*limits, ("max_cuts", self.max_cuts), ("buckets", self.buckets)):
            if value is not None and not 0 < value < math.inf:
                raise RequestError(f"{name} {value}: must be positive, and a number")
        if self.too_long not in ("alone", "refuse"):
            raise RequestError(f"too_long {self.too_long!r}: choose alone or refuse")

    def cost_s(self, duration_s: float) -> float:
        """Return what an utterance counts for."""
        return duration_s + (duration_s**2 / self.quadratic_s if self.quadratic_s else 0.0)


@dataclass(frozen=True, slots=True)
class CutBatch:
    """Cuts to be read together, and their place in a run."""

    epoch: int
    number: int
    cuts: tuple[Cut, ...]

    @property
    def padded_s(self) -> float:
        """Seconds, padding included."""
        return len(self.cuts) * max(cut.duration for cut in self.cuts)


class DurationBatches(Sampler[CutBatch]):
    """The batches of one rank; a sampler for ``DataLoader(..., batch_size=None)``.

    Iterating gives the batches of the epoch that `seek` set, and changes nothing, so that workers
    may read ahead. All ranks have equally many, of like durations at equal numbers: where batches
    run out, some of the epoch's come twice.

    Parameters
    ----------
    cuts
        those to read in each epoch, once each.
    seed
        of the order.
    """

    def __init__(
        self,
        cuts: Iterable[Cut],
        config: BatchConfig = BatchConfig(),
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise RequestError(f"rank {rank} of {world_size}: must lie within 0 to world_size - 1")
        self.config = config
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self._cuts = sorted(cuts, key=lambda cut: cut.id)
        self._durations = np.array([cut.duration for cut in self._cuts])
        self._refuse()
        self._planned: tuple[int, list[CutBatch]] | None = None
        self.seek(0)

    def seek(self, epoch: int) -> None:
        """Set the epoch that the next iteration reads."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[CutBatch]:
        return iter(self.plan(self.epoch))

    def __len__(self) -> int:
        """Return how many batches the epoch has in all; epochs differ by a few."""
        return len(self.plan(self.epoch))

    def plan(self, epoch: int) -> list[CutBatch]:
        """Return all batches of an epoch for this rank."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = epoch, self._plan(epoch)
        return self._planned[1]

    def _plan(self, epoch: int) -> list[CutBatch]:
        rng = np.random.default_rng(seed_of("batches", self.seed, epoch))
        by_duration = np.lexsort((rng.random(len(self._cuts)), self._durations))
        passed = np.cumsum(self._durations[by_duration]) / self._durations.sum()
        bucket = np.floor(passed * self.config.buckets + rng.random())
        order = by_duration[np.lexsort((rng.random(len(bucket)), bucket))]
        batches = self._dealt(order)
        # ranks work on neighbours in duration at the same time, so that none waits for another
        ranks = self.world_size
        # filled with the last ones, which are of the last group's bucket
        batches += [batches[-1 - i % len(batches)] for i in range(-len(batches) % ranks)]
        groups = [batches[i : i + ranks] for i in range(0, len(batches), ranks)]
        rng.shuffle(groups)
        return [CutBatch(epoch, number, group[self.rank]) for number, group in enumerate(groups)]

    def _dealt(self, order: NDArray[np.intp]) -> list[tuple[Cut, ...]]:
        """Return batches of neighbours in an order, each as large as the limits allow."""
        batches: list[list[Cut]] = []
        longest = 0.0
        for index in order:
            cost = self.config.cost_s(self._durations[index])
            if not batches or self._full(len(batches[-1]), max(longest, cost)):
                batches.append([])
                longest = 0.0
            batches[-1].append(self._cuts[index])
            longest = max(longest, cost)
        return [tuple(batch) for batch in batches]

    def _full(self, count: int, longest: float) -> bool:
        """Say whether a batch has no place for one more."""
        return count == self.config.max_cuts or (count + 1) * longest > self.config.max_s

    def _refuse(self) -> None:
        if not self._cuts:
            raise RequestError("no cuts to make batches of; give at least one")
        empty = [cut.id for cut in self._cuts if not cut.duration > 0]
        if empty:
            raise RequestError(f"{len(empty)} cuts last 0 s ({', '.join(empty[:3])}): remove them")
        longest = max(self._cuts, key=lambda cut: cut.duration)
        cost = self.config.cost_s(longest.duration)
        if self.config.too_long == "refuse" and cost > self.config.max_s:
            raise RequestError(
                f"{longest.id}: lasts {longest.duration:.2f} s and counts for {cost:.2f} s, over "
                f"max_s {self.config.max_s:g}; raise max_s, leave it out, or set too_long to alone"
            )
