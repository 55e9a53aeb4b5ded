"""Sparse attention as operators of torch's library: for autograd, compilers and exporters.

Shapes: B batch, H heads, T positions, D size of q and k, E size of v.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from speechkit.kernels import cpu, dense
from speechkit.kernels.encoding import decode
from speechkit.kernels.parts import parts
from speechkit.kernels.patterns import Pattern


@torch.library.custom_op("speechkit::sparse_attention", mutates_args=())
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    pattern: str,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor]:
    """Return the output (B, H, T, E) and the log-sum-exp (B, H, T) by the code that is named."""
    output = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:3], dtype=_statistics_type(q), device=q.device)
    for head, heads in _head_groups(pattern, q.shape[1]):
        folded = [_folded(x, heads) for x in (q, k, v)]
        results = _forward(folded, key_lengths, head, causal, scale, code)
        for whole, result in zip((output, lse), results, strict=True):
            whole[:, heads] = result.view(q.shape[0], -1, *result.shape[1:])
    return output, lse


@sparse_attention.register_fake
def _(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    key_lengths: Tensor | None,
    pattern: str,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor]:
    output = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype, device=q.device)
    return output, torch.empty(q.shape[:3], dtype=_statistics_type(q), device=q.device)


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
    pattern: str,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v."""
    results = _empty(q), _empty(k), _empty(v)
    # a query without keys has nothing to learn: its output and log-sum-exp are constants
    lse_gradient = lse_gradient.masked_fill(lse == -torch.inf, 0.0)
    delta = (output.to(lse.dtype) * gradient.to(lse.dtype)).sum(-1).sub_(lse_gradient)
    for head, heads in _head_groups(pattern, q.shape[1]):
        folded = [_folded(x, heads) for x in (gradient, q, k, v, output, lse, delta)]
        some = _backward(folded, key_lengths, head, causal, scale, code)
        for whole, result in zip(results, some, strict=True):
            whole[:, heads] = result.view(q.shape[0], -1, *result.shape[1:])
    return results


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
    pattern: str,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q), _empty(k), _empty(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, key_lengths, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, key_lengths)


def _differentiate(ctx: Any, gradient: Tensor, lse_gradient: Tensor) -> tuple[Tensor | None, ...]:
    gradients = sparse_attention_backward(gradient, lse_gradient, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None, None, None)


sparse_attention.register_autograd(_differentiate, setup_context=_save)


def _forward(
    inputs: list[Tensor],
    key_lengths: Tensor | None,
    pattern: Pattern,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor]:
    """Return the output and log-sum-exp of folded q, k, v (X, T, D or E)."""
    q, k, v = inputs
    if code == "cpu":
        bias = _key_bias(key_lengths, q)
        return cpu.forward(q, k, v, parts(pattern), causal=causal, scale=scale, key_bias=bias)
    size = max(q.shape[-1], v.shape[-1])
    wide = [_widened(x, size) for x in inputs]
    if code == "triton":
        from speechkit.kernels import triton_backend

        lengths = _each(key_lengths, q)
        output, lse = triton_backend.forward(
            *wide, parts(pattern), causal=causal, scale=scale, key_lengths=lengths
        )
    else:
        bias = _key_bias(key_lengths, q)
        output, lse = dense.forward(*wide, pattern, causal=causal, scale=scale, key_bias=bias)
    return output[..., : v.shape[-1]], lse


def _backward(
    inputs: list[Tensor],
    key_lengths: Tensor | None,
    pattern: Pattern,
    causal: bool,
    scale: float,
    code: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k, v, given the folded gradient, q, k, v, output, lse, delta."""
    gradient, q, k, v, output, lse, delta = inputs
    if code == "cpu":
        bias = _key_bias(key_lengths, q)
        saved = (gradient, q, k, v, lse, delta, parts(pattern))
        return cpu.backward(*saved, causal=causal, scale=scale, key_bias=bias)
    size = max(q.shape[-1], v.shape[-1])
    wide = [_widened(x, size) for x in (gradient, q, k, v)]
    if code == "triton":
        from speechkit.kernels import triton_backend

        lengths = _each(key_lengths, q)
        saved = (*wide, lse, delta, parts(pattern))
        dq, dk, dv = triton_backend.backward(
            *saved, causal=causal, scale=scale, key_lengths=lengths
        )
    else:
        bias = _key_bias(key_lengths, q)
        saved = (*wide, _widened(output, size), lse, pattern)
        dq, dk, dv = dense.backward(*saved, causal=causal, scale=scale, key_bias=bias)
    return dq[..., : q.shape[-1]], dk[..., : k.shape[-1]], dv[..., : v.shape[-1]]


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
    return x[:, heads].contiguous().flatten(0, 1)


def _widened(x: Tensor, size: int) -> Tensor:
    """Return (X, T, D) with zeros up to `size`, which change no product."""
    return x if x.shape[-1] == size else torch.nn.functional.pad(x, (0, size - x.shape[-1]))


def _each(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """Return the key lengths of X sequences, from those of B."""
    if key_lengths is None:
        return None
    lengths = key_lengths.to(device=q.device, dtype=torch.int32)
    return lengths.repeat_interleave(q.shape[0] // lengths.shape[0])


def _key_bias(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    """Return (X, T): 0 for keys that count, -inf for those beyond the length; None if all count."""
    lengths = _each(key_lengths, q)
    if lengths is None or bool((lengths >= q.shape[1]).all()):
        return None
    padding = torch.arange(q.shape[1], device=q.device) >= lengths[:, None]
    return torch.zeros(padding.shape, dtype=_statistics_type(q)).masked_fill_(padding, -torch.inf)


def _statistics_type(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32
