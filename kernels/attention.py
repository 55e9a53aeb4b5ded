"""The one entry to sparse attention."""

import math
from typing import Literal, overload

import torch
from torch import Tensor

from speechkit.kernels import portable, reference
from speechkit.kernels.dispatch import choose, request_of, requested
from speechkit.kernels.encoding import encode
from speechkit.kernels.errors import KernelError
from speechkit.kernels.operator import sparse_attention as _operator
from speechkit.kernels.patterns import Pattern

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool = ...,
    key_lengths: Tensor | None = ...,
    scale: float | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool = ...,
    key_lengths: Tensor | None = ...,
    scale: float | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool = True,
    key_lengths: Tensor | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the attention of each query over the keys that a pattern lets it see; differentiable.

    Exact: equals dense attention under ``pattern.mask(T, causal=causal, heads=H)``, at the cost of
    the pairs in it.

    Parameters
    ----------
    q, k
        (B, H, T, D): batch, heads, positions, head size; any strides; float64, float32, bfloat16
        or float16.
    v
        (B, H, T, E); E may differ from D.
    pattern
        What each query sees; see `speechkit.kernels.patterns`.
    causal
        Whether a query sees no later key.
    key_lengths
        (B,) integers from 0 to T: the keys from there on are padding, which no query sees. Padded
        queries are computed all the same, to be ignored by the caller.
    scale
        What the scores are multiplied by; by default 1 / sqrt(D).
    return_lse
        Whether to return the log-sum-exp of each query's scores (B, H, T) as well, in float32
        (float64 for float64); it can be differentiated too.
    backend
        "auto", "reference", "dense", "cpu" or "triton"; `use_backend` and the environment variable
        SPEECHKIT_ATTENTION_BACKEND set what "auto" means.

    Returns
    -------
    Tensor or tuple[Tensor, Tensor]
        (B, H, T, E) in q's type; a query without keys, which only `key_lengths` makes, has output
        0, log-sum-exp -inf and no gradients.

    Raises
    ------
    KernelError
        If shapes, types, devices, lengths or the pattern do not fit, or a forced backend cannot
        serve the request: names the value and the remedy.
    """
    _check(q, k, v)
    if not isinstance(pattern, Pattern):
        raise KernelError(f"pattern {pattern!r}: is no pattern; give such as Local(64)")
    length = q.shape[2]
    pattern.check(length)
    key_lengths = _checked_lengths(key_lengths, q)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    backend = requested(backend)
    if return_lse and backend == "dense":
        raise KernelError('backend "dense": cannot differentiate its log-sum-exp; give "cpu"')
    if return_lse and backend == "auto" and q.device.type == "cpu":
        backend = "cpu"  # for the same reason
    if portable.is_exporting():
        results = portable.attention(
            q, k, v, pattern, causal=causal, scale=scale, key_lengths=key_lengths
        )
    elif backend == "reference":
        results = reference.attention(
            q, k, v, pattern, causal=causal, scale=scale, key_lengths=key_lengths
        )
    else:
        text = encode(pattern)
        results = _operator(
            q, k, v, key_lengths, pattern=text, causal=causal, scale=scale, backend=backend
        )
    return results if return_lse else results[0]


def explain(
    q: Tensor, pattern: Pattern, *, causal: bool = True, key_lengths: Tensor | None = None
) -> str:
    """Return which code ``backend="auto"`` would run for these queries, and why."""
    request = request_of(q, q, causal=causal, has_lengths=key_lengths is not None)
    code, reason = choose("auto", pattern, request)
    return f"{code}: {reason}"


def _check(q: Tensor, k: Tensor, v: Tensor) -> None:
    shapes = f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.dim() != 4 or q.shape != k.shape or v.dim() != 4 or q.shape[:3] != v.shape[:3]:
        raise KernelError(f"{shapes}: give q and k as (B, H, T, D) and v as (B, H, T, E)")
    if 0 in (*q.shape[:2], q.shape[3], v.shape[3]):
        raise KernelError(f"{shapes}: B, H, D and E must be at least 1; only T may be 0")
    types = {x.dtype for x in (q, k, v)}
    if len(types) > 1 or q.dtype not in _DTYPES:
        given = ", ".join(str(x.dtype) for x in (q, k, v))
        raise KernelError(f"types {given}: give all three in one of {', '.join(map(str, _DTYPES))}")
    if len({x.device for x in (q, k, v)}) > 1:
        raise KernelError(f"devices {q.device}, {k.device}, {v.device}: move all three to one")


def _checked_lengths(key_lengths: Tensor | None, q: Tensor) -> Tensor | None:
    if key_lengths is None:
        return None
    batch, length = q.shape[0], q.shape[2]
    if not isinstance(key_lengths, Tensor):
        raise KernelError(f"key_lengths {key_lengths!r}: give a tensor of {batch} whole numbers")
    if key_lengths.shape != (batch,) or key_lengths.dtype not in _WHOLE:
        raise KernelError(
            f"key_lengths {tuple(key_lengths.shape)} of {key_lengths.dtype}: "
            f"give {batch} whole numbers, one for each sequence of the batch"
        )
    if torch.compiler.is_compiling():
        return key_lengths
    low, high = (int(x) for x in key_lengths.aminmax())
    if low < 0 or high > length:
        raise KernelError(
            f"key_lengths from {low} to {high}: each must be between 0 and T = {length}"
        )
    return key_lengths
