"""Accuracy of whole clips, one class each: the 12-class task of Speech Commands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from speechkit.audio import SAMPLE_RATE
from speechkit.kws.clips import Clip
from speechkit.kws.spotter import Spotter
from speechkit.metrics import Interval, wilson_interval

# as in training, features have a past before the window begins
_LEAD_S = 1.5
# float32 has none between this and 0
_LEAST_POSTERIOR = float(torch.finfo(torch.float32).tiny)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Clips classified right.

    Attributes
    ----------
    decisions
        of each clip the true class and the likeliest, as indices of labels.
    nats
        of each clip what the true class cost, the negative logarithm of its posterior: finer than
        errors, of which a small test has few.
    """

    decisions: tuple[tuple[int, int], ...]
    nats: tuple[float, ...]

    @property
    def right(self) -> int:
        """Clips whose class was found."""
        return sum(true == decided for true, decided in self.decisions)

    @property
    def share(self) -> float:
        """The accuracy; 0.0 without clips."""
        return self.right / max(1, len(self.decisions))

    @property
    def balanced(self) -> float:
        """The mean over classes of the accuracy in each: as if each had as many clips."""
        found: dict[int, list[bool]] = {}
        for true, decided in self.decisions:
            found.setdefault(true, []).append(true == decided)
        return sum(sum(own) / len(own) for own in found.values()) / max(1, len(found))

    @property
    def interval(self) -> Interval:
        """Its 95 % interval."""
        return wilson_interval(self.right, len(self.decisions))

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats a clip; 0.0 without clips."""
        return sum(self.nats) / max(1, len(self.nats))


def class_posteriors(spotter: Spotter, clip: Clip) -> Tensor:
    """Return the posteriors (K,) of the labels in the window about the middle of the speech."""
    hop, frames = spotter.hop_samples, spotter.window_frames
    lead, window = round(_LEAD_S * SAMPLE_RATE), (frames - 1) * hop
    audio = np.concatenate([np.zeros(lead, np.float32), clip.audio, np.zeros(window, np.float32)])
    first = (lead + (clip.span.start + clip.span.end) // 2 - window // 2) // hop
    with torch.inference_mode():
        features, _ = spotter.frontend(torch.from_numpy(audio)[None])
        posteriors = spotter.posteriors(features[:, max(0, first) : max(0, first) + frames])
    return posteriors[0]


def accuracy(spotter: Spotter, labelled: Sequence[tuple[Clip, str]]) -> Accuracy:
    """Classify clips whose labels are known."""
    decisions, nats = [], []
    for clip, label in labelled:
        true, posteriors = spotter.config.labels.index(label), class_posteriors(spotter, clip)
        decisions.append((true, int(posteriors.argmax())))
        nats.append(-math.log(max(float(posteriors[true]), _LEAST_POSTERIOR)))
    return Accuracy(tuple(decisions), tuple(nats))
