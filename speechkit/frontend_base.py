"""What every front-end shares: frames and lengths, the config, and the streaming twin."""

from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from speechkit.audio import StreamResampler, as_float
from speechkit.errors import RequestError
from speechkit.mel import MelConfig, MelEnergies

Chunk = Tensor | NDArray[Any]


class Frontend(nn.Module, ABC):
    """What all front-ends share: framing, lengths, the config and the stream.

    A front-end gives its `name`, its `config_type` and `features`.
    """

    name: ClassVar[str]
    config_type: ClassVar[type[MelConfig]]

    def __init__(self, config: MelConfig, *, frame_energy: bool = False) -> None:
        super().__init__()
        self.config = config
        self.mel = MelEnergies(config, frame_energy=frame_energy)

    @property
    def bands(self) -> int:
        """Features a frame."""
        return self.config.mels

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return self.config.hop_samples

    @property
    def centre_samples(self) -> int:
        """Sample at the centre of frame 0: 0 when frames are centred, W // 2 for Kaldi."""
        return self.config.window_samples // 2 - self.config.lead_samples

    @property
    def lookahead_samples(self) -> int:
        """Samples from the centre of a frame on that the frame needs."""
        return self.config.window_samples - self.config.window_samples // 2

    @abstractmethod
    def features(self, energies: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the features (B, F, bands) of mel energies, and what the next frames need.

        ``carry`` is None at the start of a stream, else what came back for the frames before.
        """

    def forward(self, audio: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return features (B, frames, bands) and frame lengths (B,).

        Parameters
        ----------
        audio
            (B, samples), floats in [-1, 1] at the rate of the config.
        lengths
            (B,), samples of each; all of them when None.
        """
        _check_audio(audio, lengths)
        audio = audio.to(self.mel.window.dtype)
        if lengths is not None:
            audio = torch.where(_before(lengths, audio), audio, 0)
        frames = self.config.frame_count(audio.shape[1])
        lead = self.config.lead_samples
        tail = max(0, self.config.span_samples(frames) - lead - audio.shape[1])
        features, _ = self.complete(F.pad(audio, (lead, tail)), None)
        if lengths is None:
            return features, torch.full((len(audio),), frames, device=audio.device)
        frame_lengths = self.config.frame_count(lengths)
        return torch.where(_before(frame_lengths, features)[..., None], features, 0), frame_lengths

    def complete(self, span: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the features of every whole window in a span (B, N), and what is carried on."""
        # half precision would spoil energies, which span many decades
        with torch.autocast(span.device.type, enabled=False):
            return self.features(self.mel(span), carry)

    def stream(self, *, sample_rate: int | None = None) -> "FrontendStream":
        """Return the streaming twin, for chunks at ``sample_rate`` (that of the config)."""
        return FrontendStream(self, sample_rate=sample_rate)

    def describe(self) -> dict[str, Any]:
        """Return the dictionary from which `build` makes this front-end."""
        return {"type": self.name, **asdict(self.config)}


class FrontendStream:
    """A front-end on a stream: the offline frames, as soon as their samples are there.

    It holds less than a window and a hop of samples, and what the front-end carries. Nothing is
    recorded for gradients.
    """

    def __init__(self, frontend: Frontend, *, sample_rate: int | None = None) -> None:
        self.frontend = frontend
        self.sample_rate = frontend.config.sample_rate if sample_rate is None else sample_rate
        self.reset()

    def reset(self) -> None:
        """Forget the stream; the next chunk begins another."""
        config = self.frontend.config
        self._resampler = StreamResampler(self.sample_rate, config.sample_rate)
        self._held = self.frontend.mel.window.new_zeros(config.lead_samples)
        self._carry: Tensor | None = None
        self._samples = 0
        self._frames = 0

    def push(self, chunk: Chunk) -> Tensor:
        """Take samples (any number of them); return the frames (F, bands) now complete.

        Raises
        ------
        AudioError
            if the chunk is not one-dimensional, is no audio, or holds NaN.
        """
        if isinstance(chunk, Tensor):
            chunk = chunk.detach().cpu()
            # NumPy lacks some of torch's floats
            chunk = (chunk.float() if chunk.is_floating_point() else chunk).numpy()
        samples = as_float(chunk)
        return self._take(self._resampler.push(samples))

    def flush(self) -> Tensor:
        """Return the last frames (F, bands), those that reach beyond the end; then reset."""
        config = self.frontend.config
        done = [self._take(self._resampler.flush())]
        missing = config.frame_count(self._samples) - self._frames
        if missing:
            tail = config.span_samples(missing) - len(self._held)
            done.append(self._complete(F.pad(self._held, (0, tail))))
        self.reset()
        return torch.cat(done)

    def _take(self, samples: NDArray[np.float32]) -> Tensor:
        self._samples += len(samples)
        self._held = torch.cat([self._held, torch.from_numpy(samples).to(self._held)])
        features = self._complete(self._held)
        self._frames += len(features)
        # a copy, so that a long chunk does not live on behind the few samples kept of it
        self._held = self._held[len(features) * self.frontend.hop_samples :].clone()
        return features

    @torch.no_grad()
    def _complete(self, span: Tensor) -> Tensor:
        features, self._carry = self.frontend.complete(span[None], self._carry)
        return features[0]


def _before(counts: Tensor, rows: Tensor) -> Tensor:
    """Return the mask (B, steps) of the first ``counts`` (B,) steps of each row."""
    return torch.arange(rows.shape[1], device=rows.device) < counts.to(rows.device)[:, None]


def _check_audio(audio: Tensor, lengths: Tensor | None) -> None:
    if audio.ndim != 2 or not audio.is_floating_point():
        raise RequestError(
            f"audio of shape {tuple(audio.shape)} and type {audio.dtype}: give floats in [-1, 1] "
            "of shape (batch, samples)"
        )
    if lengths is None:
        return
    if lengths.shape != audio.shape[:1] or lengths.is_floating_point():
        raise RequestError(
            f"lengths of shape {tuple(lengths.shape)} and type {lengths.dtype}: give "
            f"{len(audio)} whole numbers, one a stream"
        )
    if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= audio.shape[1]:
        raise RequestError(
            f"lengths from {int(lengths.min())} to {int(lengths.max())}: must lie within 0 to "
            f"{audio.shape[1]}, the samples of the batch"
        )
