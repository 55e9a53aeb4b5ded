"""What a recogniser gets: features of audio or features already computed, deltas, normalisation.

Shapes: B utterances, N samples, T frames, F features in, D features out (F for each order of
deltas). What lies beyond an utterance's length does not count, and comes out as 0.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from lhotse.cut import Cut
from torch import Tensor, nn
from torch.nn import functional

from speechkit import frontend as frontends
from speechkit.audio import load_cut
from speechkit.errors import AudioError, RequestError
from speechkit.manifests import speaker_of
from speechkit.stored_features import StoredFeatures, load_features

# a feature that hardly changes is not blown up
_SMALLEST_DEVIATION = 1e-5
_HIGHEST_ORDER = 2
# of a sample or frame, in what should be whole numbers of them
_ROUNDING = 1e-6
_STORED_WINDOW_S = 0.025


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """What happens to features before the network.

    Parameters
    ----------
    deltas
        order of differences to append: 0 none, 1 velocities, 2 accelerations too.
    delta_window
        frames on either side that a difference is fitted to.
    normalisation
        mean 0 and variance 1 of every feature over each utterance, or over the speaker's
        utterances (over the utterance where the speaker is not known), or none.
    """

    deltas: int = 0
    delta_window: int = 2
    normalisation: Literal["none", "utterance", "speaker"] = "utterance"

    def __post_init__(self) -> None:
        if not 0 <= self.deltas <= _HIGHEST_ORDER:
            raise RequestError(f"deltas {self.deltas}: give an order of 0 to {_HIGHEST_ORDER}")
        if self.delta_window < 1:
            raise RequestError(f"delta_window {self.delta_window}: give 1 or more frames")
        if self.normalisation not in ("none", "utterance", "speaker"):
            raise RequestError(
                f"normalisation {self.normalisation!r}: choose none, utterance or speaker"
            )


@dataclass(frozen=True)
class Statistics:
    """Mean and deviation of every feature: (D,) float32 of each speaker."""

    of: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def __contains__(self, speaker: str | None) -> bool:
        return speaker is not None and speaker in self.of


class Inputs(nn.Module):
    """Audio or stored features in, what the network reads out.

    Parameters
    ----------
    source
        a front-end, whose parameters (if it learns) are part of this module; or the form of
        features that are stored with the cuts.
    """

    def __init__(
        self, source: frontends.Frontend | StoredFeatures, config: InputConfig = InputConfig()
    ) -> None:
        super().__init__()
        self.config = config
        self.frontend = source if isinstance(source, frontends.Frontend) else None
        self.stored = source if isinstance(source, StoredFeatures) else None

    @property
    def bands(self) -> int:
        """F: features a frame before deltas."""
        return self.frontend.bands if self.frontend is not None else self._stored.bands

    @property
    def dimensions(self) -> int:
        """D: features a frame that come out."""
        return self.bands * (1 + self.config.deltas)

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next."""
        if self.frontend is None:
            return self._stored.hop_s
        return self.frontend.hop_samples / self.frontend.config.sample_rate

    @property
    def first_frame_s(self) -> float:
        """The middle of the first frame.

        Stored features do not say it: windows of 25 ms from the recording's start on are assumed.
        """
        if self.frontend is None:
            return _STORED_WINDOW_S / 2
        return self.frontend.centre_samples / self.frontend.config.sample_rate

    @property
    def _stored(self) -> StoredFeatures:
        assert self.stored is not None
        return self.stored

    def frame_count(self, cut: Cut, *, speed: float = 1.0) -> int:
        """Return the frames of a cut that is played so many times as fast, at the least."""
        if self.frontend is None:
            return math.floor(cut.num_frames / speed + 0.5 - _ROUNDING)
        config = self.frontend.config
        samples = cut.duration * config.sample_rate / speed
        return int(config.frame_count(math.floor(samples + _ROUNDING)))

    def require(self, cuts: Iterable[Cut]) -> None:
        """Refuse cuts that these inputs cannot be for, before any work.

        Raises
        ------
        RequestError
            if inputs are stored features, and a cut has none.
        """
        bare = [] if self.stored is None else [cut.id for cut in cuts if not cut.has_features]
        if bare:
            raise RequestError(
                f"{len(bare)} cuts have no features ({bare[0]}), which the model reads in place of "
                "audio; leave them out"
            )

    def load(self, cut: Cut) -> Tensor:
        """Return what `forward` takes of one cut: audio (N,), or features (T, F), float32.

        Raises
        ------
        AudioError
            if the audio or the features are missing, cannot be read, or hold NaN.
        RequestError
            if stored features are not of the form that these inputs are for.
        """
        if self.frontend is not None:
            samples = load_cut(cut, sample_rate=self.frontend.config.sample_rate)
            return torch.from_numpy(samples)
        return load_features(cut, self._stored)

    def forward(
        self,
        x: Tensor,
        lengths: Tensor,
        *,
        speakers: Sequence[str | None] | None = None,
        statistics: Statistics = Statistics(),
    ) -> tuple[Tensor, Tensor]:
        """Return features (B, T, D), float32, and their lengths (B,).

        Parameters
        ----------
        x
            audio (B, N) in [-1, 1], or stored features (B, T, F).
        lengths
            (B,) samples or frames of each.
        speakers, statistics
            whose utterances they are, and what `measure_speakers` found; read where normalisation
            is by speaker.
        """
        features, lengths = self._with_deltas(x, lengths)
        inside = _inside(features, lengths)
        if self.config.normalisation != "none":
            mean, deviation = _moments(features, inside)
            if self.config.normalisation == "speaker" and speakers is not None:
                mean, deviation = _of_speakers(mean, deviation, speakers, statistics)
            features = (features - mean[:, None]) / deviation[:, None]
        return torch.where(inside, features, 0.0), lengths

    @torch.no_grad()
    def measure_speakers(self, cuts: Iterable[Cut]) -> Statistics:
        """Return the statistics of every speaker of some cuts; none unless normalised by speaker.

        One cut is in memory at a time. Cuts without a speaker are passed over, and so are those
        that cannot be read: whoever needs them says so.
        """
        if self.config.normalisation != "speaker":
            return Statistics()
        sums: dict[str, _Sums] = {}
        device = next((b.device for b in self.buffers()), torch.device("cpu"))
        for cut in cuts:
            speaker = speaker_of(cut)
            if speaker is None:
                continue
            try:
                x = self.load(cut)[None].to(device)
            except AudioError:
                continue
            features, lengths = self._with_deltas(x, torch.tensor([x.shape[1]], device=device))
            sums.setdefault(speaker, _Sums()).add(features[0, : int(lengths[0])])
        return Statistics({name: one.moments() for name, one in sums.items() if one.frames})

    def describe(self) -> dict[str, Any]:
        """Return the dictionary from which `build` makes these inputs."""
        return {
            "frontend": None if self.frontend is None else self.frontend.describe(),
            "stored": None if self.stored is None else asdict(self.stored),
            **asdict(self.config),
        }

    def _with_deltas(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        if self.frontend is not None:
            x, lengths = self.frontend(x, lengths)
        elif x.ndim != 3 or x.shape[-1] != self.bands:
            raise RequestError(
                f"features of shape {tuple(x.shape)}: must be (batch, frames, {self.bands})"
            )
        parts = [x.float()]
        for _ in range(self.config.deltas):
            parts.append(deltas(parts[-1], lengths, window=self.config.delta_window))
        return torch.cat(parts, dim=-1), lengths


def build(description: Mapping[str, Any]) -> Inputs:
    """Make the inputs that ``describe()`` or a model's config describes.

    Raises
    ------
    RequestError
        if a key or value is not one of those allowed, or not one source of features is given.
    """
    values = dict(description)
    frontend, stored = values.pop("frontend", None), values.pop("stored", None)
    allowed = [one.name for one in fields(InputConfig)]
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        raise RequestError(
            f"inputs: unknown {', '.join(unknown)}; allowed are frontend, stored, "
            f"{', '.join(allowed)}"
        )
    if (frontend is None) == (stored is None):
        raise RequestError("inputs: give either a frontend or the form of stored features")
    try:
        config = InputConfig(**values)
        source = frontends.build(frontend) if stored is None else StoredFeatures(**stored)
    except TypeError as error:
        raise RequestError(f"inputs {dict(description)!r}: {error}") from error
    return Inputs(source, config)


def pad(pieces: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return what `Inputs.load` gave of several cuts as a batch padded with 0, and lengths (B,)."""
    lengths = torch.tensor([len(piece) for piece in pieces])
    return nn.utils.rnn.pad_sequence(list(pieces), batch_first=True), lengths


def deltas(x: Tensor, lengths: Tensor, *, window: int = 2) -> Tensor:
    """Return the slopes (B, T, F) of features, of the line fitted to ``2 window + 1`` frames.

    d_t = sum_k k (x_{t+k} - x_{t-k}) / (2 sum_k k^2) for k = 1 to the window, the first and the
    last frame being repeated beyond the ends (HTK Book, section 5.9). Frames beyond a length are
    of no meaning.
    """
    if x.shape[1] == 0:
        return x
    last = (lengths.to(x.device) - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
    held = torch.where(_inside(x, lengths), x, x.gather(1, last))
    wide = functional.pad(held.mT, (window, window), mode="replicate").mT
    frames = x.shape[1]
    slope = torch.zeros_like(x)
    for k in range(1, window + 1):
        later, earlier = wide[:, window + k :], wide[:, window - k :]
        slope = slope + k * (later[:, :frames] - earlier[:, :frames])
    return slope / (2 * sum(k * k for k in range(1, window + 1)))


class _Sums:
    """Running count, mean and squared deviations of features, in float64."""

    def __init__(self) -> None:
        self.frames = 0
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, features: Tensor) -> None:
        """Take frames (T, D) into account (pairwise update, Chan et al. 1979)."""
        if len(features) == 0:
            return
        values = features.double()
        mean = values.mean(dim=0)
        step = mean - self.mean
        total = self.frames + len(values)
        self.squares = (
            self.squares
            + (values - mean).square().sum(dim=0)
            + step.square() * (self.frames * len(values) / total)
        )
        self.mean = self.mean + step * (len(values) / total)
        self.frames = total

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and deviation (D,), float32."""
        mean = torch.as_tensor(self.mean)
        variance = torch.as_tensor(self.squares) / max(self.frames, 1)
        return mean.float(), _deviation(variance).float()


def _moments(x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and deviation (B, D) over the frames inside each utterance, float32.

    Sums are in float64, of a tensor that stays in float32, since it may be an hour long. The mean
    of a constant is exact, so that a constant feature becomes 0.
    """
    frames = inside.sum(dim=1).clamp(min=1).double()
    mean = torch.where(inside, x, 0.0).sum(dim=1, dtype=torch.float64) / frames
    centred = torch.where(inside, x - mean.float()[:, None], 0.0)
    variance = centred.square().sum(dim=1, dtype=torch.float64) / frames
    return mean.float(), _deviation(variance).float()


def _deviation(variance: Tensor) -> Tensor:
    # before the root, whose gradient at 0 is infinite
    return variance.clamp(min=_SMALLEST_DEVIATION**2).sqrt()


def _of_speakers(
    mean: Tensor, deviation: Tensor, speakers: Sequence[str | None], statistics: Statistics
) -> tuple[Tensor, Tensor]:
    """Replace the utterance's own moments (B, D) by the speaker's where they are known."""
    if len(speakers) != len(mean):
        raise RequestError(f"{len(speakers)} speakers for {len(mean)} utterances: give one each")
    pairs = [
        statistics.of[name] if name is not None and name in statistics else (mean[i], deviation[i])
        for i, name in enumerate(speakers)
    ]
    if not pairs:
        return mean, deviation
    means, deviations = zip(*pairs, strict=True)
    return (
        torch.stack([one.to(mean) for one in means]),
        torch.stack([one.to(mean) for one in deviations]),
    )


def _inside(x: Tensor, lengths: Tensor) -> Tensor:
    """Return (B, T, 1): which frames of x (B, T, ...) lie within the lengths."""
    steps = torch.arange(x.shape[1], device=x.device)
    return (steps < lengths.to(x.device)[:, None])[..., None]
