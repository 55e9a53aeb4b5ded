"""Sparse attention as operators of torch's library: for autograd, compilers and exporters.

Shapes: B batch, H heads, T positions, D size of q and k, E size of v.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from speechkit.kernels import cpu, dense
from speechkit.kernels.dispatch import choose, request_of
from speechkit.kernels.encoding import decode
from speechkit.kernels.numbers import statistics_type, without_autocast, without_padding
from speechkit.kernels.parts import parts
from speechkit.kernels.patterns import Pattern

# rows of which products are summed at once on a CPU: their temporaries fit its cache
_DOT_ROWS = 2048
# elements of which they are elsewhere: few launches, bounded memory
_DOT_ELEMENTS = 1 << 25


@torch.library.custom_op("speechkit::sparse_attention", mutates_args=())
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    *,
    pattern: str,
    causal: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, T, E) and the log-sum-exp (B, H, T) by what the backend chooses."""
    code = _code(backend, pattern, q, v, causal=causal, has_lengths=key_lengths is not None)
    results = []
    for head, heads in _head_groups(pattern, q.shape[1]):
        folded = (_folded(q, heads), _folded(k, heads), _folded(v, heads))
        with without_autocast(q):
            found = _forward(folded, key_lengths, head, causal=causal, scale=scale, code=code)
        results.append((heads, found))
    output, lse = _of_all_heads(results, q.shape[0])
    return output, lse


@sparse_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    *,
    pattern: str,
    causal: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor]:
    output = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    return output, torch.empty(q.shape[:3], dtype=statistics_type(q), device=q.device)


@torch.library.custom_op("speechkit::sparse_attention_backward", mutates_args=())
def sparse_attention_backward(
    gradient: Tensor,
    lse_gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    *,
    pattern: str,
    causal: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    code = _code(backend, pattern, q, v, causal=causal, has_lengths=key_lengths is not None)
    # the dense kernel makes its own
    delta = lse if code == "dense" else _delta(output, gradient, lse, lse_gradient)
    results = []
    for head, heads in _head_groups(pattern, q.shape[1]):
        folded = [_folded(x, heads) for x in (gradient, q, k, v, output, lse, delta)]
        with without_autocast(q):
            found = _backward(folded, key_lengths, head, causal=causal, scale=scale, code=code)
        results.append((heads, found))
    dq, dk, dv = _of_all_heads(results, q.shape[0])
    return dq, dk, dv


@sparse_attention_backward.register_fake
def _(
    gradient: Tensor,
    lse_gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    key_lengths: Tensor | None,
    *,
    pattern: str,
    causal: bool,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _save(
    ctx: Any,
    inputs: tuple[Any, ...],
    keyword_only_inputs: dict[str, Any],
    output: tuple[Tensor, Tensor],
) -> None:
    q, k, v, key_lengths = inputs
    ctx.save_for_backward(q, k, v, *output, key_lengths)
    ctx.options = keyword_only_inputs


def _differentiate(ctx: Any, gradient: Tensor, lse_gradient: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    gradients = sparse_attention_backward(gradient, lse_gradient, *saved, **ctx.options)
    return (*gradients, None)


sparse_attention.register_autograd(_differentiate, setup_context=_save)


def _batched(
    operator: Any, info: Any, in_dims: tuple[int | None, ...], *inputs: Any, **options: Any
) -> Any:
    """Take many calls, such as the backward passes of one forward pass, for a larger batch."""
    size = info.batch_size
    pairs = zip(inputs, in_dims, strict=True)
    results = operator(*(_into_batch(x, dim, size) for x, dim in pairs), **options)
    return tuple(x.unflatten(0, (size, -1)) for x in results), (0,) * len(results)


sparse_attention.register_vmap(partial(_batched, sparse_attention))
sparse_attention_backward.register_vmap(partial(_batched, sparse_attention_backward))


def _into_batch(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Return (size B, ...) of a tensor with one more axis at dim, or of one that is shared."""
    if x is None:
        return None
    many = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return many.flatten(0, 1)


def _code(
    backend: str, pattern: str, q: Tensor, v: Tensor, *, causal: bool, has_lengths: bool
) -> str:
    request = request_of(q, v, causal=causal, has_lengths=has_lengths)
    return choose(backend, decode(pattern), request)[0]


def _forward(
    inputs: tuple[Tensor, Tensor, Tensor],
    key_lengths: Tensor | None,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of folded q, k, v (X, T, D or E)."""
    q, k, v = inputs
    if code != "triton":  # which reads no key beyond the lengths
        k, v = _cleaned(k, v, key_lengths)
    if code == "cpu":
        bias = _key_bias(key_lengths, q)
        return cpu.forward(q, k, v, parts(pattern), causal=causal, scale=scale, key_bias=bias)
    size = max(q.shape[-1], v.shape[-1])
    q, k, wide_v = (_widened(x, size) for x in (q, k, v))
    if code == "triton":
        from speechkit.kernels import triton_backend

        lengths = _each(key_lengths, q)
        output, lse = triton_backend.forward(
            q, k, wide_v, parts(pattern), causal=causal, scale=scale, key_lengths=lengths
        )
    else:
        output, lse = dense.forward(
            q, k, wide_v, pattern, causal=causal, scale=scale, key_bias=_length_bias(key_lengths, q)
        )
    return output[..., : v.shape[-1]], lse


def _backward(
    inputs: list[Tensor],
    key_lengths: Tensor | None,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, given the folded gradient, q, k, v, output, lse, delta."""
    gradient, q, k, v, output, lse, delta = inputs
    if code != "triton":
        k, v = _cleaned(k, v, key_lengths)
    sizes = q.shape[-1], v.shape[-1]
    options: dict[str, Any] = {"causal": causal, "scale": scale}
    if code == "cpu":
        bias = _key_bias(key_lengths, q)
        return cpu.backward(gradient, q, k, v, lse, delta, parts(pattern), key_bias=bias, **options)
    gradient, q, k, v = (_widened(x, max(sizes)) for x in (gradient, q, k, v))
    if code == "triton":
        from speechkit.kernels import triton_backend

        lengths = _each(key_lengths, q)
        dq, dk, dv = triton_backend.backward(
            gradient, q, k, v, lse, delta, parts(pattern), key_lengths=lengths, **options
        )
    else:
        bias = _length_bias(key_lengths, q)
        output = _widened(output, max(sizes))
        dq, dk, dv = dense.backward(
            gradient, q, k, v, output, lse, pattern, key_bias=bias, **options
        )
    return dq[..., : sizes[0]], dk[..., : sizes[0]], dv[..., : sizes[1]]


@lru_cache(maxsize=1024)
def _head_groups(text: str, heads: int) -> tuple[tuple[Pattern, slice | list[int]], ...]:
    """Return the distinct patterns of the heads, and which heads have each."""
    each = decode(text).per_head(heads)
    if len(set(each)) == 1:
        return ((each[0], slice(None)),)
    distinct = dict.fromkeys(each)
    return tuple((p, [h for h in range(heads) if each[h] == p]) for p in distinct)


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _folded(x: Tensor, heads: slice | list[int]) -> Tensor:
    """Return some heads of (B, H, T, ...) as (X, T, ...), contiguous."""
    some = x if heads == slice(None) else x[:, heads]
    return some.contiguous().flatten(0, 1)


def _of_all_heads(
    results: Sequence[tuple[slice | list[int], tuple[Tensor, ...]]], batch: int
) -> tuple[Tensor, ...]:
    """Return each result as (B, H, T, ...), given those of some heads as (X, T, ...)."""
    unfolded = [
        [x.contiguous().view(batch, len(x) // batch, *x.shape[1:]) for x in found]
        for _, found in results
    ]
    if len(results) == 1:
        return tuple(unfolded[0])
    place = torch.tensor([head for heads, _ in results for head in heads]).argsort()  # type: ignore[union-attr]
    return tuple(torch.cat(pieces, dim=1)[:, place] for pieces in zip(*unfolded, strict=True))


def _delta(output: Tensor, gradient: Tensor, lse: Tensor, lse_gradient: Tensor) -> Tensor:
    """Return (B, H, T): the sums of output times gradient, less the log-sum-exp's gradient."""
    if output.device.type == "cpu":
        pairs = zip(output, gradient, strict=True)
        delta = torch.stack([_dots_on_cpu(*pair, lse.dtype) for pair in pairs])
    else:
        delta = _dots(output, gradient, lse.dtype)
    # a query without keys has nothing to learn: its output and log-sum-exp are constants
    return delta.sub_(lse_gradient.masked_fill(lse == -torch.inf, 0.0))


def _dots(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the products of the rows of (B, H, T, E)."""
    rows = max(1, _DOT_ELEMENTS // max(1, a.shape[0] * a.shape[1] * a.shape[3]))
    pairs = zip(torch.split(a, rows, 2), torch.split(b, rows, 2), strict=True)
    return torch.cat([(x.to(dtype) * y.to(dtype)).sum(-1) for x, y in pairs], dim=2)


def _dots_on_cpu(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the products of the rows of (H, T, E)."""
    found = a.new_empty(a.shape[:2], dtype=dtype)
    for start in range(0, a.shape[1], _DOT_ROWS):
        rows = slice(start, start + _DOT_ROWS)
        for x, y, total in zip(a[:, rows], b[:, rows], found[:, rows], strict=True):
            torch.sum(x.to(dtype) * y.to(dtype), -1, out=total)
    return found


def _widened(x: Tensor, size: int) -> Tensor:
    """Return (X, T, D) with zeros up to `size`, which change no product."""
    return x if x.shape[-1] == size else torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def _each(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """Return the key lengths of X sequences, from those of B."""
    if key_lengths is None:
        return None
    lengths = key_lengths.to(device=q.device, dtype=torch.int32)
    return lengths.repeat_interleave(q.shape[0] // lengths.shape[0])


def _cleaned(k: Tensor, v: Tensor, key_lengths: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return keys and values (X, T, D) without what may stand in the padding, such as NaN."""
    lengths = _each(key_lengths, k)
    if lengths is None or bool((lengths >= k.shape[1]).all()):
        return k, v
    return without_padding(k, lengths), without_padding(v, lengths)


def _key_bias(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """Return the bias of `_length_bias` for each of X sequences (X, T)."""
    return _length_bias(_each(key_lengths, q), q)


def _length_bias(lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """Return (L, T) for lengths (L,): 0 for keys that count, -inf for others; None if all count."""
    if lengths is None or bool((lengths >= q.shape[1]).all()):
        return None
    padding = torch.arange(q.shape[1], device=q.device) >= lengths[:, None]
    return torch.zeros(padding.shape, dtype=statistics_type(q)).masked_fill_(padding, -torch.inf)
