"""Per-channel energy normalisation (Wang et al. 2017, arXiv 1607.05666).

Each mel band is divided by a power of its own recent level, then compressed by a root. Shapes:
B streams, F frames, K bands.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from speechkit.frontend_base import Frontend
from speechkit.mel import MelConfig
from speechkit.ranges import require

# frames summed by one product with a triangular matrix
BLOCK_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class PcenConfig(MelConfig):
    """Per-channel energy normalisation with the constants of the paper.

    Parameters
    ----------
    s, alpha, delta, r, eps
        smoothing, gain, bias, root and floor (Wang et al. 2017, equation 1).
    trainable
        learn s, alpha, delta and r for each band, from these values on.
    """

    s: float = 0.025
    alpha: float = 0.98
    delta: float = 2.0
    r: float = 0.5
    eps: float = 1e-6
    trainable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self, "s", above=0, below=1)
        require(self, "alpha", "delta", "r", "eps", above=0)


class Pcen(Frontend):
    """Mel energies divided by their own recent level in each band, then compressed."""

    name = "pcen"
    config_type = PcenConfig

    def __init__(self, config: PcenConfig | None = None) -> None:
        config = config or PcenConfig()
        super().__init__(config)
        self._fixed = {"s": config.s, "alpha": config.alpha, "delta": config.delta, "r": config.r}
        self._eps = config.eps
        if config.trainable:
            self.s_logit = _parameter(math.log(config.s / (1 - config.s)), config.mels)
            self.log_alpha = _parameter(math.log(config.alpha), config.mels)
            self.log_delta = _parameter(math.log(config.delta), config.mels)
            self.log_r = _parameter(math.log(config.r), config.mels)
        self._trainable = config.trainable

    def constants(self) -> Mapping[str, float | Tensor]:
        """Return s, alpha, delta and r as they are now: numbers, or (K,) when they are trained."""
        if not self._trainable:
            return self._fixed
        return {
            "s": self.s_logit.sigmoid(),
            "alpha": self.log_alpha.exp(),
            "delta": self.log_delta.exp(),
            "r": self.log_r.exp(),
        }

    def features(self, energies: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return normalised energies, and the last level (B, K)."""
        constants = dict(self.constants())
        levels = smooth(energies, constants.pop("s"), carry=carry)
        last = levels[:, -1] if levels.shape[1] else carry
        return normalise(energies, levels, **constants, eps=self._eps), last


def smooth(energies: Tensor, s: float | Tensor, *, carry: Tensor | None = None) -> Tensor:
    """Return the running level M(t) = (1 - s) M(t-1) + s E(t) of energies (B, F, K).

    The recursion is unrolled by blocks (see `_decaying_sum`), so that it is exact and costs a few
    matrix products; `smooth_reference` is the same in a plain loop.

    Parameters
    ----------
    s
        one number in (0, 1) for all bands, or one a band (K,).
    carry
        M(-1) (B, K): the last level of the frames before these. At the start of a stream it is
        the first frame itself, so that M(0) = E(0).
    """
    if energies.shape[1] == 0:
        return energies
    return _decaying_sum(s * energies, 1 - s, energies[:, 0] if carry is None else carry)


def smooth_reference(energies: Tensor, s: float | Tensor, *, carry: Tensor | None = None) -> Tensor:
    """Return what `smooth` returns, frame by frame."""
    level = energies[:, 0] if carry is None else carry
    levels = []
    for frame in energies.unbind(1):
        level = (1 - s) * level + s * frame
        levels.append(level)
    return torch.stack(levels, dim=1)


def normalise(
    energies: Tensor,
    levels: Tensor,
    *,
    alpha: float | Tensor,
    delta: float | Tensor,
    r: float | Tensor,
    eps: float,
) -> Tensor:
    """Return (E / (eps + M)^alpha + delta)^r - delta^r (equation 1 of the paper)."""
    gained = energies * (eps + levels) ** -alpha
    return (gained + delta) ** r - delta**r


def _decaying_sum(x: Tensor, decay: float | Tensor, start: Tensor) -> Tensor:
    """Return y(t) = decay y(t-1) + x(t) with y(-1) = start, for one decay or one a band (K,).

    Within a block the sum is a product with the lower-triangular matrix decay^(i-j). What each
    block hands to the next obeys the same recursion with decay^block, over fewer steps.
    """
    batch, frames, bands = x.shape
    size = min(frames, BLOCK_FRAMES)
    count = -(-frames // size)
    padded = F.pad(x, (0, 0, 0, count * size - frames))
    blocks = padded.reshape(batch, count, size, bands)
    if isinstance(decay, Tensor):
        triangle, fading = _powers(decay, size)
    else:
        fixed = _fixed_powers(decay, size)
        triangle, fading = (torch.as_tensor(p, dtype=x.dtype, device=x.device) for p in fixed)
    product = "ij,bnjk->bnik" if triangle.ndim == 2 else "kij,bnjk->bnik"
    within = torch.einsum(product, triangle, blocks)
    carries = start[:, None]
    if count > 1:
        handed_on = _decaying_sum(within[:, :-1, -1], decay**size, start)
        carries = torch.cat([carries, handed_on], dim=1)
    return (within + fading * carries[:, :, None]).flatten(1, 2)[:, :frames]


def _powers(decay: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return decay^(i-j) for j <= i, else 0, ([K,] size, size), and decay^(i+1) (size, 1 or K)."""
    step = torch.arange(size, device=decay.device)
    triangle = (decay[..., None, None] ** (step[:, None] - step).clamp(min=0)).tril()
    return triangle, decay ** (step[:, None] + 1)


# on a stream of short chunks the powers would cost more than the sums; arrays, since a tensor that
# was made in inference mode, or while a graph is traced, could not be used elsewhere
@functools.lru_cache(maxsize=4 * BLOCK_FRAMES)
def _fixed_powers(decay: float, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    step = np.arange(size, dtype=np.float64)
    triangle = np.tril(decay ** (step[:, None] - step).clip(min=0))
    return triangle, np.power(decay, step[:, None] + 1.0)


def _parameter(value: float, bands: int) -> nn.Parameter:
    return nn.Parameter(torch.full((bands,), value))
