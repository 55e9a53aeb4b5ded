"""Sparse attention in plain operators of torch, for exporters that take no operators of ours.

A part's queries and keys are gathered into tiles (groups, rows) by position, scored against each
other under the part's rule, and merged by log-sum-exp. Every shape follows from the length by
whole-number arithmetic, so that the length stays dynamic in what is exported. No tensor has T x T
entries, but for `Dense` and `Blocks`, which are computed as a mask over all pairs.

Slower than the other paths, and differentiable by autograd alone, which stores all scores.

Shapes: B batch, H heads, T positions, G groups of M queries and N keys, D size of q and k, E of v.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.kernels.numbers import statistics_type, without_autocast, without_padding
from speechkit.kernels.parts import UNBOUNDED, Band, Layout, Part, Summaries, parts
from speechkit.kernels.patterns import Pattern
from speechkit.kernels.triton_tables import visible

# queries of a tile of a window: each needs window - 1 more keys than queries
_ROWS = 64
# below any score that matters, and far enough from -inf that differences with it are numbers
_LOWEST = -1e30

_exporting: ContextVar[bool] = ContextVar("speechkit_attention_exportable", default=False)


@contextmanager
def exportable() -> Iterator[None]:
    """Let `sparse_attention` run as plain operators of torch inside, whatever backend is asked for.

    For exporters that know no others, such as ``torch.onnx.export(..., dynamo=True)``.
    """
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def is_exporting() -> bool:
    """Return whether the code runs inside `exportable`."""
    return _exporting.get()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, T, E) and the log-sum-exp (B, H, T).

    `q`, `k` (B, H, T, D) and `v` (B, H, T, E); `key_lengths` (B,). Computes in float32, float64 for
    float64. A query without keys has output 0 and log-sum-exp -inf.
    """
    if q.shape[2] == 0:
        return torch.empty_like(v), torch.empty(q.shape[:3], dtype=statistics_type(q))
    each = pattern.per_head(q.shape[1])
    distinct = list(dict.fromkeys(each))
    if len(distinct) == 1:
        return _attention(q, k, v, each[0], causal, scale, key_lengths)
    heads = [[h for h, own in enumerate(each) if own == one] for one in distinct]
    results = [
        _attention(q[:, which], k[:, which], v[:, which], one, causal, scale, key_lengths)
        for one, which in zip(distinct, heads, strict=True)
    ]
    joined = [head for which in heads for head in which]
    order = torch.tensor([joined.index(head) for head in range(len(each))], device=q.device)
    outputs, lses = zip(*results, strict=True)
    return torch.cat(outputs, 1).index_select(1, order), torch.cat(lses, 1).index_select(1, order)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    causal: bool,
    scale: float,
    key_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    dtype = statistics_type(q)
    if key_lengths is not None:
        k, v = without_padding(k, key_lengths), without_padding(v, key_lengths)
    wide = q.to(dtype) * scale, k.to(dtype), v.to(dtype)
    found = []
    for part in parts(pattern):
        tiles = _tiles(part, q.shape[2], q.device, causal)
        seen = tiles.seen(part, q.shape[2], causal)
        if key_lengths is not None:
            padding = tiles.keys < key_lengths.to(q.device)[:, None, None]
            seen = seen & padding[:, None, :, None, :]
        with without_autocast(q):
            found.append(tiles.attend(*wide, seen))
    output, lse = _merged(found)
    return output.to(q.dtype), lse


@dataclass(frozen=True)
class _Tiles:
    """Positions of the queries (G, M) and keys (G, N), and each position's place among queries.

    Positions outside the sequence stand for nothing. `alike`: every group sees the same pairs,
    counted from its first query.
    """

    queries: Tensor
    keys: Tensor
    places: Tensor
    alike: bool

    def seen(self, part: Part, length: int, causal: bool) -> Tensor:
        """Return which pairs count: bool (1, 1, G, M, N)."""
        groups = slice(0, 1) if self.alike else slice(None)
        i, j = self.queries[groups, :, None], self.keys[groups, None, :]
        inside = (self.keys >= 0) & (self.keys < length)
        return (visible(part, i, j, causal=causal) & inside[:, None, :])[None, None]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
        """Return a part's top score, sum of weights (B, H, T, 1) and of weighted values."""
        last = q.shape[2] - 1
        rows, keys, values = (
            x[:, :, at.clamp(0, last)]
            for x, at in ((q, self.queries), (k, self.keys), (v, self.keys))
        )
        scores = (rows @ keys.transpose(-1, -2)).masked_fill(~seen, -torch.inf)
        top = scores.detach().amax(-1, keepdim=True).clamp(min=_LOWEST)
        weights = (scores - top).exp()
        sums = (top, weights.sum(-1, keepdim=True), weights @ values)
        return tuple(x.flatten(2, 3).index_select(2, self.places) for x in sums)


def _tiles(part: Part, length: int, device: torch.device, causal: bool) -> _Tiles:
    """Return the tiles that hold all pairs of a part."""
    positions = torch.arange(length, device=device)
    if isinstance(part, Summaries):
        block = torch.arange(_several(length, part.stride), device=device)[:, None] * part.stride
        keys = (block + part.first + torch.arange(part.keys, device=device)).flatten()
        return _Tiles(positions[None], keys[None], positions, alike=False)
    if isinstance(part, Layout):
        return _Tiles(positions[None], positions[None], positions, alike=False)
    if part.blocks:
        start = torch.arange(_several(length, part.step), device=device)[:, None] * part.step
        rows = start + torch.arange(part.step, device=device)
        return _Tiles(rows, rows, positions, alike=not part.minus)
    return _residue_tiles(part, positions, causal)


def _residue_tiles(band: Band, positions: Tensor, causal: bool) -> _Tiles:
    """Return tiles of each residue class: of some rows and their neighbours, or of all rows."""
    device = positions.device
    rows = _several(positions.shape[0], band.step)
    if band.most == UNBOUNDED:
        tiles, many, before, after = 1, rows, 0, 0
    else:
        tiles, many = _several(rows, _ROWS), _ROWS
        before, after = band.most, 0 if causal else band.most
    residue = torch.arange(band.step, device=device)[:, None, None]
    first = torch.arange(tiles, device=device)[:, None] * many
    query, key = (
        torch.arange(many, device=device),
        torch.arange(-before, many + after, device=device),
    )
    places = positions % band.step * (tiles * many) + positions // band.step
    return _Tiles(
        (residue + (first + query) * band.step).flatten(0, 1),
        (residue + (first + key) * band.step).flatten(0, 1),
        places,
        alike=not band.minus,
    )


def _several(length: int, size: int) -> int:
    """Return a number of pieces of a size that holds the length: two at least.

    Exporters take a dimension of one as one for ever, whatever else the example's length allows.
    """
    return (length - 1) // size + 2


def _merged(found: list[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp of the parts' sums, each relative to its top score."""
    highest = found[0][0]
    for top, _, _ in found[1:]:
        highest = torch.maximum(highest, top)
    total = sum(weights * (top - highest).exp() for top, weights, _ in found)
    output = sum(values * (top - highest).exp() for top, _, values in found)
    assert isinstance(total, Tensor)
    assert isinstance(output, Tensor)
    # a query without keys: 0 / 1, and the logarithm of 0
    return output / total.masked_fill(total == 0, 1.0), (total.log() + highest).squeeze(-1)
