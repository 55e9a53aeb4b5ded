"""What the readers return: splits of bytes, which give windows for training and for evaluation.

A training window is a function of (seed, number) alone, where numbers count the examples of a whole
run: a resumed run goes on exactly, and ranks that share a batch see what one process would.

Shapes: B windows of a batch, n bytes of a window, N images.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from speechkit.density.windows import WindowPlan
from speechkit.errors import RequestError

Kind = Literal["text", "image", "audio"]
Bytes = NDArray[np.uint8]

# what is read of a split to tell it apart, so that one of 15 GB takes no minutes
_EXCERPT = 1 << 22
_EXCERPT_BLOCK = 1 << 12


@dataclass(frozen=True, slots=True)
class ImageShape:
    """The shape of an image whose bytes lie in the order row, column, channel."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        """Bytes of an image."""
        return self.height * self.width * self.channels

    def __str__(self) -> str:
        return f"{self.height}x{self.width}x{self.channels}"


@dataclass(frozen=True, slots=True, eq=False)
class ScoredWindow:
    """Bytes (n,) of an evaluation window; those from ``scored_from`` on are scored."""

    data: Bytes
    scored_from: int

    @property
    def context(self) -> NDArray[np.int64]:
        """Bytes of context of each scored byte."""
        return np.arange(self.scored_from, len(self.data))


class EvaluationWindows(Protocol):
    """Evaluation windows by index: together they score every byte of a split once."""

    def __len__(self) -> int:
        """Return the number of windows."""

    def __getitem__(self, index: int, /) -> ScoredWindow:
        """Return a window."""

    def __iter__(self) -> Iterator[ScoredWindow]:
        """Go through all windows."""


class Split(Protocol):
    """Bytes that give windows."""

    @property
    def size(self) -> int:
        """Bytes in the split."""

    def whole(self) -> Bytes:
        """Return all bytes, in order."""

    def excerpt(self) -> Iterator[Bytes]:
        """Yield up to 4 MiB of the bytes, from all over: enough to tell two data sets apart."""

    def draw(self, number: int, *, length: int, seed: int) -> Bytes:
        """Return training window (n,) with this number of a run with this seed."""

    def epoch(self, length: int) -> int:
        """Return the number of training windows after which all data was seen once on average."""

    def evaluation(self, *, length: int, min_context: int = 0) -> EvaluationWindows:
        """Return the evaluation windows; with `WindowPlan`'s errors."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A long sequence of bytes: training windows start anywhere in it."""

    data: Bytes

    @property
    def size(self) -> int:
        """Bytes in the split."""
        return len(self.data)

    def whole(self) -> Bytes:
        """Return all bytes, in order."""
        return self.data

    def excerpt(self) -> Iterator[Bytes]:
        """Yield blocks at even distances, the first and the last among them."""
        blocks = min(_EXCERPT // _EXCERPT_BLOCK, -(-self.size // _EXCERPT_BLOCK))
        for start in _spread(max(1, self.size - _EXCERPT_BLOCK + 1), blocks):
            yield self.data[start : start + _EXCERPT_BLOCK]

    def draw(self, number: int, *, length: int, seed: int) -> Bytes:
        """Return ``length`` bytes from a random place on."""
        self._check(length)
        places = len(self.data) - length + 1
        start = int(np.random.default_rng([seed, number]).integers(places))
        return np.array(self.data[start : start + length])

    def epoch(self, length: int) -> int:
        """Return the number of windows that hold as many bytes as the stream."""
        self._check(length)
        return len(self.data) // length

    def evaluation(self, *, length: int, min_context: int = 0) -> "StreamWindows":
        """Return overlapping windows, in order."""
        return StreamWindows(self.data, WindowPlan(len(self.data), length, min_context))

    def _check(self, length: int) -> None:
        if not 1 <= length <= len(self.data):
            raise RequestError(
                f"context of {length} bytes: the data hold {len(self.data)}; give more data or a "
                "shorter context"
            )


@dataclass(frozen=True, slots=True, eq=False)
class StreamWindows:
    """The evaluation windows of a stream."""

    data: Bytes
    plan: WindowPlan

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> ScoredWindow:
        window = self.plan[index]
        stop = window.start + window.length
        return ScoredWindow(np.array(self.data[window.start : stop]), window.scored_from)

    def __iter__(self) -> Iterator[ScoredWindow]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """Examples that are used whole; each epoch takes all of them, in its own order.

    Parameters
    ----------
    data
        (M, n), possibly mapped from a file.
    rows
        (N,) the rows of ``data`` that belong to the split.
    """

    data: Bytes
    rows: NDArray[np.int64]

    @property
    def size(self) -> int:
        """Bytes in the split."""
        return len(self.rows) * self.data.shape[1]

    def whole(self) -> Bytes:
        """Return the bytes of all examples, in order."""
        return self.data[self.rows].reshape(-1)

    def excerpt(self) -> Iterator[Bytes]:
        """Yield examples at even distances."""
        for place in _spread(len(self.rows), _EXCERPT // self.data.shape[1]):
            yield self.data[self.rows[place]]

    def draw(self, number: int, *, length: int, seed: int) -> Bytes:
        """Return the next example of the epoch's order."""
        self._check(length)
        epoch, place = divmod(number, len(self.rows))
        return np.array(self.data[self.rows[_order(seed, epoch, len(self.rows))[place]]])

    def epoch(self, length: int) -> int:
        """Return the number of examples."""
        self._check(length)
        return len(self.rows)

    def evaluation(self, *, length: int, min_context: int = 0) -> "ItemWindows":
        """Return the examples in order, each scored whole: the least context is none."""
        self._check(length)
        if min_context:
            raise RequestError(
                f"minimum context {min_context}: an image is scored whole, from its first byte; "
                "give 0"
            )
        return ItemWindows(self)

    def _check(self, length: int) -> None:
        if length != self.data.shape[1]:
            raise RequestError(
                f"context of {length} bytes: an image of these data has {self.data.shape[1]}; give "
                "that as the context"
            )


@dataclass(frozen=True, slots=True, eq=False)
class ItemWindows:
    """Whole examples as evaluation windows."""

    items: Items

    def __len__(self) -> int:
        return len(self.items.rows)

    def __getitem__(self, index: int) -> ScoredWindow:
        return ScoredWindow(np.array(self.items.data[self.items.rows[index]]), 0)

    def __iter__(self) -> Iterator[ScoredWindow]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, slots=True)
class TrainingWindows:
    """The training windows (n,) of a run, by number from 0 on, without end."""

    split: Split
    length: int
    seed: int = 0

    def __getitem__(self, number: int) -> Bytes:
        return self.split.draw(number, length=self.length, seed=self.seed)

    def batch(self, step: int, size: int, *, rank: int = 0, world: int = 1) -> Bytes:
        """Return the windows (B, n) of one rank in one step, B = ``size``.

        The ranks' batches, one below the other, are the batch of world · B windows of one process.
        """
        first = (step * world + rank) * size
        return np.stack([self[number] for number in range(first, first + size)])


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Bytes of one kind in named splits: train, valid and, where there is one, test.

    Parameters
    ----------
    name
        what the data are, for reports.
    kind
        text, image or audio.
    splits
        a `Stream` or `Items` for each name.
    shape
        the shape of an image.
    sample_rate
        of audio, in Hz.
    entropy
        bits per byte of the source of a split, for text that was generated: no model can expect to
        do better.
    """

    name: str
    kind: Kind
    splits: Mapping[str, Split]
    shape: ImageShape | None = None
    sample_rate: int | None = None
    entropy: Mapping[str, float] = field(default_factory=dict)

    def split(self, name: str) -> Split:
        """Return a split; a RequestError that names those that are there if it is not."""
        if name not in self.splits:
            there = ", ".join(self.splits)
            raise RequestError(
                f"split {name!r}: {self.name} has no such split; give one of {there}"
            )
        return self.splits[name]

    def training(self, *, length: int, seed: int = 0) -> TrainingWindows:
        """Return the training windows of split train.

        Raises
        ------
        RequestError
            if the split is shorter than a window, or an image is of another size.
        """
        split = self.split("train")
        split.epoch(length)
        return TrainingWindows(split, length, seed)

    def evaluation(self, split: str, *, length: int, min_context: int = 0) -> EvaluationWindows:
        """Return a split's evaluation windows: see `WindowPlan`."""
        return self.split(split).evaluation(length=length, min_context=min_context)

    def fingerprint(self) -> str:
        """Return 16 hex digits over the splits' names, sizes and up to 4 MiB of each."""
        digest = hashlib.sha256()
        for name, split in self.splits.items():
            digest.update(f"{name} {split.size}\n".encode())
            for block in split.excerpt():
                digest.update(block.tobytes())
        return digest.hexdigest()[:16]

    def summary(self) -> str:
        """Return one line: kind, splits and their sizes in bytes."""
        sizes = ", ".join(f"{name} {s.size:,} bytes" for name, s in self.splits.items())
        shape = f" of {self.shape}" if self.shape else ""
        rate = f" at {self.sample_rate} Hz" if self.sample_rate else ""
        return f"{self.name}: {self.kind}{shape}{rate}, {sizes}"


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, epoch]).permutation(count)


def _spread(total: int, count: int) -> list[int]:
    """Return up to ``count`` places in [0, total), at even distances."""
    return sorted({int(place) for place in np.linspace(0, total - 1, max(1, count))})
