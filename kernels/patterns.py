"""The attention patterns: which keys each query sees.

A pattern is a small frozen value. `Pattern.mask` is its definition: every backend is tested
against it, none uses it.

Shapes: H heads, T positions, i a query's position, j a key's.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.errors import KernelError

Rows = tuple[tuple[int, ...], ...]

# of a pattern's numbers: beyond any length, and their products are numbers of 64 bits
_LARGEST = (1 << 31) - 1
# the largest piece of a mask that counting holds at once, in pairs
_STRIP_PAIRS = 1 << 22


class Pattern(ABC):
    """A set of (query, key) pairs.

    Causality and the pairs (i, i), which always belong, are not a subclass's business: `allows` is
    the bare rule, `mask` and `count` add them.
    """

    @abstractmethod
    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return whether query `i` may see key `j`: integer tensors that broadcast, to bool."""

    def per_head(self, heads: int) -> "tuple[Pattern, ...]":
        """Return each head's own pattern; the same one for all unless a subclass says otherwise."""
        return (self,) * heads

    def check(self, length: int) -> None:  # noqa: B027 -- most patterns take any length
        """Raise `KernelError` where the pattern does not reach over `length` positions."""

    def mask(
        self,
        length: int,
        *,
        causal: bool = True,
        heads: int = 1,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the definition: bool (H, T, T), True where query i (second axis) sees key j.

        The rule, with every (i, i); causal: intersected with j <= i.
        """
        self.check(length)
        position = torch.arange(length, device=device)
        i, j = position[:, None], position[None, :]
        grids = [_visible(p, i, j, causal=causal) for p in self.per_head(heads)]
        return torch.stack([grid.expand(length, length) for grid in grids])

    def count(self, length: int, *, causal: bool = True, heads: int = 1) -> int:
        """Return how many pairs `mask` holds, without building it.

        Memory stays bounded whatever the length; the time of the patterns without a closed form
        grows with its square.
        """
        self.check(length)
        runs = groupby(sorted(self.per_head(heads), key=repr))
        return sum(p._count(length, causal) * len(list(same)) for p, same in runs)

    def _count(self, length: int, causal: bool) -> int:
        """Return the pairs of one head; by strips of the rule where nothing better is known."""
        position = torch.arange(length)
        rows = max(1, _STRIP_PAIRS // max(1, length))
        strips = (position[start : start + rows, None] for start in range(0, length, rows))
        counts = [_visible(self, i, position[None, :], causal=causal).sum() for i in strips]
        return sum(int(count) for count in counts)


@dataclass(frozen=True)
class Dense(Pattern):
    """Every key."""

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return True everywhere."""
        return torch.ones_like(i + j, dtype=torch.bool)

    def _count(self, length: int, causal: bool) -> int:
        return _band(length, length, causal)


@dataclass(frozen=True)
class Local(Pattern):
    """The neighbours: |i - j| < window, so `window` keys with the query's own when causal."""

    window: int

    def __post_init__(self) -> None:
        _at_least_one("Local", window=self.window)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return |i - j| < window."""
        return (i - j).abs() < self.window

    def _count(self, length: int, causal: bool) -> int:
        return _band(length, self.window, causal)


@dataclass(frozen=True)
class Strided(Pattern):
    """Every stride-th key, counted from the query: (i - j) mod stride == 0."""

    stride: int

    def __post_init__(self) -> None:
        _at_least_one("Strided", stride=self.stride)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return (i - j) mod stride == 0."""
        return (i - j) % self.stride == 0

    def _count(self, length: int, causal: bool) -> int:
        return _residues(length, self.stride, length, causal)


@dataclass(frozen=True)
class Dilated(Pattern):
    """A window with gaps: (i - j) mod dilation == 0 and |i - j| / dilation < window."""

    window: int
    dilation: int

    def __post_init__(self) -> None:
        _at_least_one("Dilated", window=self.window, dilation=self.dilation)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return (i - j) mod dilation == 0 and |i - j| < window * dilation."""
        gap = i - j
        return (gap % self.dilation == 0) & (gap.abs() < self.window * self.dilation)

    def _count(self, length: int, causal: bool) -> int:
        return _residues(length, self.dilation, self.window, causal)


@dataclass(frozen=True)
class OwnBlock(Pattern):
    """The keys of the query's own block: i // stride == j // stride.

    The first half of the paper's fixed attention (Child et al. 2019, section 4.3).
    """

    stride: int

    def __post_init__(self) -> None:
        _at_least_one("OwnBlock", stride=self.stride)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return i // stride == j // stride."""
        return i // self.stride == j // self.stride

    def _count(self, length: int, causal: bool) -> int:
        blocks, rest = divmod(length, self.stride)
        full, last = (_band(n, n, causal) for n in (self.stride, rest))
        return blocks * full + last


@dataclass(frozen=True)
class Columns(Pattern):
    """The summary positions, `summary` in each block of `stride`, counted from the block's end.

    lo <= j mod stride < lo + summary with lo = stride - summary * (1 + k): k = 0, or with
    `spread_heads` k = h mod (stride // summary) for head h, which the paper found better than the
    same positions for all (section 4.3). The last, partial block follows the same rule.
    """

    stride: int
    summary: int
    spread_heads: bool = False
    sub_block: int = 0

    def __post_init__(self) -> None:
        _at_least_one("Columns", stride=self.stride, summary=self.summary)
        if self.summary > self.stride:
            raise KernelError(
                f"Columns: summary {self.summary} does not fit in a block of stride {self.stride}; "
                "give at most stride"
            )
        if not 0 <= self.sub_block < self.stride // self.summary:
            raise KernelError(
                f"Columns: sub_block {self.sub_block} is not one of the "
                f"{self.stride // self.summary} of {self.summary} positions in {self.stride}"
            )

    @property
    def first(self) -> int:
        """The first summary position of a block, counted from the block's start."""
        return self.stride - self.summary * (1 + self.sub_block)

    def per_head(self, heads: int) -> tuple[Pattern, ...]:
        """Return each head's columns: with `spread_heads` neighbouring sub-blocks in turn."""
        if not self.spread_heads:
            return (self,) * heads
        places = self.stride // self.summary
        return tuple(
            Columns(self.stride, self.summary, sub_block=(self.sub_block + head) % places)
            for head in range(heads)
        )

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return first <= j mod stride < first + summary."""
        place = j % self.stride
        inside = (place >= self.first) & (place < self.first + self.summary)
        return inside & torch.ones_like(i, dtype=torch.bool)

    def _count(self, length: int, causal: bool) -> int:
        blocks, rest = divmod(length, self.stride)
        partial = min(max(rest - self.first, 0), self.summary)
        columns = blocks * self.summary + partial
        if not causal:
            return columns * length + (length - columns)
        # the queries from each column to the end, and each query that is no column sees itself
        starts = sum(
            block * self.stride + self.first + place
            for block in range(blocks + 1)
            for place in range(self.summary if block < blocks else partial)
        )
        return columns * length - starts + (length - columns)


@dataclass(frozen=True)
class Merged(Pattern):
    """The union of patterns: one head attends to all of their keys (paper, equation 7)."""

    parts: tuple[Pattern, ...]

    def __init__(self, *parts: Pattern) -> None:
        if not parts:
            raise KernelError("Merged: no patterns given; give at least one")
        _require_patterns("Merged", parts)
        if any(isinstance(part, PerHead) for part in parts):
            raise KernelError("Merged: PerHead inside; give PerHead(Merged(...), ...) instead")
        object.__setattr__(self, "parts", tuple(parts))

    def __repr__(self) -> str:
        return f"Merged({', '.join(map(repr, self.parts))})"

    def check(self, length: int) -> None:
        """Check each part."""
        for part in self.parts:
            part.check(length)

    def per_head(self, heads: int) -> tuple[Pattern, ...]:
        """Return each head's union."""
        each = zip(*(part.per_head(heads) for part in self.parts), strict=True)
        return tuple(Merged(*parts) for parts in each)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return whether any part allows."""
        allowed = self.parts[0].allows(i, j)
        for part in self.parts[1:]:
            allowed = allowed | part.allows(i, j)
        return allowed

    def _count(self, length: int, causal: bool) -> int:
        from speechkit.kernels import parts  # which knows the patterns

        known = parts.count(self, length, causal=causal)
        return super()._count(length, causal) if known is None else known


def Fixed(stride: int, summary: int, spread_heads: bool = False) -> Merged:
    """Return the paper's fixed attention as one head: the own block and the summary columns."""
    return Merged(OwnBlock(stride), Columns(stride, summary, spread_heads))


@dataclass(frozen=True)
class PerHead(Pattern):
    """A pattern for each head (paper, section 5.1, the third way)."""

    patterns: tuple[Pattern, ...]

    def __init__(self, *patterns: Pattern) -> None:
        if not patterns:
            raise KernelError("PerHead: no patterns given; give one for each head")
        _require_patterns("PerHead", patterns)
        if any(isinstance(pattern, PerHead) for pattern in patterns):
            raise KernelError("PerHead: PerHead inside; give one plain pattern for each head")
        object.__setattr__(self, "patterns", tuple(patterns))

    def __repr__(self) -> str:
        return f"PerHead({', '.join(map(repr, self.patterns))})"

    def check(self, length: int) -> None:
        """Check each head's pattern."""
        for pattern in self.patterns:
            pattern.check(length)

    def per_head(self, heads: int) -> tuple[Pattern, ...]:
        """Return the patterns, a head's own where it spreads over heads.

        Raises
        ------
        KernelError
            If the number of heads is not that of the patterns.
        """
        if heads != len(self.patterns):
            raise KernelError(
                f"PerHead has {len(self.patterns)} patterns, but there are {heads} heads; "
                "give one for each"
            )
        return tuple(p.per_head(heads)[head] for head, p in enumerate(self.patterns))

    def mask(
        self,
        length: int,
        *,
        causal: bool = True,
        heads: int = 1,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Return the definition, for as many heads as there are patterns: `heads` is ignored."""
        return super().mask(length, causal=causal, heads=len(self.patterns), device=device)

    def count(self, length: int, *, causal: bool = True, heads: int = 1) -> int:
        """Return how many pairs `mask` holds; `heads` is ignored as there."""
        return super().count(length, causal=causal, heads=len(self.patterns))

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Refuse: a rule belongs to one head."""
        raise KernelError("PerHead has a rule for each head; take one with per_head")


@dataclass(frozen=True)
class Blocks(Pattern):
    """Any block mask: `layout` says which blocks of `block` keys a block of queries sees.

    `layout` is nested tuples of 0 and 1, nb x nb for all heads or H x nb x nb.
    """

    layout: tuple[tuple[int, ...], ...] | tuple[Rows, ...]
    block: int

    def __post_init__(self) -> None:
        _at_least_one("Blocks", block=self.block)
        # as text has them they may be lists, by which nothing can be looked up
        object.__setattr__(self, "layout", _as_tuples(self.layout))
        for rows in self._layouts():
            _check_layout(rows)
        if len({len(rows) for rows in self._layouts()}) > 1:
            raise KernelError("Blocks: the heads' layouts differ in size; give H x nb x nb")

    def check(self, length: int) -> None:
        """Raise `KernelError` if the layout covers fewer than `length` positions."""
        reach = len(self._layouts()[0]) * self.block
        if length > reach:
            raise KernelError(
                f"Blocks: the layout covers {reach} positions, but the length is {length}; "
                "give a larger layout"
            )

    def per_head(self, heads: int) -> tuple[Pattern, ...]:
        """Return each head's layout.

        Raises
        ------
        KernelError
            If the layouts are not as many as the heads.
        """
        layouts = self._layouts()
        if not self._has_heads():
            return (self,) * heads
        if len(layouts) != heads:
            raise KernelError(
                f"Blocks has layouts for {len(layouts)} heads, but there are {heads}; "
                "give one for each, or a single nb x nb one"
            )
        return tuple(Blocks(layout, self.block) for layout in layouts)

    def allows(self, i: Tensor, j: Tensor) -> Tensor:
        """Return the layout's entry at the blocks of i and j."""
        if self._has_heads():
            raise KernelError("Blocks with a layout for each head: take one with per_head")
        table = torch.tensor(self.layout, dtype=torch.bool, device=i.device)
        last = len(self.layout) - 1  # beyond it stands nothing, but tables ask there too
        row, column = i // self.block, j // self.block
        inside = (row <= last) & (column <= last)
        return table[row.clamp(max=last), column.clamp(max=last)] & inside

    def _has_heads(self) -> bool:
        first: Any = self.layout
        for _ in range(2):
            first = first[0] if isinstance(first, tuple) and first else None
        return isinstance(first, tuple)

    def _layouts(self) -> tuple[Rows, ...]:
        return self.layout if self._has_heads() else (self.layout,)  # type: ignore[return-value]


def _visible(pattern: Pattern, i: Tensor, j: Tensor, *, causal: bool) -> Tensor:
    visible = pattern.allows(i, j) | (i == j)
    return visible & (j <= i) if causal else visible


def _band(length: int, window: int, causal: bool) -> int:
    """Return the pairs of `length` positions that are fewer than `window` apart."""
    reach = min(window, length)
    below = reach * length - reach * (reach - 1) // 2  # the diagonal and below
    return below if causal else 2 * below - length


def _residues(length: int, step: int, window: int, causal: bool) -> int:
    """Return the pairs of a band in each class of positions modulo `step`."""
    rows, longer = divmod(length, step)
    return longer * _band(rows + 1, window, causal) + (step - longer) * _band(rows, window, causal)


def _at_least_one(pattern: str, **numbers: int) -> None:
    for name, number in numbers.items():
        whole = isinstance(number, int) and not isinstance(number, bool)
        if not whole or not 1 <= number <= _LARGEST:
            raise KernelError(
                f"{pattern}: {name} is {number!r}; give a whole number from 1 to {_LARGEST}"
            )


def _require_patterns(name: str, given: tuple[object, ...]) -> None:
    for member in given:
        if not isinstance(member, Pattern):
            raise KernelError(f"{name}: {member!r} is no pattern; give such as Local(64)")


def _as_tuples(layout: Any) -> Any:
    return tuple(map(_as_tuples, layout)) if isinstance(layout, list | tuple) else layout


def _check_layout(rows: Any) -> None:
    if not _is_square(rows):
        raise KernelError("Blocks: the layout is not square; give nb x nb or H x nb x nb")
    if any(entry not in (0, 1) for row in rows for entry in row):
        raise KernelError("Blocks: the layout holds something else than 0 and 1")


def _is_square(rows: Any) -> bool:
    return (
        isinstance(rows, tuple)
        and len(rows) > 0
        and all(isinstance(row, tuple) and len(row) == len(rows) for row in rows)
    )
