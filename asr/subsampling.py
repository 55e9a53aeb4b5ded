"""Convolutions that shorten the time axis before an encoder, in one piece or chunk by chunk.

Shapes: B utterances, T frames in, U = ceil(T / factor) frames out, F features, C channels,
d width of the encoder.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from speechkit.errors import RequestError

_KERNEL = 3
# frames in, in one piece, at inference: two minutes
_CHUNK_FRAMES = 12_000


@dataclass(frozen=True, kw_only=True)
class SubsamplingConfig:
    """Convolutions over time, and over features where these have an order.

    Parameters
    ----------
    kind
        "2d" convolves over time and bands, for spectrograms; "1d" over time alone, for cepstra and
        whatever else has no neighbours.
    factor
        frames in for a frame out: 1, 2, 4 or 8, a factor of 2 a convolution.
    channels
        of each convolution.
    """

    kind: Literal["1d", "2d"] = "2d"
    factor: int = 4
    channels: int = 64

    def __post_init__(self) -> None:
        if self.factor not in (1, 2, 4, 8):
            raise RequestError(f"factor {self.factor}: choose 1, 2, 4 or 8")
        if self.channels < 1:
            raise RequestError(f"channels {self.channels}: give 1 or more")

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride in time of each convolution; there are two at least."""
        halvings = self.factor.bit_length() - 1
        return (2,) * halvings + (1,) * max(0, 2 - halvings)


class Subsampling(nn.Module):
    """Two or more convolutions and a projection: (B, T, F) -> (B, U, d).

    What lies beyond an utterance's length has no influence.
    """

    def __init__(self, config: SubsamplingConfig, features: int, width: int) -> None:
        super().__init__()
        self.config = config
        self.convolutions = nn.ModuleList()
        into = 1 if config.kind == "2d" else features
        for stride in config.strides:
            self.convolutions.append(_convolution(config.kind, into, config.channels, stride))
            features = -(-features // stride)
            into = config.channels
        self.project = nn.Linear(into * features if config.kind == "2d" else into, width)

    @property
    def halo(self) -> int:
        """Frames in on either side that a frame out reads, rounded up to whole frames out."""
        reach, spacing = 0, 1
        for stride in self.config.strides:
            reach += _KERNEL // 2 * spacing
            spacing *= stride
        return -(-reach // self.config.factor) * self.config.factor

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Return how many frames come out of so many (B,)."""
        return -(-lengths // self.config.factor)

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, U, d) and its lengths (B,); without gradients, long input goes in chunks."""
        if torch.is_grad_enabled() or x.shape[1] <= _CHUNK_FRAMES:
            return self._whole(x, lengths), self.output_lengths(lengths)
        return self.in_chunks(x, lengths, frames=_CHUNK_FRAMES), self.output_lengths(lengths)

    def in_chunks(self, x: Tensor, lengths: Tensor, *, frames: int) -> Tensor:
        """Return what `forward` does, in memory bounded by chunks of so many frames in.

        Every chunk is read with the frames around it that its own depend on.
        """
        factor, halo = self.config.factor, self.halo
        frames = max(factor, frames // factor * factor)
        pieces = []
        for start in range(0, x.shape[1], frames):
            first = max(0, start - halo)
            piece = x[:, first : start + frames + halo]
            inside = (lengths - first).clamp(min=0, max=piece.shape[1])
            out = self._whole(piece, inside)
            skip = (start - first) // factor
            pieces.append(out[:, skip : skip + frames // factor])
        return torch.cat(pieces, dim=1)

    def _whole(self, x: Tensor, lengths: Tensor) -> Tensor:
        two_dimensional = self.config.kind == "2d"
        x = x[:, None] if two_dimensional else x.mT
        x = _masked(x, lengths)
        for convolution, stride in zip(self.convolutions, self.config.strides, strict=True):
            lengths = -(-lengths // stride)
            # gelu(0) is 0, and so is padding: what follows sees an utterance that ends here
            x = _masked(nn.functional.gelu(convolution(x)), lengths)
        return self.project(x.transpose(1, 2).flatten(2) if two_dimensional else x.mT)


def _convolution(kind: str, into: int, channels: int, stride: int) -> nn.Module:
    if kind == "1d":
        return nn.Conv1d(into, channels, _KERNEL, stride=stride, padding=_KERNEL // 2)
    return nn.Conv2d(into, channels, _KERNEL, stride=stride, padding=_KERNEL // 2)


def _masked(x: Tensor, lengths: Tensor) -> Tensor:
    """Set the frames of (B, C, T) or (B, C, T, F) beyond the lengths to 0."""
    outside = torch.arange(x.shape[2], device=x.device) >= lengths.to(x.device)[:, None]
    return x.masked_fill(outside.view(len(x), 1, x.shape[2], *(1,) * (x.ndim - 3)), 0.0)
