"""Encoders: features in; logits, their lengths and what the output layer read out.

Shapes: B utterances, T frames in, U frames out, F features, V tokens, d width.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from speechkit.asr.recurrent import RecurrentConfig, RecurrentTrunk
from speechkit.asr.subsampling import Subsampling, SubsamplingConfig
from speechkit.asr.tokenizer import BLANK
from speechkit.errors import RequestError
from speechkit.kernels.errors import KernelError
from speechkit.sparse_transformer import Stack, StackConfig

# a layer in which a frame of so many sees half of the others is as good as dense
_LONG = 4096
_DENSE_SHARE = 0.5


class Encoded(NamedTuple):
    """What an encoder returns.

    Attributes
    ----------
    logits
        (B, U, V).
    lengths
        (B,), frames of each that count.
    hidden
        (B, U, d), the output layer's input.
    """

    logits: Tensor
    lengths: Tensor
    hidden: Tensor


@dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Size of the attention encoder.

    Parameters
    ----------
    subsampling
        the convolutions before it.
    layers, width, heads, feed_forward_ratio
        blocks of the Sparse Transformer, their width, attention heads, and the width of the
        feed-forward layers in widths.
    patterns
        a list of what layers attend to, in turn: ``["Local(64)"]`` for all of them, or
        ``["Local(64)", "Dense()"]`` for every other one; there are Dense(), Local(64), Strided(32),
        Fixed(64, 8), Merged(Local(64), Strided(64)) and more.
    convolution
        kernel of the depthwise convolution in each block, in frames; 0 for none.
    dropout
        in each block, and of the blocks' input.
    recompute
        spend time to save memory in training.
    """

    subsampling: SubsamplingConfig = SubsamplingConfig()
    layers: int = 6
    width: int = 144
    heads: int = 4
    feed_forward_ratio: int = 4
    patterns: tuple[str, ...] = ("Local(128)",)
    convolution: int = 15
    dropout: float = 0.1
    recompute: bool = False

    def stack(self) -> StackConfig:
        """Return the blocks' configuration."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        del own["subsampling"]
        return StackConfig(**own, causal=False, positions="rotary")


class SparseTrunk(nn.Module):
    """Features (B, T, F) -> hidden (B, U, d): subsampling, then bidirectional blocks."""

    def __init__(self, config: SparseConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.subsampling = Subsampling(config.subsampling, features, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = Stack(config.stack())

    @property
    def in_one_pass(self) -> bool:
        """Whether the cost of long audio is bearable: no layer is dense, or nearly so."""
        stack = self.stack.config
        patterns = [stack.pattern(i) for i in range(len(stack.patterns))]
        pairs = _LONG * _LONG * stack.heads
        try:
            return all(
                pattern.count(_LONG, causal=False, heads=stack.heads) < _DENSE_SHARE * pairs
                for pattern in patterns
            )
        except KernelError:  # of a layout of blocks, which does not reach so far
            return False

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (B, U, d) and their lengths (B,)."""
        x, lengths = self.subsampling(x, lengths)
        return self.stack(self.dropout(x), lengths), lengths


class Network(nn.Module):
    """An encoder: a trunk and a linear output layer.

    Parameters
    ----------
    config
        which trunk, and its size.
    features, tokens
        F and V.
    blank_bias
        where the blank's bias starts, the others starting at 0.
    """

    trunk: SparseTrunk | RecurrentTrunk

    def __init__(
        self,
        config: "NetworkConfig",
        features: int,
        tokens: int,
        *,
        blank_bias: float = 0.0,
    ) -> None:
        super().__init__()
        self.config = config
        kind = SparseTrunk if isinstance(config, SparseConfig) else RecurrentTrunk
        self.trunk = kind(config, features)  # type: ignore[arg-type]
        self.output = nn.Linear(self.trunk.width, tokens)
        nn.init.zeros_(self.output.bias)
        nn.init.constant_(self.output.bias[BLANK : BLANK + 1], blank_bias)

    @property
    def factor(self) -> int:
        """Frames in for a frame out."""
        return self.trunk.subsampling.config.factor

    @property
    def in_one_pass(self) -> bool:
        """Whether long recordings are read whole, rather than in chunks."""
        return self.trunk.in_one_pass

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return frames out for frames in (B,)."""
        return self.trunk.subsampling.output_lengths(lengths)

    def forward(self, features: Tensor, lengths: Tensor) -> Encoded:
        """Map features (B, T, F) of so many frames (B,) to logits."""
        if 0 in features.shape[:2]:  # of nothing, which no convolution takes
            hidden = features.new_zeros(len(features), 0, self.trunk.width)
            return Encoded(self.output(hidden), torch.zeros_like(lengths), hidden)
        hidden, lengths = self.trunk(features, lengths)
        return Encoded(self.output(hidden), lengths, hidden)

    def describe(self) -> dict[str, Any]:
        """Return the dictionary from which `build_network` makes this encoder."""
        kind = next(name for name, known in _KINDS.items() if isinstance(self.config, known))
        return {"type": kind, **asdict(self.config)}


NetworkConfig = SparseConfig | RecurrentConfig

_KINDS: dict[str, type[SparseConfig] | type[RecurrentConfig]] = {
    "sparse": SparseConfig,
    "recurrent": RecurrentConfig,
}


def build_network(description: Mapping[str, Any], features: int, tokens: int) -> Network:
    """Make the encoder that ``describe()`` or a model's config describes.

    Raises
    ------
    RequestError
        if the type, a key or a value is not one of those allowed.
    """
    values = dict(description)
    name = values.pop("type", None)
    if name not in _KINDS:
        raise RequestError(f"encoder type {name!r}: choose from {', '.join(_KINDS)}")
    try:
        subsampling = SubsamplingConfig(**values.pop("subsampling", {}))
        config = _KINDS[name](subsampling=subsampling, **values)
    except TypeError as error:
        raise RequestError(f"encoder {name}: {error}") from error
    try:
        return Network(config, features, tokens)
    except KernelError as error:
        raise RequestError(f"encoder {name}, patterns: {error}") from error
