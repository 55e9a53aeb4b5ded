"""The streaming detector: audio in, detections out, the same ones whatever the chunks.

Measuring and serving share it: `speechkit kws evaluate` reads the scores that it finds along a
stream, `speechkit kws detect` the detections.

Shapes: N windows, K keywords, T frames, F mel bands.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from speechkit.audio import as_float
from speechkit.errors import RequestError
from speechkit.kws.events import Trigger
from speechkit.kws.spotter import Spotter

# windows that go through the network together: bounds memory on hour-long chunks
_BATCH = 256


@dataclass(frozen=True, slots=True)
class Detection:
    """A keyword, found.

    Attributes
    ----------
    time_s
        when the decision fell: the end of the audio that it needed, since the last reset.
    start_s
        the start of the window that decided.
    score
        the smoothed posterior, at or above the threshold.
    """

    keyword: str
    time_s: float
    start_s: float
    score: float


class Detector:
    """Detect keywords along a stream of 16 kHz audio.

    Parameters
    ----------
    spotter
        the model; its front-end runs once along the stream, its network once every shift.
    thresholds
        keyword -> threshold, in place of those stored in the model.

    Raises
    ------
    RequestError
        if a threshold is given for what is no keyword of the model.
    """

    def __init__(self, spotter: Spotter, *, thresholds: dict[str, float] | None = None) -> None:
        self.spotter = spotter.eval()
        self.sample_rate: int = spotter.frontend.config.sample_rate
        given = thresholds or {}
        if unknown := sorted(set(given) - set(spotter.keywords)):
            raise RequestError(
                f"thresholds for {', '.join(unknown)}: the model's keywords are "
                f"{', '.join(spotter.keywords)}"
            )
        detection = spotter.config.detection
        self.shift_s = spotter.shift_frames * spotter.hop_samples / self.sample_rate
        self.window_s = (spotter.window_frames - 1) * spotter.hop_samples / self.sample_rate
        # up, so that all gaps under that time are too short; less what division adds to a whole
        self.refractory_windows = math.ceil(detection.refractory_s / self.shift_s - 1e-9)
        self._triggers = {
            keyword: Trigger(
                given.get(keyword, spotter.threshold(keyword)), self.refractory_windows
            )
            for keyword in spotter.keywords
        }
        self._scores = spotter.along_streams()
        self._features = spotter.frontend.stream()
        self.reset()

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Load a model folder that `speechkit kws train` wrote."""
        return cls(Spotter.load(folder))

    def reset(self) -> None:
        """Forget the stream so far; time starts at 0 again."""
        self._features.reset()
        self._pending = self.spotter.frontend.mel.window.new_zeros(0, self.spotter.frontend.bands)
        self._windows_done = 0
        self._samples = 0
        self._recent = np.zeros((0, len(self._triggers)))
        self._latest = dict.fromkeys(self._triggers, 0.0)
        for trigger in self._triggers.values():
            trigger.reset()

    def decision_time_s(self, window: int | NDArray[np.intp]) -> Any:
        """Return when the audio that the window needs has passed, in seconds since the reset."""
        frontend = self.spotter.frontend
        last_frame_s = (frontend.centre_samples + frontend.lookahead_samples) / self.sample_rate
        return window * self.shift_s + self.window_s + last_frame_s

    def scores(self, chunk: ArrayLike) -> NDArray[np.float64]:
        """Take a chunk; return the smoothed scores (N, K) of the windows that it completed.

        Raises
        ------
        AudioError
            if the chunk is not one channel of int16 or finite floats.
        """
        audio = as_float(chunk)
        self._samples += len(audio)
        return self.feature_scores(self._features.push(audio))

    def tail_scores(self) -> NDArray[np.float64]:
        """End the stream; return the scores that its last windows still give.

        Half a window of digital silence is laid behind the stream, and more where it was shorter
        than a window, so that a keyword at the very end is seen whole and well inside a window.
        """
        window_samples = round(self.window_s * self.sample_rate)
        silence = max(window_samples // 2, window_samples - self._samples)
        last = self.scores(np.zeros(silence, dtype=np.float32))
        return np.concatenate([last, self.feature_scores(self._features.flush())])

    def push(self, chunk: ArrayLike) -> list[Detection]:
        """Take a chunk (int16, or floats in [-1, 1]); return the detections that it completed."""
        return self._detect(self.scores(chunk))

    def flush(self) -> list[Detection]:
        """End the stream and return its last detections; `reset` starts another one."""
        return self._detect(self.tail_scores())

    def predict(self, chunk: ArrayLike) -> dict[str, float]:
        """Take a chunk; return keyword -> latest score, 0.0 before the first full window.

        The view of `push` for those who decide for themselves: call one or the other.
        """
        self.push(chunk)
        return dict(self._latest)

    def feature_scores(self, features_tf: torch.Tensor) -> NDArray[np.float64]:
        """Take features (T, F) in place of audio, as `scores` does with those it computes."""
        frames, shift = self.spotter.window_frames, self.spotter.shift_frames
        pending = torch.cat([self._pending, features_tf.to(self._pending)])
        windows = max(0, (len(pending) - frames) // shift + 1)
        self._pending = pending[windows * shift :].clone()
        # most chunks complete no window
        if not windows:
            return np.zeros((0, len(self._triggers)))
        with torch.inference_mode():
            raw = [
                self._scores(pending[at * shift : (min(at + _BATCH, windows) - 1) * shift + frames])
                for at in range(0, windows, _BATCH)
            ]
        return self._smooth(torch.cat(raw).cpu().numpy())

    def _smooth(self, raw: NDArray[np.float64]) -> NDArray[np.float64]:
        """Average over the last windows, over fewer at the start of a stream."""
        width = self.spotter.config.detection.smoothing_windows
        missing = width - 1 - len(self._recent)
        averaged = np.minimum(width - missing + np.arange(len(raw)), width)
        padded = np.concatenate([np.zeros((missing, raw.shape[1])), self._recent, raw])
        self._recent = padded[max(missing, len(raw)) :]
        # added up in one order, so that rounding does not depend on the chunks
        total = sum(padded[lag : lag + len(raw)] for lag in range(width))
        return np.asarray(total) / averaged[:, None]

    def _detect(self, scores: NDArray[np.float64]) -> list[Detection]:
        detections = []
        for column, (keyword, trigger) in enumerate(self._triggers.items()):
            if len(scores):
                self._latest[keyword] = float(scores[-1, column])
            for index in trigger.push(scores[:, column]):
                window = self._windows_done + index
                detections.append(
                    Detection(
                        keyword=keyword,
                        time_s=float(self.decision_time_s(window)),
                        start_s=window * self.shift_s,
                        score=float(scores[index, column]),
                    )
                )
        self._windows_done += len(scores)
        return sorted(detections, key=lambda d: (d.time_s, d.keyword))
