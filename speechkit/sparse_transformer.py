"""The Sparse Transformer's residual blocks and stacks of them (Child et al. 2019, section 5).

Shapes: B batch, T positions, d width, H heads, D size of a head of q and k, E of one of v.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechkit.attention_layers import BLOCK_EPSILON, Convolution, FeedForward, SelfAttention
from speechkit.errors import RequestError
from speechkit.initialisation import Reading, check_reading, initialise_linear
from speechkit.kernels.encoding import decode
from speechkit.kernels.patterns import Pattern
from speechkit.recompute import called, recomputed
from speechkit.rotary import Rotation, rotation

_FINAL_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class StackConfig:
    """Hyperparameters of a `Stack`; all of them JSON.

    Parameters
    ----------
    layers, width, heads
        residual blocks N, width d, attention heads H.
    patterns
        what the layers attend to, as text such as ``Strided(128)``. Layer r takes the r-th, and
        they start over when all are used: ``("Local(96)", "Strided(96)")`` interleaves (equation
        6), ``("Strided(96)", "Local(96)", "Local(96)", "Local(96)")`` does so 1 to 3. One pattern
        may merge several in each head, ``Merged(...)`` or ``Fixed(...)`` (equation 7), or give
        each head its own, ``PerHead(...)`` (equation 8).
    causal
        whether a position sees only itself and earlier ones; False for encoders.
    feed_forward_ratio, half_keys
        width of the feed-forward layer in d; whether q and k are half as wide as v. The paper's
        half-size models have 2 and True.
    dropout
        at the end of each residual branch, the only place.
    positions
        "none" leaves them to the embedding; "rotary" turns queries and keys (for encoders).
    convolution
        kernel size, in positions, of a depthwise convolution module between attention and
        feed-forward; 0 for none.
    initialisation, depth_scaling
        which reading of the paper's formula, see `speechkit.initialisation`; whether projections
        that end a branch start smaller by 1 / sqrt(branches in the stack).
    recompute
        keep only the blocks' inputs in training and compute the rest again in the backward pass.
    feed_forward_steps
        positions that the feed-forward layer computes at once, 0 for all: bounds what it holds
        for very long sequences, at the price, with ``recompute``, of its forward pass a third time.
    backend
        of `speechkit.kernels.sparse_attention`.
    """

    layers: int
    width: int
    heads: int
    patterns: tuple[str, ...] = ("Dense()",)
    causal: bool = True
    feed_forward_ratio: int = 4
    half_keys: bool = False
    dropout: float = 0.0
    positions: Literal["none", "rotary"] = "none"
    convolution: int = 0
    initialisation: Reading = "code"
    depth_scaling: bool = True
    recompute: bool = False
    feed_forward_steps: int = 0
    backend: str = "auto"

    def __post_init__(self) -> None:
        # lists come from JSON
        object.__setattr__(self, "patterns", tuple(self.patterns))
        _check(self)

    @property
    def key_width(self) -> int:
        """Width of all heads of q, and of k."""
        return self.width // 2 if self.half_keys else self.width

    @property
    def branches(self) -> int:
        """Residual branches in the whole stack."""
        return self.layers * (3 if self.convolution else 2)

    def pattern(self, layer: int) -> Pattern:
        """Return what a layer attends to."""
        return decode(self.patterns[layer % len(self.patterns)])


def _check(config: StackConfig) -> None:
    for name in ("layers", "width", "heads", "feed_forward_ratio"):
        if getattr(config, name) < 1:
            raise RequestError(f"{name} {getattr(config, name)}: give at least 1")
    if config.key_width % config.heads or config.width % config.heads:
        raise RequestError(
            f"width {config.width}{', halved for q and k,' * config.half_keys} does not divide "
            f"into {config.heads} heads: choose a multiple"
        )
    if not 0.0 <= config.dropout < 1.0:
        raise RequestError(f"dropout {config.dropout}: give 0 or more and less than 1")
    for name in ("convolution", "feed_forward_steps"):
        if getattr(config, name) < 0:
            raise RequestError(f"{name} {getattr(config, name)}: give at least 1, or 0 for none")
    if config.positions not in ("none", "rotary"):
        raise RequestError(f"positions {config.positions!r}: choose none or rotary")
    if config.positions == "rotary" and config.key_width // config.heads % 2:
        raise RequestError(
            f"heads of {config.key_width // config.heads}: rotary positions need an even size"
        )
    if not config.patterns:
        raise RequestError("patterns: none given; give at least one, such as Dense()")
    check_reading(config.initialisation)
    for layer in range(len(config.patterns)):
        config.pattern(layer).per_head(config.heads)


class Block(nn.Module):
    """A pre-activation residual block (paper, equations 12 to 14).

    H + a(H) + b(H) with a(H) = dropout(attention(norm(H))) and
    b(H) = dropout(ff(norm(H + a(H)))).

    Sampling puts its cache between the three steps of `forward`: `project`, `attend`, `finish`.
    """

    def __init__(self, config: StackConfig, layer: int) -> None:
        super().__init__()
        width = config.width
        self.attention_norm = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.attention = SelfAttention(
            width,
            config.heads,
            pattern=config.pattern(layer),
            key_width=config.key_width,
            causal=config.causal,
            backend=config.backend,
        )
        self.convolution: Convolution | None = None
        if config.convolution:
            self.convolution_norm = nn.LayerNorm(width, eps=BLOCK_EPSILON)
            self.convolution = Convolution(width, config.convolution, causal=config.causal)
        self.feed_forward_norm = nn.LayerNorm(width, eps=BLOCK_EPSILON)
        self.feed_forward = FeedForward(
            width, config.feed_forward_ratio * width, steps=config.feed_forward_steps
        )
        self.recompute = config.recompute
        self.dropout = nn.Dropout(config.dropout)
        self._initialise(config)

    def _initialise(self, config: StackConfig) -> None:
        scale = 1 / math.sqrt(config.branches) if config.depth_scaling else 1.0
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv1d):
                ends_branch = name.endswith(".output")
                initialise_linear(
                    layer, reading=config.initialisation, scale=scale if ends_branch else 1.0
                )

    def project(self, x_btd: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the queries (B, H, T, D), keys (B, H, T, D) and values (B, H, T, E)."""
        return self.attention.project(self.attention_norm(x_btd), turn)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, lengths: Tensor | None = None) -> Tensor:
        """Return what the heads gather (B, H, T, E)."""
        return self.attention.attend(q, k, v, lengths=lengths)

    def finish(self, x_btd: Tensor, gathered_bhte: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return the block's output (B, T, d), from its input and what the heads gathered."""
        x_btd = x_btd + self.dropout(self.attention.join(gathered_bhte))
        if self.convolution is not None:
            branch = self.convolution(self.convolution_norm(x_btd), lengths)
            x_btd = x_btd + self.dropout(branch)
        recompute = self.recompute and self.training
        branch = self.feed_forward(self.feed_forward_norm(x_btd), recompute)
        return x_btd + self.dropout(branch)

    def forward(
        self, x_btd: Tensor, lengths: Tensor | None = None, turn: Rotation | None = None
    ) -> Tensor:
        """Map (B, T, d) to (B, T, d)."""
        return self.finish(x_btd, self.attend(*self.project(x_btd, turn), lengths=lengths), lengths)


class Stack(nn.Module):
    """Residual blocks and a last norm (paper, equations 10 and 11)."""

    def __init__(self, config: StackConfig) -> None:
        super().__init__()
        self.config = config
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = nn.LayerNorm(config.width, eps=_FINAL_EPSILON)

    @property
    def recomputes(self) -> bool:
        """Whether activations are recomputed: in training only, as hooks would be called twice."""
        return self.config.recompute and self.training

    def turn(self, positions: Tensor) -> Rotation | None:
        """Return what the blocks need to know of positions (T,): their turns if rotary."""
        if self.config.positions != "rotary":
            return None
        return rotation(positions, self.config.key_width // self.config.heads)

    def forward(self, x_btd: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (B, T, d) to (B, T, d).

        ``lengths`` (B,) says how many positions of each sequence count; those behind are computed
        and mean nothing.
        """
        turn = self.turn(torch.arange(x_btd.shape[1], device=x_btd.device))
        call = recomputed if self.recomputes else called
        for block in self.blocks:
            x_btd = call(block, x_btd, lengths, turn)
        return self.norm(x_btd)
