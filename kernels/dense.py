"""Attention by torch's fused dense kernel and a mask: what short sequences are fastest with.

Shapes as in `speechkit.kernels.cpu`: X = batch x heads, T positions, D head size; L sequences with
lengths of their own, each of X / L heads.
"""

from functools import lru_cache

import torch
from torch import Tensor

from speechkit.kernels.numbers import statistics_type
from speechkit.kernels.patterns import Dense, Pattern

# masks of up to so many pairs are kept for the next layer and step
_KNOWN_PAIRS = 1 << 22


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output and the log-sum-exp, as `speechkit.kernels.cpu.forward` does.

    But for `key_bias` (L, T), which all heads of a sequence share.
    """
    if q.shape[1] == 0:  # on which the kernel would end the process
        return torch.zeros_like(v), q.new_zeros(q.shape[:2], dtype=statistics_type(q))
    mask, plain = _mask(pattern, q, causal, key_bias)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(_by_sequence(x, key_bias) for x in (q, k, v)),
        is_causal=plain,
        attn_mask=mask,
        scale=scale,
    )
    if key_bias is not None:
        # a row without keys comes back with log-sum-exp 0
        empty = _empty_rows(mask)
        output = output.masked_fill(empty[..., None], 0.0)
        lse = lse.masked_fill(empty, -torch.inf)
    return output.flatten(0, 1), lse.flatten(0, 1)


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    output: Tensor,
    lse: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    key_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v; the log-sum-exp must have none of its own."""
    if q.shape[1] == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    mask, plain = _mask(pattern, q, causal, key_bias)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf) if key_bias is not None else lse
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        *(_by_sequence(x, key_bias) for x in (gradient, q, k, v, output, lse)),
        0.0,
        plain,
        attn_mask=mask,
        scale=scale,
    )
    return dq.flatten(0, 1), dk.flatten(0, 1), dv.flatten(0, 1)


def _by_sequence(x: Tensor, key_bias: Tensor | None) -> Tensor:
    """View (X, ...) as (L, X / L, ...): heads then share the mask of their sequence."""
    return x.view(1 if key_bias is None else len(key_bias), -1, *x.shape[1:])


def _mask(
    pattern: Pattern, q: Tensor, causal: bool, key_bias: Tensor | None
) -> tuple[Tensor | None, bool]:
    """Return the additive mask (1 or L, 1, T, T) or None, and whether causality is all."""
    if pattern == Dense() and key_bias is None:
        return None, causal
    length = q.shape[1]
    bias = _known_bias if length**2 <= _KNOWN_PAIRS else _bias
    mask = bias(pattern, length, causal, q.dtype)
    if key_bias is not None:
        mask = mask + key_bias.to(q.dtype)[:, None, None, :]
    return mask, False


def _bias(pattern: Pattern, length: int, causal: bool, dtype: torch.dtype) -> Tensor:
    visible = pattern.mask(length, causal=causal)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[None]


# a model's layers take turns with few patterns
_known_bias = lru_cache(maxsize=4)(_bias)


def _empty_rows(mask: Tensor | None) -> Tensor:
    assert mask is not None
    return (mask == -torch.inf).all(-1)
