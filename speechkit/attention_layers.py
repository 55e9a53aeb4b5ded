"""The branches of a Sparse Transformer block: attention, convolution, feed-forward.

A branch maps the normalised residual stream to what is added to it. Every linear layer is an
`nn.Linear` over (B, T, inputs), batch first, so that hooks see what per-clip gradients need.

Shapes: B batch, T positions, d width, H heads, D size of a head of q and k, E of one of v.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kernels import sparse_attention
from speechkit.kernels.patterns import Pattern
from speechkit.recompute import called, in_pieces, recomputed
from speechkit.rotary import Rotation, rotate

BLOCK_EPSILON = 1e-5
_STEEPNESS = 1.702


def activation(x: Tensor) -> Tensor:
    """Return x * sigmoid(1.702 x).

    By way of silu, whose backward pass keeps one tensor where the product keeps two.
    """
    return functional.silu(_STEEPNESS * x) / _STEEPNESS


class SelfAttention(nn.Module):
    """Attention over the keys that a pattern allows (paper, equations 2 to 8).

    Split in three, so that sampling can put a cache between them: `project`, `attend`, `join`.

    Parameters
    ----------
    width, heads
        d and H; v is as wide as the stream.
    key_width
        width of all heads of q and k together; half of `width` in the paper's half-size models.
        Scores are scaled by the root of a head's share of it.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        pattern: Pattern,
        key_width: int | None = None,
        causal: bool = True,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        key_width = key_width or width
        self.heads, self.pattern = heads, pattern
        self.causal, self.backend = causal, backend
        self.query = nn.Linear(width, key_width)
        self.key = nn.Linear(width, key_width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def project(self, x_btd: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, H, T, D), k (B, H, T, D) and v (B, H, T, E)."""
        x_btd = _cast_once(x_btd)
        q, k, v = (self._split(layer(x_btd)) for layer in (self.query, self.key, self.value))
        return (q, k, v) if turn is None else (rotate(q, turn), rotate(k, turn), v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Return what each head gathers (B, H, T, E); keys from ``lengths`` (B,) on are unseen."""
        gathered: Tensor = sparse_attention(
            q, k, v, self.pattern, causal=self.causal, key_lengths=lengths, backend=self.backend
        )
        return gathered

    def join(self, gathered_bhte: Tensor) -> Tensor:
        """Return the projection of all heads (B, T, d)."""
        return self.output(gathered_bhte.transpose(1, 2).flatten(2))

    def forward(
        self, x_btd: Tensor, lengths: Tensor | None = None, turn: Rotation | None = None
    ) -> Tensor:
        """Map (B, T, d) to (B, T, d)."""
        return self.join(self.attend(*self.project(x_btd, turn), lengths=lengths))

    def _split(self, x_btd: Tensor) -> Tensor:
        # the size of a head in full: of no positions it cannot be told
        size = x_btd.shape[2] // self.heads
        return x_btd.reshape(*x_btd.shape[:2], self.heads, size).transpose(1, 2)


def _cast_once(x: Tensor) -> Tensor:
    """Return x in autocast's type, if any: else each layer makes, and keeps, its own copy."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


class FeedForward(nn.Module):
    """The two linear layers of a block, position by position (paper, section 5.2).

    Parameters
    ----------
    width, hidden
        d and the width between the layers.
    steps
        positions that are computed at once, to bound the memory of very long sequences; 0 for all.
    """

    def __init__(self, width: int, hidden: int, *, steps: int = 0) -> None:
        super().__init__()
        self.steps = steps
        self.hidden = nn.Linear(width, hidden)
        self.output = nn.Linear(hidden, width)

    def forward(self, x_btd: Tensor, recompute: bool = False) -> Tensor:
        """Map (B, T, d) to (B, T, d); ``recompute`` keeps only the input where it is split."""
        pieces = in_pieces(x_btd, self.steps)
        if len(pieces) == 1:
            return self._map(x_btd)
        call = recomputed if recompute else called
        return torch.cat([call(self._map, piece) for piece in pieces], dim=1)

    def _map(self, x_btd: Tensor) -> Tensor:
        return self.output(activation(self.hidden(x_btd)))


class Convolution(nn.Module):
    """The convolution module of the Conformer (Gulati et al. 2020), clip by clip.

    Pointwise with a gate, depthwise along time, normalisation, activation, pointwise. LayerNorm
    in place of BatchNorm: a clip's result does not depend on the clips beside it, nor on padding.
    """

    def __init__(self, width: int, kernel: int, *, causal: bool = False) -> None:
        super().__init__()
        self.padding = (kernel - 1, 0) if causal else ((kernel - 1) // 2, kernel // 2)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, groups=width)
        self.norm = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.output = nn.Linear(width, width)

    def forward(self, x_btd: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (B, T, d) to (B, T, d); what lies behind ``lengths`` (B,) counts as zero."""
        x_btd = functional.glu(self.gate(x_btd))
        if lengths is not None:
            positions = torch.arange(x_btd.shape[1], device=x_btd.device)
            x_btd = x_btd.masked_fill((positions >= lengths[:, None])[..., None], 0.0)
        x_bdt = self.depthwise(functional.pad(x_btd.transpose(1, 2), self.padding))
        return self.output(activation(self.norm(x_bdt.transpose(1, 2))))
