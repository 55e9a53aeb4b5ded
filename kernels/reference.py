"""The slow, obvious attention that every other path is compared with."""

import torch
from torch import Tensor

from speechkit.kernels.numbers import statistics_type, without_autocast, without_padding
from speechkit.kernels.patterns import Pattern


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
    """Return the output (B, H, T, E) and the log-sum-exp (B, H, T): dense scores and a mask.

    `q`, `k` (B, H, T, D) and `v` (B, H, T, E). Computes in float32, float64 for float64; gradients
    by autograd. A query without keys has output 0, log-sum-exp -inf and no gradients.
    """
    with without_autocast(q):
        dtype = statistics_type(q)
        heads, length = q.shape[1:3]
        visible = pattern.mask(length, causal=causal, heads=heads, device=q.device)[None]
        if key_lengths is not None:
            key = torch.arange(length, device=q.device)
            k, v = without_padding(k, key_lengths), without_padding(v, key_lengths)
            visible = visible & (key < key_lengths.to(q.device)[:, None])[:, None, None, :]
        scores = q.to(dtype) @ k.to(dtype).transpose(-1, -2) * scale
        scores = scores.masked_fill(~visible, -torch.inf)
        # a row of -inf alone would make NaN of its gradient: it gets a score that is then dropped
        empty = ~visible.any(-1, keepdim=True)
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
        lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
        return (weights @ v.to(dtype)).to(q.dtype), lse
