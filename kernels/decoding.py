"""Attention one position at a time, over a cache of what the pattern will still need.

What a cache keeps, and what a step reads of T positions so far:

`Local`, `Dilated`, `OwnBlock`  a ring of the last rows of the window or block; all or part of it
`Columns`                       the summaries of all blocks; all of them
`Strided`, `Dense`, `Blocks`    every position, since each returns for some later query; T / stride
                                rows, all, or what the layout says
`Merged`, `PerHead`             what their members need, once

Shapes: B batch, H heads, N rows, D size of q and k, E size of v.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from speechkit.kernels.errors import KernelError
from speechkit.kernels.numbers import statistics_type, without_autocast
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Local,
    Merged,
    OwnBlock,
    Pattern,
    Strided,
)

_UNBOUNDED = 1 << 62
_FIRST_ROWS = 64


class DecodingCache:
    """The keys and values that later positions need, and the attention of each new position.

    Equals ``sparse_attention(..., causal=True)`` over all positions so far. Scores and sums are in
    float32 for half precision, where products of queries and keys can overflow. No gradients.

    Parameters
    ----------
    pattern
        what each position sees.
    batch, heads, head_size
        B, H and D.
    value_size
        E; by default D.
    scale
        what the scores are multiplied by; by default 1 / sqrt(D).
    dtype, device
        of queries, keys and values, and of what is kept of them.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        batch: int,
        heads: int,
        head_size: int,
        value_size: int | None = None,
        scale: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        value_size = head_size if value_size is None else value_size
        given = {"batch": batch, "heads": heads, "head_size": head_size, "value_size": value_size}
        for name, number in given.items():
            if number < 1:
                raise KernelError(f"DecodingCache: {name} is {number}; give at least 1")
        self.pattern = pattern
        self.length = 0
        self._key_shape = (batch, heads, head_size)
        self._value_shape = (batch, heads, value_size)
        self._scale = 1 / math.sqrt(head_size) if scale is None else scale
        self._like = torch.empty(0, dtype=dtype, device=device)
        sizes = (head_size, value_size)
        self._heads = [
            _HeadCache(alike, which, partial(_Rows, batch * len(which), sizes, self._like))
            for alike, which in _alike(pattern.per_head(heads))
        ]

    @property
    def nbytes(self) -> int:
        """The memory that the cache holds, in bytes."""
        return sum(head.nbytes for head in self._heads)

    @torch.no_grad()
    def prefill(self, k: Tensor, v: Tensor) -> None:
        """Take in keys (B, H, N, D) and values (B, H, N, E) that were attended to elsewhere.

        Raises
        ------
        KernelError
            If shapes, type or device are not the cache's.
        """
        self._check(k, self._key_shape, "k")
        self._check(v, self._value_shape, "v")
        if k.shape[2] != v.shape[2]:
            raise KernelError(f"{k.shape[2]} keys but {v.shape[2]} values; give as many of both")
        self.pattern.check(self.length + k.shape[2])
        for head in self._heads:
            head.extend(self.length, k[:, head.which].flatten(0, 1), v[:, head.which].flatten(0, 1))
        self.length += k.shape[2]

    @torch.no_grad()
    def append_and_attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return the attention of the next position (B, H, 1, E), and take it in.

        Parameters
        ----------
        q, k, v
            the position's query and key (B, H, 1, D) and value (B, H, 1, E).

        Raises
        ------
        KernelError
            If shapes, type or device are not the cache's, or the pattern ends before this position.
        """
        self._check(q, self._key_shape, "q")
        if q.shape[2] != 1:
            raise KernelError(f"q has {q.shape[2]} positions; give one at a time")
        if k.shape[2:3] != (1,):
            raise KernelError(f"k is {tuple(k.shape)}; give one position, or use prefill")
        position = self.length
        self.prefill(k, v)
        output = torch.empty(*self._value_shape[:2], 1, v.shape[3], dtype=q.dtype, device=q.device)
        for head in self._heads:
            found = head.attend(position, q[:, head.which].flatten(0, 1), self._scale)
            output[:, head.which] = found.view(q.shape[0], -1, *found.shape[1:]).to(q.dtype)
        return output

    def _check(self, x: Tensor, shape: tuple[int, int, int], name: str) -> None:
        batch, heads, size = shape
        kept = self._like
        if x.dim() != 4 or (x.shape[0], x.shape[1], x.shape[3]) != shape:
            raise KernelError(
                f"{name} is {tuple(x.shape)}; this cache takes ({batch}, {heads}, N, {size})"
            )
        if x.dtype != kept.dtype or x.device != kept.device:
            raise KernelError(
                f"{name} is {x.dtype} on {x.device}; this cache takes {kept.dtype} on {kept.device}"
            )


def _alike(each: tuple[Pattern, ...]) -> list[tuple[Pattern, list[int]]]:
    """Return the distinct patterns of the heads, and which heads have each."""
    return [(p, [h for h, own in enumerate(each) if own == p]) for p in dict.fromkeys(each)]


class _HeadCache:
    """The cache of the heads that share a pattern; X is batch times these heads."""

    def __init__(
        self,
        pattern: Pattern,
        which: list[int],
        make_rows: "Callable[[_Keeper], _Rows]",
    ) -> None:
        self.which = which
        self.members = _flat(pattern)
        self.recent = make_rows(_Recent(max(map(_reach, self.members))))
        self.summaries: dict[Pattern, _Rows] = {}
        if self.recent.keeper.most != _UNBOUNDED:
            columns = [member for member in self.members if isinstance(member, Columns)]
            self.summaries = {member: make_rows(_Summaries(member)) for member in columns}

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in (self.recent, *self.summaries.values()))

    def extend(self, position: int, k: Tensor, v: Tensor) -> None:
        """Keep what later positions need of rows (X, N, D) and (X, N, E) from `position` on."""
        for rows in (self.recent, *self.summaries.values()):
            rows.extend(position, k, v)

    def attend(self, position: int, q: Tensor, scale: float) -> Tensor:
        """Return the attention (X, 1, E) of a query (X, 1, D) at the newest position."""
        dtype = statistics_type(q)
        own = torch.tensor([position])
        read = [self.recent.read(own)]
        for index, member in enumerate(self.members):
            seen = _seen(member, position)
            for earlier in self.members[:index]:
                seen = seen[~earlier.allows(own, seen)]
            if len(seen):
                read.append(self.summaries.get(member, self.recent).read(seen))
        k, v = (torch.cat(rows, dim=1).to(dtype) for rows in zip(*read, strict=True))
        with without_autocast(q):
            weights = torch.bmm(q.to(dtype) * scale, k.transpose(1, 2)).softmax(-1)
            return torch.bmm(weights, v)


@dataclass(frozen=True)
class _Recent:
    """Keeps the last positions, in a ring."""

    last: int

    def kept(self, start: int, stop: int) -> Tensor:
        """Return which positions of start .. stop - 1 are needed once they are all there."""
        return torch.arange(max(start, stop - self.last), stop)

    def slots(self, positions: Tensor) -> Tensor:
        """Return where positions are kept."""
        return positions % self.last

    @property
    def most(self) -> int:
        """How many rows there can be."""
        return self.last


@dataclass(frozen=True)
class _Summaries:
    """Keeps the summary positions of all blocks."""

    columns: Columns

    def kept(self, start: int, stop: int) -> Tensor:
        """Return which positions of start .. stop - 1 are needed once they are all there."""
        positions = torch.arange(start, stop)
        return positions[self.columns.allows(positions, positions)]

    def slots(self, positions: Tensor) -> Tensor:
        """Return where positions are kept."""
        block, place = positions // self.columns.stride, positions % self.columns.stride
        return block * self.columns.summary + place - self.columns.first

    @property
    def most(self) -> int:
        """How many rows there can be."""
        return _UNBOUNDED


_Keeper = _Recent | _Summaries


class _Rows:
    """Keys and values of some positions, in storage that doubles when it is full."""

    def __init__(
        self, sequences: int, sizes: tuple[int, int], like: Tensor, keeper: _Keeper
    ) -> None:
        self.keeper = keeper
        self.k, self.v = (like.new_empty(sequences, 0, size) for size in sizes)

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def extend(self, position: int, k: Tensor, v: Tensor) -> None:
        """Keep what is needed of rows (X, N, D) and (X, N, E) from `position` on."""
        kept = self.keeper.kept(position, position + k.shape[1])
        if not len(kept):
            return
        slots = self.keeper.slots(kept)
        self._make_room(int(slots.max()) + 1)
        slots, chosen = slots.to(k.device), (kept - position).to(k.device)
        self.k[:, slots], self.v[:, slots] = k[:, chosen], v[:, chosen]

    def read(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of positions."""
        slots = self.keeper.slots(positions).to(self.k.device)
        return self.k[:, slots], self.v[:, slots]

    def _make_room(self, rows: int) -> None:
        missing = rows - self.k.shape[1]
        if missing > 0:
            room = min(self.keeper.most, max(_FIRST_ROWS, 1 << (rows - 1).bit_length()))
            padding = (0, 0, 0, room - self.k.shape[1])
            self.k, self.v = (torch.nn.functional.pad(x, padding) for x in (self.k, self.v))


def _flat(pattern: Pattern) -> tuple[Pattern, ...]:
    """Return the members of a union."""
    if isinstance(pattern, Merged):
        return tuple(dict.fromkeys(member for part in pattern.parts for member in _flat(part)))
    return (pattern,)


def _reach(member: Pattern) -> int:
    """Return how many of the last positions a later query may need, the newest with them."""
    match member:
        case Local(window):
            return window
        case Dilated(window, dilation):
            return (window - 1) * dilation + 1
        case OwnBlock(stride):
            return stride
        case Columns():
            return 1
    return _UNBOUNDED


def _seen(member: Pattern, position: int) -> Tensor:
    """Return the earlier positions that a member sees."""
    match member:
        case Local(window):
            return torch.arange(max(0, position - window + 1), position)
        case Strided(stride):
            return torch.arange(position % stride, position, stride)
        case Dilated(window, dilation):
            rows = min(window - 1, position // dilation)
            return torch.arange(position - rows * dilation, position, dilation)
        case OwnBlock(stride):
            return torch.arange(position // stride * stride, position)
        case Columns(stride, summary):
            block = torch.arange(position // stride + 1)[:, None]
            places = (block * stride + member.first + torch.arange(summary)).flatten()
            return places[places < position]
        case Dense():
            return torch.arange(position)
        case Blocks():
            positions = torch.arange(position)
            return positions[member.allows(torch.tensor(position), positions)]
    raise TypeError(f"{type(member).__name__} is not a pattern that this module knows")
