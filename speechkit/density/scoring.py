"""Scoring evaluation windows with a model: sums of nats that no batch size changes.

Shapes: B windows of a batch, n bytes of a window.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechkit.density.corpus import EvaluationWindows, ScoredWindow
from speechkit.density.metrics import bits_per_byte
from speechkit.density.model import DensityModel
from speechkit.errors import RequestError


@dataclass(frozen=True, eq=False)
class Score:
    """What scoring found.

    Parameters
    ----------
    nats, counts
        (n,) the sum over the scored bytes with so many bytes of context, and how many there are.
    windows
        how many windows there were.
    seconds
        what they took.
    """

    nats: NDArray[np.float64]
    counts: NDArray[np.int64]
    windows: int
    seconds: float

    @property
    def bytes(self) -> int:
        """Bytes that were scored."""
        return int(self.counts.sum())

    @property
    def bits_per_byte(self) -> float:
        """The mean over all scored bytes."""
        return bits_per_byte(float(self.nats.sum()), self.bytes)

    @property
    def seconds_per_window(self) -> float:
        """Time of a window."""
        return self.seconds / max(1, self.windows)

    def by_context(self, edges: Sequence[int]) -> list[float | None]:
        """Return bits per byte of the bytes whose context lies in [edge, next edge)."""
        spans = [slice(low, high) for low, high in pairwise(edges)]
        sums = [(float(self.nats[s].sum()), int(self.counts[s].sum())) for s in spans]
        return [bits_per_byte(nats, count) if count else None for nats, count in sums]


def spread(windows: EvaluationWindows, most: int = 0) -> list[int]:
    """Return the indices of at most so many windows, at even distances; 0 for all.

    Not all are without the first, whose bytes have less context than the others' least: of few
    windows they would be most.
    """
    if most < 0:
        raise RequestError(f"windows {most}: give 1 or more, or 0 for all")
    total = len(windows)
    if not most or most >= total:
        return list(range(total))
    return sorted({int(place) for place in np.linspace(1, total - 1, most)})


def share(indices: Sequence[int], *, rank: int, world: int) -> list[int | None]:
    """Return the indices of one rank; every rank has as many, filled up with None."""
    filled = [*indices, *[None] * (-len(indices) % world)]
    return filled[rank::world]


@torch.no_grad()
def score(
    model: DensityModel,
    windows: EvaluationWindows,
    indices: Sequence[int | None],
    *,
    batch: int = 8,
    precision: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[Score]:
    """Yield the score of each batch of windows; `total` adds them up.

    Parameters
    ----------
    indices
        which windows; None stands for one that is computed and not counted, so that processes
        which share a model do the same number of steps.
    precision
        gives the context in which the model runs.
    """
    if batch < 1:
        raise RequestError(f"batch {batch}: give 1 or more")
    device = next(model.parameters()).device
    for start in range(0, len(indices), batch):
        begun = time.monotonic()
        chosen = indices[start : start + batch]
        taken = [windows[0 if index is None else index] for index in chosen]
        tokens = torch.from_numpy(np.stack([window.data for window in taken])).to(device)
        with precision():
            nats_bt = model.nats(tokens)
        real = [index is not None for index in chosen]
        yield _counted(nats_bt, taken, real, begun)


def total(scores: Sequence[Score]) -> Score:
    """Add scores up, in their order."""
    return Score(
        np.sum([one.nats for one in scores], axis=0),
        np.sum([one.counts for one in scores], axis=0),
        sum(one.windows for one in scores),
        sum(one.seconds for one in scores),
    )


def _counted(
    nats_bt: Tensor, windows: Sequence[ScoredWindow], real: Sequence[bool], begun: float
) -> Score:
    nats = nats_bt.double().cpu().numpy()
    length = nats.shape[1]
    starts = np.array(
        [w.scored_from if counts else length for w, counts in zip(windows, real, strict=True)]
    )
    scored = np.arange(length) >= starts[:, None]
    return Score(
        np.where(scored, nats, 0.0).sum(axis=0),
        scored.sum(axis=0),
        sum(real),
        time.monotonic() - begun,
    )
