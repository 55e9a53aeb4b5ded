"""An autoregressive density model of bytes (Child et al. 2019, sections 3 and 5).

Shapes: B batch, T steps, d width, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.errors import RequestError
from speechkit.position_tables import ByteEmbedding
from speechkit.recompute import called, in_pieces, recomputed
from speechkit.sparse_transformer import Stack, StackConfig

BYTES = 256

# logits of this many steps are held at once while the loss is computed
LOSS_STEPS = 1 << 13


@dataclass(frozen=True, kw_only=True)
class DensityConfig:
    """Hyperparameters of a `DensityModel`; all of them JSON.

    Parameters
    ----------
    stack
        the residual blocks.
    shape
        sizes of the position tables, whose product is the longest sequence: rows, columns and
        channels of an image; rows and columns at the attention's stride for text and audio.
    vocabulary
        V, at most 256.
    """

    stack: StackConfig
    shape: tuple[int, ...]
    vocabulary: int = BYTES

    def __post_init__(self) -> None:
        # lists come from JSON
        object.__setattr__(self, "shape", tuple(self.shape))
        if not self.shape or min(self.shape) < 1:
            raise RequestError(f"shape {self.shape}: give sizes from 1, such as 32, 32, 3")
        if not 1 < self.vocabulary <= BYTES:
            raise RequestError(
                f"vocabulary {self.vocabulary}: give 2 to {BYTES}, since tokens are bytes"
            )
        if not self.stack.causal:
            raise RequestError("stack: a density model is causal; leave causal at True")
        if self.stack.convolution:
            raise RequestError(
                f"stack: convolution {self.stack.convolution}: sampling sees a byte at a time; "
                "leave it at 0"
            )

    @property
    def context(self) -> int:
        """The longest sequence, in bytes."""
        return math.prod(self.shape)

    @classmethod
    def of(cls, description: dict[str, Any]) -> Self:
        """Read back what `dataclasses.asdict` wrote, also by way of JSON."""
        return cls(**{**description, "stack": StackConfig(**description["stack"])})


class DensityModel(nn.Module):
    """p(x) as a product of p(byte | bytes before it).

    The output layer is untied, without bias, and zero at first: the untrained model gives every
    byte log2(V) bits, 8 for 256, to the last digit.
    """

    def __init__(self, config: DensityConfig) -> None:
        super().__init__()
        self.config = config
        width = config.stack.width
        self.embedding = ByteEmbedding(config.vocabulary, config.shape, width)
        self.stack = Stack(config.stack)
        self.output = nn.Linear(width, config.vocabulary, bias=False)
        nn.init.zeros_(self.output.weight)

    def logits(self, x_btd: Tensor) -> Tensor:
        """Map the stack's output (B, T, d) to logits (B, T, V), in float32 under autocast too."""
        with torch.autocast(x_btd.device.type, enabled=False):
            return self.output(x_btd.to(self.output.weight.dtype))

    def forward(self, tokens: Tensor) -> Tensor:
        """Map bytes (B, T) to logits (B, T, V); those at t predict byte t from the ones before."""
        return self.logits(self.stack(self.embedding(tokens)))

    def nats(self, tokens: Tensor) -> Tensor:
        """Return the information content (B, T) of each byte in nats; not all logits at once."""
        x_btd = self.stack(self.embedding(tokens))
        steps = max(1, LOSS_STEPS // max(1, len(tokens)))
        pieces = zip(in_pieces(x_btd, steps), in_pieces(tokens, steps), strict=True)
        call = recomputed if self.stack.recomputes else called
        return torch.cat([call(self._nats_of, *piece) for piece in pieces], dim=1)

    def loss(self, tokens: Tensor) -> Tensor:
        """Return the mean over all bytes (B, T), in nats per byte."""
        return self.nats(tokens).mean()

    def _nats_of(self, x_btd: Tensor, tokens: Tensor) -> Tensor:
        logits = self.logits(x_btd).transpose(1, 2)
        return functional.cross_entropy(logits, tokens.long(), reduction="none")
