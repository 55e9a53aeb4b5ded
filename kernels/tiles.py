"""Tiles of scores that the CPU path computes at once: batches of equal size, cut from a part.

A tile is `rows` queries against `keys` keys of each of several groups; nothing larger is ever
held. Positions are given by lattices, so that a tile is a strided view of q, k, v and their
gradients.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from speechkit.kernels.parts import Band, Lattice, Layout, Part, Summaries, counted

# 64 rows keep the matrix products near their peak and the waste at the edge of a band small
_ROWS = 64
# tiles begin and end at multiples of this, in columns: odd widths slow down the products
_ALIGNED = 16
# added to the score of a key that is not seen: below any that matters, and differences with it are
# numbers, which those with -inf are not
LOWEST = -1e30
# the largest mask that differs between the groups of a tile, in pairs
_MASKED_PAIRS = 1 << 20


@dataclass(frozen=True)
class Edge:
    """Columns of a tile, from `first` on, in which some queries do not see some keys.

    `bias` is 0 where a key is seen and LOWEST where not: (rows, columns) for all groups, or
    (groups, rows, columns). Adding it is several times faster than filling by a mask.
    """

    first: int
    bias: Tensor

    @classmethod
    def hiding(cls, first: int, hidden: Tensor) -> "Edge":
        """Return an edge from a bool mask of what is not seen."""
        return cls(first, torch.zeros(hidden.shape).masked_fill_(hidden, LOWEST))


@dataclass(frozen=True)
class Tile:
    """Queries and the keys that they are scored against: the keys' rows one after the other."""

    queries: Lattice
    keys: tuple[Lattice, ...]
    edges: tuple[Edge, ...]

    @property
    def columns(self) -> int:
        """The number of keys of a query, the hidden ones with them."""
        return sum(lattice.rows for lattice in self.keys)


def key_positions(part: Part, length: int) -> Tensor | None:
    """Return the positions of the keys that a part's tiles point into; None: the sequence itself.

    Summary positions are gathered, so that the keys of many blocks lie side by side.
    """
    if not isinstance(part, Summaries):
        return None
    position = torch.arange(length)
    place = position % part.stride
    return position[(place >= part.first) & (place < part.first + part.keys)]


def tiles(part: Part, length: int, *, causal: bool) -> Iterator[Tile]:
    """Return tiles that hold every pair of a part once."""
    if isinstance(part, Band):
        bare = _band_tiles(part, length, causal)
    elif isinstance(part, Summaries):
        bare = _summary_tiles(part, length, causal)
    else:
        bare = _layout_tiles(part, length, causal)
    if not part.minus:
        return bare
    positions = key_positions(part, length)
    return (piece for tile in bare for piece in _without(part, tile, positions))


def _band_tiles(band: Band, length: int, causal: bool) -> Iterator[Tile]:
    for lattice in band.lattices(length):
        inner = _inner_tiles(band, lattice, causal)
        if inner:
            yield inner
        first, last = _inner_range(band, lattice, causal)
        for row in range(0, lattice.rows, _ROWS):
            if inner and first <= row // _ROWS < last:
                continue
            tile = _clipped_tile(band, lattice, row, causal)
            if tile:
                yield tile


def _inner_range(band: Band, lattice: Lattice, causal: bool) -> tuple[int, int]:
    """Return the row tiles whose keys, the whole width of the band, lie inside the group."""
    reach = -(-band.most // _ALIGNED) * _ALIGNED
    first = -(-reach // _ROWS)
    last = (lattice.rows - (0 if causal else reach)) // _ROWS
    return first, max(first, last)


def _inner_tiles(band: Band, lattice: Lattice, causal: bool) -> Tile | None:
    """Return the full-width row tiles of a long group as groups of one tile, or None.

    With several groups the tiles of all groups make a batch already.
    """
    first, last = _inner_range(band, lattice, causal)
    if lattice.groups > 1 or last - first < 2 or band.columns:
        return None
    step = lattice.row_step
    reach = -(-band.most // _ALIGNED) * _ALIGNED
    start = first * _ROWS - reach
    stop = first * _ROWS + _ROWS + (0 if causal else reach)
    queries = Lattice(lattice.start + first * _ROWS * step, last - first, _ROWS * step, _ROWS, step)
    # pieces no longer than the step between tiles: none overlaps itself when gradients are added
    keys = tuple(
        replace(queries, start=lattice.start + row * step, rows=min(_ROWS, stop - row))
        for row in range(start, stop, _ROWS)
    )
    return Tile(queries, keys, _edges(band, first * _ROWS, _ROWS, start, stop, causal))


def _clipped_tile(band: Band, lattice: Lattice, row: int, causal: bool) -> Tile | None:
    """Return one row tile of all groups, its keys clipped to the group."""
    rows = min(_ROWS, lattice.rows - row)
    start = max(0, row - band.most) // _ALIGNED * _ALIGNED
    if causal:
        stop = row + rows - band.least // _ALIGNED * _ALIGNED
    else:
        stop = min(lattice.rows, row + rows + band.most)
    if stop <= start:
        return None
    queries = _rows_of(lattice, row, rows)
    keys = (_rows_of(lattice, start, stop - start),)
    return Tile(queries, keys, _edges(band, row, rows, start, stop, causal))


def _rows_of(lattice: Lattice, row: int, rows: int) -> Lattice:
    return replace(lattice, start=lattice.start + row * lattice.row_step, rows=rows)


def _edges(
    band: Band, row: int, rows: int, start: int, stop: int, causal: bool
) -> tuple[Edge, ...]:
    """Return where `rows` queries from `row` do not see keys start .. stop - 1, in group rows."""
    # those of columns are as wide as the row is far: kept, they would be as many as all pairs
    known = _make_edges if band.columns else _known_edges
    return known(band, row, rows, start, stop, causal)


def _make_edges(
    band: Band, row: int, rows: int, start: int, stop: int, causal: bool
) -> tuple[Edge, ...]:
    if band.columns:
        ranges = [(start, stop)]
    else:
        far = (start, row + rows - 1 - band.most)
        hole = (row - band.least + 1, stop if causal else row + rows - 1 + band.least)
        ahead = (row + band.most + 1, stop)
        ranges = [far, hole] if causal else [far, *([hole] if band.least else []), ahead]
    found = []
    for low, high in ((max(start, low), min(stop, high)) for low, high in ranges):
        if low < high:
            query = torch.arange(row, row + rows)[:, None]
            hidden = ~band.visible(query, torch.arange(low, high)[None, :], causal=causal)
            if hidden.any():
                found.append(Edge.hiding(low - start, hidden))
    return tuple(found)


_known_edges = lru_cache(maxsize=1024)(_make_edges)


def _summary_tiles(part: Summaries, length: int, causal: bool) -> Iterator[Tile]:
    """Return, for each block of queries, the summaries of the other (earlier) blocks."""
    full, rest = divmod(length, part.stride)
    total = full * part.keys + min(max(rest - part.first, 0), part.keys)
    for block in range(-(-length // part.stride)):
        start = block * part.stride
        before, after = block * part.keys, min((block + 1) * part.keys, total)
        ranges = [(0, before)] if causal else [(0, before), (after, total)]
        keys = tuple(Lattice(low, 1, 0, high - low, 1) for low, high in ranges if low < high)
        if keys:
            for row in range(start, min(start + part.stride, length), _ROWS):
                rows = min(_ROWS, start + part.stride - row, length - row)
                yield Tile(Lattice(row, 1, 0, rows, 1), keys, ())


def _layout_tiles(part: Layout, length: int, causal: bool) -> Iterator[Tile]:
    for row, entries in enumerate(part.layout[: -(-length // part.block)]):
        start, stop = row * part.block, min((row + 1) * part.block, length)
        limit = stop if causal else length
        runs = _runs([bool(entry) or row == column for column, entry in enumerate(entries)])
        keys = tuple(
            Lattice(low * part.block, 1, 0, min(high * part.block, limit) - low * part.block, 1)
            for low, high in runs
            if low * part.block < limit
        )
        for first in range(start, stop, _ROWS):
            tile = Tile(Lattice(first, 1, 0, min(_ROWS, stop - first), 1), keys, ())
            yield _hide(tile, _outside_layout(tile, (start, stop), bool(entries[row]), causal))


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    """Return the ranges of consecutive True values."""
    padded = [False, *flags, False]
    turns = [i for i in range(len(flags) + 1) if padded[i] != padded[i + 1]]
    return list(zip(turns[::2], turns[1::2], strict=True))


def _outside_layout(tile: Tile, own: tuple[int, int], sees_own: bool, causal: bool) -> Tensor:
    """Return what a tile of a layout must hide: later keys, and an own block that is not seen."""
    query, key = _pairs(tile, None)
    hidden = key > query if causal else torch.zeros_like(query + key, dtype=torch.bool)
    if not sees_own:
        hidden = hidden | ((key >= own[0]) & (key < own[1]) & (key != query))
    return hidden


def _pairs(tile: Tile, positions: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the positions of a tile's queries (g, rows, 1) and keys (g, 1, columns)."""
    keys = torch.cat([lattice.positions() for lattice in tile.keys], dim=1)
    keys = keys if positions is None else positions[keys]
    return tile.queries.positions()[:, :, None], keys[:, None, :]


def _hide(tile: Tile, hidden: Tensor) -> Tile:
    """Return a tile that hides these pairs (groups, rows, columns) besides what it hid before."""
    for edge in tile.edges:
        hidden[..., edge.first : edge.first + edge.bias.shape[-1]] |= edge.bias < 0
    return replace(tile, edges=(Edge.hiding(0, hidden),) if hidden.any() else ())


def _without(part: Part, tile: Tile, positions: Tensor | None) -> Iterator[Tile]:
    """Return the tile, in pieces of bounded size, without the pairs that were counted before."""
    size = max(1, _MASKED_PAIRS // (tile.queries.rows * tile.columns))
    for first in range(0, tile.queries.groups, size):
        piece = Tile(
            _groups_of(tile.queries, first, size),
            tuple(_groups_of(lattice, first, size) for lattice in tile.keys),
            tile.edges,
        )
        query, key = _pairs(piece, positions)
        yield _hide(piece, counted(part.minus, query, key))


def _groups_of(lattice: Lattice, first: int, size: int) -> Lattice:
    return replace(
        lattice,
        start=lattice.start + first * lattice.group_step,
        groups=min(size, lattice.groups - first),
    )
