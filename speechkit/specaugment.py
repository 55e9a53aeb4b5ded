"""SpecAugment: stripes of a spectrogram masked, its time axis warped (Park et al. 2019, 2020).

What an utterance gets depends on its seed and length alone, not on the batch it comes in. Shapes:
B utterances, T frames, D features.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from speechkit.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class SpecAugmentConfig:
    """How much is masked and warped.

    Parameters
    ----------
    frequency_masks, frequency_share
        stripes of bands in each utterance, and the widest as a share of the bands.
    time_masks, time_width, time_share
        stripes of frames in each utterance, the widest, and the widest as a share of the
        utterance, so that a short one keeps its words.
    warp
        a place in the utterance is moved by so many frames at most, and what lies on either side
        is stretched or compressed; 0 for none.
    """

    frequency_masks: int = 2
    frequency_share: float = 0.3
    time_masks: int = 2
    time_width: int = 40
    time_share: float = 0.15
    warp: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name.endswith("_share") and not 0 <= value <= 1:
                raise RequestError(f"{name} {value}: give a share of 0 to 1")
            if value < 0:
                raise RequestError(f"{name} {value}: give 0 or more")


def spec_augment(
    features: Tensor,
    lengths: Tensor,
    *,
    seeds: Sequence[int],
    config: SpecAugmentConfig = SpecAugmentConfig(),
    repeats: int = 1,
) -> Tensor:
    """Return features (B, T, D) warped and masked; masks are 0, the mean of normalised features.

    Parameters
    ----------
    lengths
        (B,) frames; those beyond are left as they are.
    seeds
        one an utterance, such as ``seed_of(run_seed, epoch, cut.id)``.
    repeats
        how many times the D features hold the same bands, as with deltas: the stripes of
        frequency are the same in each.
    """
    frames, dimensions = features.shape[1:]
    if len(seeds) != len(features) or dimensions % repeats:
        raise RequestError(
            f"{len(seeds)} seeds and {repeats} repeats for features of shape "
            f"{tuple(features.shape)}: give a seed each, and a divisor of the last"
        )
    bands = dimensions // repeats
    highest = int(config.frequency_share * bands)
    moves, keep_time, keep_band = [], [], []
    for seed, length in zip(seeds, lengths.tolist(), strict=True):
        rng = np.random.default_rng(seed)
        moves.append(_draw_warp(rng, length, config.warp))
        widest = min(config.time_width, int(config.time_share * length))
        keep_time.append(_draw_stripes(rng, (frames, length), config.time_masks, widest))
        keep_band.append(_draw_stripes(rng, (bands, bands), config.frequency_masks, highest))
    if any(to != place for place, to in moves):
        features = _warp(features, lengths, moves)
    in_time = torch.from_numpy(np.stack(keep_time)).to(features.device)[:, :, None]
    in_band = torch.from_numpy(np.stack(keep_band)).to(features.device).repeat(1, repeats)[:, None]
    outside = torch.arange(frames, device=features.device) >= lengths.to(features.device)[:, None]
    return features.masked_fill(~(in_time & (in_band | outside[:, :, None])), 0.0)


def change_speed(features: Tensor, factor: float) -> Tensor:
    """Return features (T, D) of speech ``factor`` times as fast, (T / factor rounded, D).

    Frames are interpolated linearly, so rhythm changes, and pitch does not; for audio there is
    `speechkit.augment.change_speed`.
    """
    if not factor > 0:
        raise RequestError(f"speed {factor}: must be positive")
    if factor == 1.0 or len(features) == 0:
        return features
    frames = max(1, round(len(features) / factor))
    return functional.interpolate(
        features.T[None], size=frames, mode="linear", align_corners=False
    )[0].T.contiguous()


def _draw_stripes(
    rng: np.random.Generator, extent: tuple[int, int], count: int, widest: int
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return a mask over the axis, False in ``count`` stripes of 0 to ``widest``.

    ``extent`` is the size of the axis, and how much of it the stripes may lie in.
    """
    size, length = extent
    keep = np.ones(size, dtype=np.bool_)
    for _ in range(count):
        width = int(rng.integers(min(widest, length) + 1))
        start = int(rng.integers(length - width + 1))
        keep[start : start + width] = False
    return keep


def _draw_warp(rng: np.random.Generator, length: int, widest: int) -> tuple[int, int]:
    """Return a frame and where it goes; both lie far enough inside for either side to remain."""
    reach = min(widest, (length - 1) // 3)
    if reach < 1:
        return 0, 0
    place = int(rng.integers(reach + 1, length - reach))
    return place, place + int(rng.integers(-reach, reach + 1))


def _warp(features: Tensor, lengths: Tensor, moves: Sequence[tuple[int, int]]) -> Tensor:
    """Bend the time axis of each utterance so that frame ``place`` comes to lie at ``to``."""
    device = features.device
    last = (lengths.to(device) - 1).clamp(min=0)[:, None].float()
    place, to = torch.tensor(moves, device=device, dtype=torch.float32).T[:, :, None]
    frame = torch.arange(features.shape[1], device=device)[None].float()
    before = frame * place / to.clamp(min=1)
    after = place + (frame - to) * (last - place) / (last - to).clamp(min=1)
    source = torch.where(frame < to, before, after)
    # an utterance that stays, and padding, are read as they are
    source = torch.where((to == place) | (frame > last), frame, source)
    low = source.floor()
    share = (source - low)[..., None].to(features)
    lower = low.long()
    upper = (lower + 1).clamp(max=features.shape[1] - 1)
    return _rows(features, lower) * (1 - share) + _rows(features, upper) * share


def _rows(features: Tensor, index: Tensor) -> Tensor:
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[2]))
