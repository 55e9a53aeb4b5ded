"""A pattern as a sum of disjoint parts, each dense or banded after a change of view of time.

Both fast paths run part by part and merge the results by their log-sum-exp, which is exact
because no pair is in two parts. There are three kinds:

`Band`       positions fall in groups (residue classes, or blocks, or one group of all); within a
             group a query sees the keys whose distance, counted in group rows, lies in a range
`Summaries`  the queries of a block see the summary positions of the other (earlier) blocks
`Layout`     blocks of queries see blocks of keys as a table says

A part carries the patterns whose pairs earlier parts have already counted (`minus`), empty in all
combinations that the paper uses: there the ranges are cut instead.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Local,
    Merged,
    OwnBlock,
    Pattern,
    Rows,
    Strided,
)

UNBOUNDED = 1 << 62


@dataclass(frozen=True)
class Lattice:
    """Equally spaced positions: row n of group g is start + g * group_step + n * row_step.

    All of them lie inside the sequence, so that a view of it needs no padding.
    """

    start: int
    groups: int
    group_step: int
    rows: int
    row_step: int

    def positions(self, device: torch.device | str | None = None) -> Tensor:
        """Return the positions (groups, rows)."""
        group = torch.arange(self.groups, device=device)[:, None] * self.group_step
        return self.start + group + torch.arange(self.rows, device=device) * self.row_step


@dataclass(frozen=True)
class Band:
    """Pairs of one group whose distance in group rows is from `least` to `most`.

    The groups are the residue classes modulo `step`, or with `blocks` the blocks of `step`
    positions. With `columns` = (first, count) only keys in these rows of the group count, and the
    query's own.
    """

    step: int = 1
    blocks: bool = False
    least: int = 0
    most: int = UNBOUNDED
    columns: tuple[int, int] | None = None
    minus: tuple[Pattern, ...] = ()

    def lattices(self, length: int) -> tuple[Lattice, ...]:
        """Return the groups over `length` positions, as one or two lattices of equal groups."""
        full, rest = divmod(length, self.step)
        if self.blocks:
            both = (
                Lattice(0, full, self.step, self.step, 1),
                Lattice(full * self.step, 1, self.step, rest, 1),
            )
        else:
            both = (
                Lattice(0, rest, 1, full + 1, self.step),
                Lattice(rest, self.step - rest, 1, full, self.step),
            )
        return tuple(lattice for lattice in both if lattice.groups and lattice.rows)

    def count(self, length: int, *, causal: bool) -> int | None:
        """Return how many pairs the part has, None where only its masks can tell."""
        if self.columns or self.minus:
            return None
        pairs = 0
        for lattice in self.lattices(length):
            # row r of a group has one key at each distance up to r
            near, far = (min(n, lattice.rows) for n in (self.least, self.most + 1))
            upto = [n * lattice.rows - n * (n - 1) // 2 for n in (near, far)]
            below = upto[1] - upto[0]
            ahead = 0 if causal else below - (0 if self.least else lattice.rows)
            pairs += lattice.groups * (below + ahead)
        return pairs

    def visible(self, row: Tensor, key: Tensor, *, causal: bool) -> Tensor:
        """Return whether group row `row` sees group row `key`, by range and columns alone."""
        gap = row - key
        seen = (gap.abs() >= self.least) & (gap.abs() <= self.most)
        if causal:
            seen &= gap >= 0
        if self.columns:
            first, count = self.columns
            seen &= ((key >= first) & (key < first + count)) | (gap == 0)
        return seen


@dataclass(frozen=True)
class Summaries:
    """Keys first .. first + keys - 1 of every block of `stride` but the query's own.

    Causal: of the earlier blocks only.
    """

    stride: int
    first: int
    keys: int
    minus: tuple[Pattern, ...] = ()

    def count(self, length: int, *, causal: bool) -> int | None:
        """Return how many pairs the part has, None where only its masks can tell."""
        if self.minus:
            return None
        full, rest = divmod(length, self.stride)
        partial = min(max(rest - self.first, 0), self.keys)
        if causal:
            return self.stride * self.keys * full * (full - 1) // 2 + rest * full * self.keys
        total = full * self.keys + partial
        return length * total - full * self.stride * self.keys - rest * partial


@dataclass(frozen=True)
class Layout:
    """Which blocks of `block` keys a block of queries sees, a row of 0 and 1 each; and (i, i)."""

    layout: Rows
    block: int
    minus: tuple[Pattern, ...] = ()

    def count(self, length: int, *, causal: bool) -> int | None:
        """Return None: only its masks can tell."""


Part = Band | Summaries | Layout


def counted(minus: tuple[Pattern, ...], i: Tensor, j: Tensor) -> Tensor:
    """Return the pairs that belong to earlier patterns: integer tensors that broadcast, to bool."""
    found = i == j
    for pattern in minus:
        found = found | pattern.allows(i, j)
    return found


@lru_cache(maxsize=256)
def parts(pattern: Pattern) -> tuple[Part, ...]:
    """Return the disjoint parts of one head's pattern; every pair (i, i) is in one of them."""
    members = _members(pattern)
    found: list[Part] = []
    seen: list[Pattern] = []
    for member in members:
        found.extend(_parts_of(member, tuple(seen)))
        seen.append(member)
    return tuple(found)


def count(pattern: Pattern, length: int, *, causal: bool) -> int | None:
    """Return how many pairs one head's pattern has, None where only masks can tell."""
    counts = [part.count(length, causal=causal) for part in parts(pattern)]
    return None if None in counts else sum(n for n in counts if n is not None)


def _members(pattern: Pattern) -> list[Pattern]:
    """Return the members of a union that matter, in the order in which they are counted."""
    flat = _flatten(pattern)
    if any(_is_dense(member) for member in flat):
        return [Dense()]
    windows = [member.window for member in flat if isinstance(member, Local)]
    rest = {member for member in flat if not isinstance(member, Local)}
    merged: list[Pattern] = [Local(max(windows))] if windows else []
    order = (OwnBlock, Columns, Strided, Dilated, Blocks)
    return merged + sorted(rest, key=lambda member: (order.index(type(member)), repr(member)))


def _flatten(pattern: Pattern) -> list[Pattern]:
    if isinstance(pattern, Merged):
        return [member for part in pattern.parts for member in _flatten(part)]
    if isinstance(pattern, Dilated) and pattern.dilation == 1:
        return [Local(pattern.window)]
    return [pattern]


def _is_dense(pattern: Pattern) -> bool:
    return isinstance(pattern, Dense) or (isinstance(pattern, Strided) and pattern.stride == 1)


def _parts_of(member: Pattern, seen: tuple[Pattern, ...]) -> list[Part]:
    """Return a member's parts without the pairs of the members before it, and with (i, i)."""
    match member:
        case Dense():
            return [Band()]
        case Local(window):
            return [Band(most=window - 1)]
        case OwnBlock(stride):
            return [Band(step=stride, blocks=True, minus=seen)]
        case Columns(stride, summary):
            far = Summaries(stride, member.first, summary)
            if OwnBlock(stride) in seen:
                return [replace(far, minus=tuple(p for p in seen if p != OwnBlock(stride)))]
            own = Band(step=stride, blocks=True, columns=(member.first, summary), minus=seen)
            return [replace(far, minus=seen), own]
        case Strided(stride):
            return _residue_band(stride, UNBOUNDED, seen)
        case Dilated(window, dilation):
            return _residue_band(dilation, window - 1, seen)
        case Blocks(layout, block):
            return [Layout(layout, block, minus=seen)]  # type: ignore[arg-type]
    raise TypeError(f"{type(member).__name__} is not a pattern that this module knows")


def _residue_band(step: int, most: int, seen: tuple[Pattern, ...]) -> list[Part]:
    """Return a band of a residue class; a window before it takes away its nearest rows."""
    window = next((p.window for p in seen if isinstance(p, Local)), 0)
    least = -(-window // step)
    others = tuple(p for p in seen if not isinstance(p, Local))
    return [Band(step=step, least=least, most=most, minus=others)] if least <= most else []
