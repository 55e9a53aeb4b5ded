"""Sparse attention on the CPU, forward and backward: tiles of scores, merged by log-sum-exp.

Batched matrix products over tiles that fit the cache, with a softmax of our own between them; no
more than a batch of tiles is ever held. The backward pass computes the probabilities again from
the merged log-sum-exp, so each part's gradients are exact by themselves and add up.

Scores are kept in base 2: `exp2` takes the same time for every number, while `exp` slows down
tenfold on what is hidden or vanishes. Half precision is computed in float32; for bfloat16 the
products may round their factors back to bfloat16 (`torch.backends.mkldnn`), which loses nothing of
the inputs and lets processors with bfloat16 units use them.

Shapes: X = batch x heads, T positions, D head size; a batch of tiles has N times m queries against
n keys.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.kernels.parts import Band, Lattice, Part
from speechkit.kernels.tiles import LOWEST, Tile, key_positions, tiles

# scores of one batch of tiles: they and what is made of them stay in the caches of a core
_BATCH_SCORES = 1 << 19
# numbers of q that are worked on at once, unless one sequence has more
_SLAB_NUMBERS = 1 << 23
_LOG2_E = math.log2(math.e)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: tuple[Part, ...],
    *,
    causal: bool,
    scale: float,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output (X, T, D) and the log-sum-exp of the scores (X, T).

    `q`, `k`, `v` are contiguous (X, T, D); `key_bias` (X, T) is 0 for keys that count and -inf for
    those that do not, in float32 (float64 for float64 inputs), which is also the log-sum-exp's
    type. A query without keys has output 0 and log-sum-exp -inf.
    """
    dtype = _computing_type(q.dtype)
    output = torch.empty_like(v)
    lse = q.new_full(q.shape[:2], LOWEST, dtype=dtype)
    key_bias = None if key_bias is None else key_bias.clamp(min=LOWEST)
    fresh = _reaches_each_query_once(parts[0])
    with _fast_products(q.dtype):
        for slab in _slabs(q):
            with _collected(output[slab], dtype, zeros=not fresh) as mean:
                for part in parts:
                    keys = _Keys.of(part, k[slab], v[slab], _of(key_bias, slab))
                    first = fresh and part is parts[0]
                    for batch in _batches(part, q[slab], causal=causal):
                        queries = batch.queries(q[slab], dtype) * (scale * _LOG2_E)
                        _attend(batch, queries, keys, mean, lse[slab], first=first)
    if key_bias is not None:
        empty = lse < LOWEST / 2
        output.masked_fill_(empty[..., None], 0.0)
        lse.masked_fill_(empty, -torch.inf)
    return output, lse.div_(_LOG2_E)


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    parts: tuple[Part, ...],
    *,
    causal: bool,
    scale: float,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, given the output's.

    `delta` (X, T) is the sum over D of output times gradient, less the log-sum-exp's gradient
    where it has one.
    """
    dtype = _computing_type(q.dtype)
    results = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    # a query without keys has no weights: exp2(score - inf) = 0
    lse2 = (lse * _LOG2_E).masked_fill_(lse == -torch.inf, torch.inf)
    key_bias = None if key_bias is None else key_bias.clamp(min=LOWEST)
    fresh = _reaches_each_query_once(parts[0])
    with _fast_products(q.dtype):
        for slab in _slabs(q):
            rows = _QueryRows(q[slab], gradient[slab], lse2[slab], delta[slab], scale)
            dq, dk, dv = (x[slab] for x in results)
            with (
                _collected(dq, dtype, zeros=not fresh) as dq_sum,
                _collected(dk, dtype) as dk_sum,
                _collected(dv, dtype) as dv_sum,
            ):
                for part in parts:
                    keys = _Keys.of(part, k[slab], v[slab], _of(key_bias, slab))
                    sums = (dq_sum, *keys.sums(dk_sum, dv_sum))
                    first = fresh and part is parts[0]
                    for batch in _batches(part, q[slab], causal=causal):
                        _differentiate(batch, rows, keys, *sums, first=first)
                    keys.scatter(sums[1:], dk_sum, dv_sum)
    return results


@dataclass(frozen=True)
class _QueryRows:
    """What the backward pass reads of the queries: (X, T, D) or (X, T)."""

    q: Tensor
    gradient: Tensor
    lse: Tensor
    delta: Tensor
    scale: float


def _reaches_each_query_once(part: Part) -> bool:
    """Return whether a part's tiles hold every query once, so that they may write and not add."""
    return isinstance(part, Band) and part.least == 0


def _differentiate(
    batch: "_Batch",
    rows: _QueryRows,
    keys: "_Keys",
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    *,
    first: bool,
) -> None:
    """Add the gradients over one batch's pairs; those of queries are written if it is the first."""
    k, v = batch.keys(keys.k, dq.dtype), batch.keys(keys.v, dq.dtype)
    queries = batch.queries(rows.q, dq.dtype) * (rows.scale * _LOG2_E)
    signal = batch.queries(rows.gradient, dq.dtype)
    weights = keys.scores(queries, k, batch)
    weights.sub_(batch.queries(rows.lse, dq.dtype)[..., None]).exp2_()
    batch.add_to_keys(dv, weights, signal)
    slope = torch.bmm(signal, v.transpose(1, 2))
    slope.sub_(batch.queries(rows.delta, dq.dtype)[..., None]).mul_(weights)
    batch.add_to_keys(dk, slope, queries, 1 / _LOG2_E)
    _add_product(batch.view(dq), slope, k, alpha=rows.scale, fresh=first)


def _attend(
    batch: "_Batch", queries: Tensor, keys: "_Keys", mean: Tensor, lse: Tensor, *, first: bool
) -> None:
    """Merge the attention over one batch's keys into the means and log-sum-exps so far, if any."""
    scores = keys.scores(queries, batch.keys(keys.k, queries.dtype), batch)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp2_()
    total = weights.sum(-1, keepdim=True)
    v = batch.keys(keys.v, queries.dtype)
    old_mean, old = batch.view(mean), batch.view(lse)
    if first:
        _add_product(old_mean, weights, v, fresh=True)
        old_mean.div_(total.view(*old.shape, 1))
        old.copy_(total.log2_().add_(top).view(old.shape))
        return
    found = torch.bmm(weights, v).div_(total).view(old_mean.shape)
    new = total.log2_().add_(top).view(old.shape)
    # the share of these keys: 2^new / (2^old + 2^new)
    share = (new - old).div_(_LOG2_E).sigmoid_()
    old_mean.lerp_(found, share[..., None])
    old.copy_(torch.logaddexp2(old, new))


@dataclass(frozen=True)
class _Batch:
    """Some sequences and some groups of a tile."""

    tile: Tile
    first: int
    sequences: int
    group: int
    groups: int

    def view(self, x: Tensor) -> Tensor:
        """Return the queries' rows of (X, T, ...) as a view (sequences, groups, m, ...)."""
        return self._view(x, self.tile.queries)

    def queries(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the queries' rows of (X, T, ...) as (N, m, ...)."""
        return _packed(self.view(x), dtype)

    def keys(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the keys' rows of (X, T, ...) as (N, n, ...)."""
        pieces = [self._view(x, lattice) for lattice in _joined(self.tile.keys)]
        return _packed(pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2), dtype)

    def add_to_keys(
        self, target: Tensor, weights: Tensor, rows: Tensor, alpha: float = 1.0
    ) -> None:
        """Add weights (N, m, n) transposed, times rows (N, m, D), times alpha to target's rows."""
        first = 0
        for lattice in self.tile.keys:
            some = weights[:, :, first : first + lattice.rows].transpose(1, 2)
            _add_product(self._view(target, lattice), some, rows, alpha=alpha)
            first += lattice.rows

    def hide(self, scores: Tensor) -> None:
        """Lower the scores (N, m, n) of keys that are not seen."""
        for edge in self.tile.edges:
            bias = edge.bias
            if bias.dim() == 3:
                bias = bias[self.group : self.group + self.groups].repeat(self.sequences, 1, 1)
            scores[:, :, edge.first : edge.first + bias.shape[-1]].add_(bias)

    def _view(self, x: Tensor, lattice: Lattice) -> Tensor:
        sequence, position, *rest = x.stride()
        start = lattice.start + self.group * lattice.group_step
        return x.as_strided(
            (self.sequences, self.groups, lattice.rows, *x.shape[2:]),
            (sequence, lattice.group_step * position, lattice.row_step * position, *rest),
            x.storage_offset() + self.first * sequence + start * position,
        )


def _add_product(
    target: Tensor, a: Tensor, b: Tensor, *, alpha: float = 1.0, fresh: bool = False
) -> None:
    """Add alpha a b (N, n, D) to a view (sequences, groups, n, D), or write it if that is fresh."""
    if target.stride(2) == target.shape[3] and 1 in target.shape[:2]:
        target.flatten(0, 1).baddbmm_(a, b, beta=0.0 if fresh else 1.0, alpha=alpha)
        return
    product = torch.bmm(a, b).view(target.shape)
    if fresh:
        torch.mul(product, alpha, out=target)
    else:
        target.add_(product, alpha=alpha)


def _packed(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows (sequences, groups, n, ...) as (N, n, ...).

    They stay a view where a sequence's rows lie side by side: products read overlapping tiles as
    they are, but rows far apart miss the cache.
    """
    if rows.dtype != dtype or rows.stride(2) != rows.shape[3:].numel():
        rows = rows.to(dtype, copy=True, memory_format=torch.contiguous_format)
    return rows.flatten(0, 1)


def _joined(lattices: tuple[Lattice, ...]) -> list[Lattice]:
    """Return the lattices with those that continue each other as one."""
    joined = [lattices[0]]
    for lattice in lattices[1:]:
        last = joined[-1]
        if lattice.start == last.start + last.rows * last.row_step:
            rows = last.rows + lattice.rows
            joined[-1] = Lattice(last.start, last.groups, last.group_step, rows, last.row_step)
        else:
            joined.append(lattice)
    return joined


def batches_of(tile: Tile, sequences: int) -> int:
    """Return in how many batches a tile of so many sequences is computed."""
    together, groups = _batch_size(tile, sequences)
    return -(-sequences // together) * -(-tile.queries.groups // groups)


def _batch_size(tile: Tile, sequences: int) -> tuple[int, int]:
    """Return how many sequences and groups of a tile fit the cache together."""
    many = max(1, _BATCH_SCORES // (tile.queries.rows * tile.columns))
    groups = min(many, tile.queries.groups)
    return min(sequences, max(1, many // groups)), groups


def _batches(part: Part, q: Tensor, *, causal: bool) -> Iterator[_Batch]:
    """Return a part's tiles in batches that fit the cache."""
    sequences, length = q.shape[:2]
    for tile in tiles(part, length, causal=causal):
        together, groups = _batch_size(tile, sequences)
        for first in range(0, sequences, together):
            for group in range(0, tile.queries.groups, groups):
                many = min(groups, tile.queries.groups - group)
                yield _Batch(tile, first, min(together, sequences - first), group, many)


@dataclass(frozen=True)
class _Keys:
    """The keys and values that a part's tiles point into."""

    k: Tensor
    v: Tensor
    bias: Tensor | None
    positions: Tensor | None

    @classmethod
    def of(cls, part: Part, k: Tensor, v: Tensor, bias: Tensor | None) -> "_Keys":
        """Return the part's own keys: gathered where it says which, else all."""
        positions = key_positions(part, k.shape[1])
        if positions is None:
            return cls(k, v, bias, None)
        chosen = None if bias is None else bias[:, positions]
        return cls(k[:, positions], v[:, positions], chosen, positions)

    def scores(self, queries: Tensor, k: Tensor, batch: _Batch) -> Tensor:
        """Return the scores (N, m, n) in base 2, very low where a key is not seen."""
        scores = torch.bmm(queries, k.transpose(1, 2))
        batch.hide(scores)
        if self.bias is not None:
            scores.add_(batch.keys(self.bias, scores.dtype)[:, None, :])
        return scores

    def sums(self, dk: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
        """Return where this part's gradients of keys and values are added up."""
        if self.positions is None:
            return dk, dv
        return torch.zeros_like(self.k, dtype=dk.dtype), torch.zeros_like(self.v, dtype=dv.dtype)

    def scatter(self, sums: tuple[Tensor, ...], dk: Tensor, dv: Tensor) -> None:
        """Add what was collected apart to the gradients of all keys and values."""
        if self.positions is not None:
            dk.index_add_(1, self.positions, sums[0])
            dv.index_add_(1, self.positions, sums[1])


def _slabs(q: Tensor) -> list[slice]:
    """Return the sequences in slices, so that what is added up for one stays in the cache."""
    size = max(1, _SLAB_NUMBERS // max(1, q.shape[1] * q.shape[2]))
    return [slice(first, first + size) for first in range(0, q.shape[0], size)]


@contextmanager
def _collected(result: Tensor, dtype: torch.dtype, *, zeros: bool = True) -> Iterator[Tensor]:
    """Give zeros of the computing type to add a result up in; the result itself where it can be.

    Without `zeros` it may hold anything.
    """
    total = result if result.dtype == dtype else torch.empty_like(result, dtype=dtype)
    yield total.zero_() if zeros else total
    if total is not result:
        result.copy_(total)


def _of(bias: Tensor | None, slab: slice) -> Tensor | None:
    return None if bias is None else bias[slab]


def _computing_type(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


@contextmanager
def _fast_products(dtype: torch.dtype) -> Iterator[None]:
    """Let products of float32 numbers that came from bfloat16 use the bfloat16 units.

    The setting belongs to the process: while it holds, products of float32 in other threads round
    their factors as well.
    """
    settings = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = settings.fp32_precision
    if dtype != torch.bfloat16 or before == "bf16":
        yield
        return
    settings.fp32_precision = "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
