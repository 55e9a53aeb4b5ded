"""Rotary positions (Su et al. 2021, RoFormer): queries and keys turned by an angle per position.

The product of a turned query and a turned key depends on their distance alone, so that attention
knows distances at any length, also at lengths that were never trained on.

Shapes: B batch, H heads, T positions, D size of a head.
"""

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (T, D / 2), float32."""


def rotation(positions: Tensor, size: int, *, base: float = 10_000.0) -> Rotation:
    """Return the turn of each position for heads of an even ``size``.

    Pair p of a head turns by ``position * base ** (-2 p / size)``. Angles are made in float64:
    in float32 those of positions near a million are wrong in the second decimal.
    """
    pairs = torch.arange(0, size, 2, dtype=torch.float64, device=positions.device)
    angles = positions.to(torch.float64)[:, None] * base ** (-pairs / size)
    return angles.cos().float(), angles.sin().float()


def rotate(x_bhtd: Tensor, turn: Rotation) -> Tensor:
    """Turn queries or keys (B, H, T, D); element p pairs with p + D / 2. The type stays."""
    cosine, sine = turn
    first, second = x_bhtd.float().chunk(2, dim=-1)
    turned = (first * cosine - second * sine, second * cosine + first * sine)
    return torch.cat(turned, dim=-1).to(x_bhtd.dtype)
