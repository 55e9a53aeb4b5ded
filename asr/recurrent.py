"""The recurrent encoder: two convolutions over time and bands, bidirectional GRUs, a projection.

The family of Deep Speech 2 (Amodei et al. 2016), which Huang et al. 2016 score by expected gradient
length. Layers are normalised over features (Ba et al. 2016) rather than over the batch, so that an
utterance is encoded alike in any company.

Shapes: B utterances, T frames in, U frames out, d width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechkit.asr.subsampling import Subsampling, SubsamplingConfig
from speechkit.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig:
    """Size of the recurrent encoder.

    Parameters
    ----------
    subsampling
        the convolutions before it.
    layers, units
        bidirectional GRU layers, and units of each direction.
    width
        of the projection before the output layer.
    dropout
        before each layer, in training.
    """

    subsampling: SubsamplingConfig = SubsamplingConfig(factor=2, channels=32)
    layers: int = 7
    units: int = 256
    width: int = 256
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if min(self.layers, self.units, self.width) < 1:
            raise RequestError(
                f"layers {self.layers}, units {self.units}, width {self.width}: give 1 or more"
            )
        if not 0 <= self.dropout < 1:
            raise RequestError(f"dropout {self.dropout}: give 0 or more, and less than 1")


class RecurrentTrunk(nn.Module):
    """Features (B, T, F) -> hidden (B, U, d)."""

    # its cost grows with length alone
    in_one_pass = True

    def __init__(self, config: RecurrentConfig, features: int) -> None:
        super().__init__()
        self.config = config
        self.width = config.width
        self.subsampling = Subsampling(config.subsampling, features, config.units)
        sizes = [config.units, *[2 * config.units] * (config.layers - 1)]
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in sizes)
        self.layers = nn.ModuleList(
            nn.GRU(size, config.units, batch_first=True, bidirectional=True) for size in sizes
        )
        self.dropout = nn.Dropout(config.dropout)
        self.project = nn.Sequential(nn.Linear(2 * config.units, config.width), nn.GELU())

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return hidden states (B, U, d) and their lengths (B,)."""
        x, lengths = self.subsampling(x, lengths)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = _recur(layer, self.dropout(norm(x)), lengths)
        return self.project(x), lengths


def _recur(layer: nn.Module, x: Tensor, lengths: Tensor) -> Tensor:
    """Run a bidirectional layer over (B, U, d) so that it turns round at each utterance's end."""
    # an empty utterance is given one frame, which nobody reads
    counts = lengths.clamp(min=1).cpu()
    packed = pack_padded_sequence(x, counts, batch_first=True, enforce_sorted=False)
    out: Tensor
    out, _ = pad_packed_sequence(layer(packed)[0], batch_first=True, total_length=x.shape[1])
    return torch.where(lengths.to(x.device).view(-1, 1, 1) > 0, out, 0.0)
