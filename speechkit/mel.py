"""Mel energies: overlapping frames, windowed power spectra, triangular bands.

Shapes: B streams, N samples, F frames, W samples a window, K mel bands. Energies are at the scale
of int16 samples, so that a constant such as an epsilon means the same for every front-end.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from speechkit.audio import INT16_SCALE, SAMPLE_RATE
from speechkit.errors import RequestError

# an omitted value that depends on the other fields; the finished config always holds the number
AUTO: Any = None

KALDI_PREEMPHASIS = 0.97
KALDI_WINDOW_POWER = 0.85

# rows of spectra computed at once: few enough to stay in a CPU's cache, many enough to fill a GPU
_CPU_SLAB_FRAMES = 2_048
_GPU_SLAB_FRAMES = 65_536

Count = TypeVar("Count", int, Tensor)


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Framing and mel bands; the defaults are those of the keyword-spotting paper.

    Centred framing (the default): frame t covers the samples [t hop - W/2, t hop + W/2), with
    zeros beyond both ends, under a Hann window; N > 0 samples give 1 + N // hop frames.
    Kaldi framing: only whole windows, each with its mean removed, pre-emphasised and under Kaldi's
    "povey" window; 1 + (N - W) // hop frames.

    Parameters
    ----------
    fft_size
        the power of two that holds the window unless given.
    low_hz, high_hz
        60 and 7600 (at most half the sample rate) unless given; 20 and half the rate for Kaldi.
    mel_scale, mel_norm
        "slaney" with "slaney" is librosa's default, "htk" with "none" the classical form.
    kaldi
        follow Kaldi in framing and in its triangles, which are linear in mel, not in Hz.

    Raises
    ------
    RequestError
        if a window or hop is no whole number of samples, or a value is outside its range.
    """

    sample_rate: int = SAMPLE_RATE
    window_s: float = 0.025
    hop_s: float = 0.010
    fft_size: int = AUTO

    mels: int = 40
    low_hz: float = AUTO
    high_hz: float = AUTO
    mel_scale: Literal["htk", "slaney"] = "htk"
    mel_norm: Literal["none", "slaney"] = "none"

    kaldi: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate <= 0:
            raise RequestError(f"sample_rate {self.sample_rate}: must be positive")
        nyquist_hz = self.sample_rate / 2
        self._fill("fft_size", 1 << max(0, self.window_samples - 1).bit_length())
        self._fill("low_hz", 20.0 if self.kaldi else 60.0)
        self._fill("high_hz", nyquist_hz if self.kaldi else min(7600.0, nyquist_hz))
        self._check_framing()
        self._check_bands()

    def _fill(self, field: str, value: float) -> None:
        if getattr(self, field) is AUTO:
            object.__setattr__(self, field, value)

    def _check_framing(self) -> None:
        if not 0 < self.hop_samples <= self.window_samples:
            raise RequestError(
                f"hop_s {self.hop_s} with window_s {self.window_s}: the hop must be positive and "
                "no longer than the window"
            )
        if self.fft_size < self.window_samples:
            raise RequestError(
                f"fft_size {self.fft_size}: must hold the window of {self.window_samples} samples"
            )

    def _check_bands(self) -> None:
        nyquist_hz = self.sample_rate / 2
        if not 0 <= self.low_hz < self.high_hz <= nyquist_hz:
            raise RequestError(
                f"low_hz {self.low_hz} and high_hz {self.high_hz}: must rise within 0 to "
                f"{nyquist_hz:g} Hz, half the sample rate"
            )
        if self.mels < 1:
            raise RequestError(f"mels {self.mels}: give at least 1")
        if self.mel_scale not in _MEL_SCALES or self.mel_norm not in ("none", "slaney"):
            raise RequestError(
                f"mel_scale {self.mel_scale!r} with mel_norm {self.mel_norm!r}: choose the scale "
                "from htk, slaney and the norm from none, slaney"
            )
        if self.kaldi and (self.mel_scale, self.mel_norm) != ("htk", "none"):
            raise RequestError(
                f"mel_scale {self.mel_scale!r} with mel_norm {self.mel_norm!r}: kaldi goes with "
                "htk and none only"
            )

    @property
    def window_samples(self) -> int:
        """Samples a window."""
        return _whole_samples("window_s", self.window_s, self.sample_rate)

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return _whole_samples("hop_s", self.hop_s, self.sample_rate)

    @property
    def lead_samples(self) -> int:
        """Zeros before the first sample."""
        return 0 if self.kaldi else self.window_samples // 2

    def frame_count(self, samples: Count) -> Count:
        """Return the frames of so many samples; a number or a tensor of numbers."""
        needed = self.window_samples if self.kaldi else 1
        counted = self.window_samples if self.kaldi else 0
        return (1 + (samples - counted) // self.hop_samples) * (samples >= needed)

    def span_samples(self, frames: int) -> int:
        """Return the samples from the start of one frame to the end of the last of ``frames``."""
        return (frames - 1) * self.hop_samples + self.window_samples if frames else 0


class MelEnergies(nn.Module):
    """Mel energies (B, F, K) of every whole window in a span of samples (B, N).

    Parameters
    ----------
    frame_energy
        append a column: the energy of the frame itself, before pre-emphasis and window.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: MelConfig, *, frame_energy: bool = False) -> None:
        super().__init__()
        self.config = config
        self.frame_energy = frame_energy
        # both follow from the config, so that a checkpoint need not hold them
        self.register_buffer("window", _window(config).float(), persistent=False)
        self.register_buffer("filters", mel_filters(config).float(), persistent=False)

    @property
    def columns(self) -> int:
        """Columns of the result: the bands, and the frame energy if asked for."""
        return self.config.mels + self.frame_energy

    def forward(self, span: Tensor) -> Tensor:
        """Return the energies; the memory in use is bounded, however long the span."""
        config = self.config
        if span.shape[0] == 0 or span.shape[1] < config.window_samples:
            return span.new_zeros(span.shape[0], 0, self.columns)
        frames = span.unfold(1, config.window_samples, config.hop_samples)
        at_once = _CPU_SLAB_FRAMES if span.device.type == "cpu" else _GPU_SLAB_FRAMES
        slabs = torch.split(frames, max(1, at_once // span.shape[0]), dim=1)
        return torch.cat([self._energies(slab) for slab in slabs], dim=1)

    def _energies(self, frames: Tensor) -> Tensor:
        """Return the energies (B, F, columns) of frames (B, F, W)."""
        if self.config.kaldi:
            frames = frames - frames.mean(-1, keepdim=True)
        windowed = (_preemphasise(frames) if self.config.kaldi else frames) * self.window
        spectrum = torch.fft.rfft(windowed, n=self.config.fft_size)
        energies = (spectrum.real.square() + spectrum.imag.square()) @ self.filters
        if not self.frame_energy:
            return energies
        frame_energy = (frames * INT16_SCALE).square().sum(-1, keepdim=True)
        return torch.cat([energies, frame_energy], dim=-1)


def mel_filters(config: MelConfig) -> Tensor:
    """Return the weights (FFT bins, K) in float64 of triangles equally spaced in mel.

    Raises
    ------
    RequestError
        if a triangle is so narrow that it holds no FFT bin.
    """
    to_mel, to_hz = _MEL_SCALES[config.mel_scale]
    bins = torch.arange(config.fft_size // 2 + 1, dtype=torch.float64)
    bins_hz = bins * config.sample_rate / config.fft_size
    low, high = to_mel(torch.tensor([config.low_hz, config.high_hz], dtype=torch.float64)).tolist()
    corners_mel = torch.linspace(low, high, config.mels + 2, dtype=torch.float64)
    corners_hz = to_hz(corners_mel)
    x, corners = (to_mel(bins_hz), corners_mel) if config.kaldi else (bins_hz, corners_hz)
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]
    rising = (x[:, None] - left) / (centre - left)
    falling = (right - x[:, None]) / (right - centre)
    weights = torch.minimum(rising, falling).clamp(min=0)
    _refuse_empty(weights, corners_hz, config)
    if config.mel_norm == "slaney":
        weights = weights * 2 / (corners_hz[2:] - corners_hz[:-2])
    return weights


def _refuse_empty(weights: Tensor, corners_hz: Tensor, config: MelConfig) -> None:
    empty = (weights.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        band = empty[0]
        raise RequestError(
            f"mels {config.mels}: band {band} ({corners_hz[band]:.0f} to "
            f"{corners_hz[band + 2]:.0f} Hz) holds no bin of an FFT of {config.fft_size}: "
            "give fewer mels or a larger fft_size"
        )


def _window(config: MelConfig) -> Tensor:
    """Return the window in float64, with the scale of int16 folded in."""
    hann = torch.hann_window(config.window_samples, periodic=not config.kaldi, dtype=torch.float64)
    return (hann**KALDI_WINDOW_POWER if config.kaldi else hann) * INT16_SCALE


def _preemphasise(frames: Tensor) -> Tensor:
    """Return x(i) - 0.97 x(i-1) within each frame; Kaldi lets x(-1) be x(0)."""
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    return frames - KALDI_PREEMPHASIS * previous


def _whole_samples(name: str, seconds: float, sample_rate: int) -> int:
    samples = seconds * sample_rate
    # a decimal fraction of a second is rarely exact in binary
    if not math.isfinite(samples) or abs(samples - round(samples)) > 1e-6:
        raise RequestError(
            f"{name} {seconds} at {sample_rate} Hz is {samples:g} samples: give a duration that "
            "is a whole number of samples"
        )
    return round(samples)


def _htk_mel(hz: Tensor) -> Tensor:
    return 2595 * torch.log10(1 + hz / 700)


def _htk_hz(mel: Tensor) -> Tensor:
    return 700 * (10 ** (mel / 2595) - 1)


# Slaney's Auditory Toolbox: 200/3 Hz a mel up to 1 kHz, then 27 mels for a factor of 6.4
_SLANEY_HZ_A_MEL = 200 / 3
_SLANEY_KNEE_HZ = 1000.0
_SLANEY_KNEE_MEL = _SLANEY_KNEE_HZ / _SLANEY_HZ_A_MEL
_SLANEY_LOG_STEP = math.log(6.4) / 27


def _slaney_mel(hz: Tensor) -> Tensor:
    above = torch.log(hz.clamp(min=_SLANEY_KNEE_HZ) / _SLANEY_KNEE_HZ) / _SLANEY_LOG_STEP
    return torch.where(hz < _SLANEY_KNEE_HZ, hz / _SLANEY_HZ_A_MEL, _SLANEY_KNEE_MEL + above)


def _slaney_hz(mel: Tensor) -> Tensor:
    above = _SLANEY_KNEE_HZ * torch.exp(_SLANEY_LOG_STEP * (mel - _SLANEY_KNEE_MEL))
    return torch.where(mel < _SLANEY_KNEE_MEL, mel * _SLANEY_HZ_A_MEL, above)


_MEL_SCALES = {"htk": (_htk_mel, _htk_hz), "slaney": (_slaney_mel, _slaney_hz)}
