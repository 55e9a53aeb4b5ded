"""Block tables: which blocks of 64 keys a block of 64 queries sees, and the other way round.

For the parts that loop bounds alone do not describe. Built from the part's exact rule in strips of
one block of queries, so that memory stays bounded; at worst the rule is evaluated T^2 times (a
part that stays within bands or own blocks: there only). Tables reach over the length rounded up
to a power of two and are cached, so that batches of changing length share them.

Shapes: B blocks, E entries, U distinct masks, W blocks of keys in a strip.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from speechkit.kernels.parts import Band, Layout, Part, Summaries, counted

SIDE = 64


@dataclass(frozen=True)
class Walks:
    """For each block the blocks that it meets, in order: entries start[b] .. start[b + 1] - 1.

    start   int32 (B + 1,)
    entries int32 (E, 2): the other block, and which mask holds; -1: every pair of the two counts
    """

    start: Tensor
    entries: Tensor

    @classmethod
    def of(cls, own: Tensor, other: Tensor, mask: Tensor, *, blocks: int) -> "Walks":
        """Return the walks of `blocks` blocks, given each entry's three numbers."""
        order = torch.argsort(own * blocks + other)
        start = torch.zeros(blocks + 1, dtype=torch.int32, device=own.device)
        start[1:] = torch.bincount(own, minlength=blocks).cumsum(0)
        entries = torch.stack((other, mask), dim=1)[order]
        return cls(start, entries.to(torch.int32).contiguous())


@dataclass(frozen=True)
class Table:
    """The walks of query blocks over key blocks, of key blocks over query blocks, and the masks.

    words  int64 (U, 64): bit j of word i says whether the block's query i sees its key j
    """

    queries: Walks
    keys: Walks
    words: Tensor


def table(part: Part, length: int, *, causal: bool, device: torch.device) -> Table:
    """Return the table of a part over at least `length` positions."""
    reach = max(SIDE, 1 << (length - 1).bit_length())
    return _table(part, reach, causal, device)


@lru_cache(maxsize=64)
def _table(part: Part, reach: int, causal: bool, device: torch.device) -> Table:
    strips = [_strip(part, row, reach, causal, device) for row in range(reach // SIDE)]
    own = torch.cat([torch.full_like(s.other, row) for row, s in enumerate(strips)])
    other = torch.cat([s.other for s in strips])
    words, which = _distinct(torch.cat([s.words for s in strips]))
    sizes = [len(s.words) for s in strips]
    mask = torch.cat([_later(s.mask, sum(sizes[:row])) for row, s in enumerate(strips)])
    mask = torch.where(mask < 0, mask, which[mask.clamp(min=0)]) if len(which) else mask
    blocks = reach // SIDE
    # an address even where no mask is read
    words = words if len(words) else torch.zeros(1, SIDE, dtype=torch.int64, device=device)
    queries = Walks.of(own, other, mask, blocks=blocks)
    keys = Walks.of(other, own, mask, blocks=blocks)
    return Table(queries, keys, words.contiguous())


@dataclass(frozen=True)
class _Strip:
    """One block of queries: the blocks of keys it sees, the mask of each, and its masks."""

    other: Tensor
    mask: Tensor
    words: Tensor


def _strip(part: Part, row: int, reach: int, causal: bool, device: torch.device) -> _Strip:
    """Evaluate the rule of one block of queries, where it can see anything at all."""
    first, stop = _span(part, row * SIDE, reach, causal)
    i = torch.arange(row * SIDE, (row + 1) * SIDE, device=device)[:, None]
    j = torch.arange(first, stop, device=device)[None, :]
    seen = visible(part, i, j, causal=causal).view(SIDE, -1, SIDE).transpose(0, 1)
    other = seen.flatten(1).any(1).nonzero().squeeze(1)
    seen = seen[other]
    full = seen.flatten(1).all(1)
    bits = torch.ones(SIDE, dtype=torch.int64, device=device) << torch.arange(SIDE, device=device)
    words, which = _distinct((seen[~full] * bits).sum(-1))
    mask = torch.full_like(other, -1)
    mask[~full] = which
    return _Strip(other + first // SIDE, mask, words)


def _distinct(words: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct masks (U, 64), and which of them each is."""
    found: tuple[Tensor, Tensor] = torch.unique(words, dim=0, return_inverse=True)
    return found


def _later(mask: Tensor, shift: int) -> Tensor:
    return torch.where(mask < 0, mask, mask + shift)


def _span(part: Part, row: int, reach: int, causal: bool) -> tuple[int, int]:
    """Return bounds, whole blocks, of the keys that the queries row .. row + 63 can see."""
    first, stop = 0, reach
    if isinstance(part, Band) and part.blocks:
        first = row // part.step * part.step
        stop = ((row + SIDE - 1) // part.step + 1) * part.step
    elif isinstance(part, Band):
        first = row - part.most * part.step
        stop = row + SIDE + part.most * part.step
    if causal:
        stop = min(stop, row + SIDE)
    return max(first, 0) // SIDE * SIDE, min(-(-stop // SIDE) * SIDE, reach)


def visible(part: Part, i: Tensor, j: Tensor, *, causal: bool) -> Tensor:
    """Return the exact rule of a part at positions that broadcast: bool, True where i sees j."""
    if isinstance(part, Band):
        seen = _in_band(part, i, j, causal)
    elif isinstance(part, Summaries):
        place = j % part.stride
        seen = (place >= part.first) & (place < part.first + part.keys)
        seen = seen & (i // part.stride != j // part.stride)
    else:
        seen = _in_layout(part, i, j) | (i == j)
    if part.minus:
        seen = seen & ~counted(part.minus, i, j)
    return seen & (j <= i) if causal else seen


def _in_band(part: Band, i: Tensor, j: Tensor, causal: bool) -> Tensor:
    block_i, block_j = i // part.step, j // part.step
    place_i, place_j = i % part.step, j % part.step
    if part.blocks:
        return (block_i == block_j) & part.visible(place_i, place_j, causal=causal)
    return (place_i == place_j) & part.visible(block_i, block_j, causal=causal)


def _in_layout(part: Layout, i: Tensor, j: Tensor) -> Tensor:
    """Return the layout's entries, False beyond its reach."""
    allowed = torch.tensor(part.layout, dtype=torch.bool, device=i.device)
    last = len(part.layout) - 1
    row, column = i // part.block, j // part.block
    return allowed[row.clamp(max=last), column.clamp(max=last)] & (row <= last) & (column <= last)
