"""Attention by torch's fused dense kernel and a mask: what short sequences are fastest with.

Shapes as in `speechkit.kernels.cpu`: X = batch x heads, T positions, D head size.
"""

from functools import lru_cache

import torch
from torch import Tensor

from speechkit.kernels.patterns import Dense, Pattern


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
    """Return the output and the log-sum-exp, as `speechkit.kernels.cpu.forward` does."""
    mask, plain = _mask(pattern, q, causal, key_bias)
    output, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        q[None], k[None], v[None], is_causal=plain, attn_mask=mask, scale=scale
    )
    if key_bias is not None:
        # a row without keys comes back with log-sum-exp 0
        empty = _empty_rows(mask)
        output = output.masked_fill(empty[..., None], 0.0)
        lse = lse.masked_fill(empty, -torch.inf)
    return output[0], lse[0]


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
    mask, plain = _mask(pattern, q, causal, key_bias)
    lse = lse.masked_fill(lse == -torch.inf, torch.inf) if key_bias is not None else lse
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        gradient[None],
        q[None],
        k[None],
        v[None],
        output[None],
        lse[None],
        0.0,
        plain,
        attn_mask=mask,
        scale=scale,
    )
    return dq[0], dk[0], dv[0]


def _mask(
    pattern: Pattern, q: Tensor, causal: bool, key_bias: Tensor | None
) -> tuple[Tensor | None, bool]:
    """Return the additive mask (1, 1 or X, T, T) or None, and whether causality is all."""
    if pattern == Dense() and key_bias is None:
        return None, causal
    mask = _bias(pattern, q.shape[1], causal, q.dtype)
    if key_bias is not None:
        mask = mask + key_bias.to(q.dtype)[None, :, None, :]
    return mask, False


@lru_cache(maxsize=16)
def _bias(pattern: Pattern, length: int, causal: bool, dtype: torch.dtype) -> Tensor:
    visible = pattern.mask(length, causal=causal)
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, -torch.inf)[None]


def _empty_rows(mask: Tensor | None) -> Tensor:
    assert mask is not None
    return (mask == -torch.inf).all(-1)
