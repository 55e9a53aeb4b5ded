"""Accuracy of whole clips, one class each: the 12-class task of Speech Commands."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from speechkit.audio import SAMPLE_RATE
from speechkit.kws.clips import Clip
from speechkit.kws.spotter import Spotter
from speechkit.metrics import Interval, wilson_interval

# as in training, features have a past before the window begins
_LEAD_S = 1.5


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Clips classified right, and every clip's class as (true, decided) indices of labels."""

    decisions: tuple[tuple[int, int], ...]

    @property
    def right(self) -> int:
        """Clips whose class was found."""
        return sum(true == decided for true, decided in self.decisions)

    @property
    def share(self) -> float:
        """The accuracy; 0.0 without clips."""
        return self.right / max(1, len(self.decisions))

    @property
    def interval(self) -> Interval:
        """Its 95 % interval."""
        return wilson_interval(self.right, len(self.decisions))


def classify(spotter: Spotter, clip: Clip) -> int:
    """Return the index of the likeliest label in the window about the middle of the speech."""
    hop, frames = spotter.hop_samples, spotter.window_frames
    lead, window = round(_LEAD_S * SAMPLE_RATE), (frames - 1) * hop
    audio = np.concatenate([np.zeros(lead, np.float32), clip.audio, np.zeros(window, np.float32)])
    first = (lead + (clip.span.start + clip.span.end) // 2 - window // 2) // hop
    with torch.inference_mode():
        features, _ = spotter.frontend(torch.from_numpy(audio)[None])
        posteriors = spotter.posteriors(features[:, max(0, first) : max(0, first) + frames])
    return int(posteriors.argmax())


def accuracy(spotter: Spotter, labelled: Sequence[tuple[Clip, str]]) -> Accuracy:
    """Classify clips whose labels are known."""
    labels = spotter.config.labels
    return Accuracy(
        tuple((labels.index(label), classify(spotter, clip)) for clip, label in labelled)
    )
