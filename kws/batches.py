"""Batches of scenes with labelled windows, for training.

Several windows are cut from one scene, because its audio and its features cost more than the
network's look at a window. Batch number ``step`` of a run is a function of the seed and the step
alone: workers, resumption and epochs do not change it. Shapes: S scenes, F of them without a
keyword, N samples, W windows a scene, C to choose from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.errors import RequestError
from speechkit.kws.scenes import Material, Scene, SceneConfig, Scenes
from speechkit.kws.surroundings import Surroundings

IGNORED = -100

# a window counts as background while less than this share of a keyword lies in it
_MOST_OF_A_NEGATIVE = 0.5
# from one window to the next where the hardest are looked for
_STRIDE_S = 0.2


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes and where their windows lie.

    Attributes
    ----------
    audio
        (S, N) float32.
    starts
        (S, W) first frame of each window.
    targets
        (S, W) class of each window; `IGNORED` where a keyword is half inside.
    free
        (F,) which scenes hold no keyword.
    others
        (F, C) first frames of windows all along these, of which the hardest may be taken.
    other_targets
        (F, C) their classes.
    """

    audio: Tensor
    starts: Tensor
    targets: Tensor
    free: Tensor
    others: Tensor
    other_targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        return Batch(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class _Finished:
    """A scene's audio, where its windows start (in samples), and what they hold."""

    audio: Audio
    starts: np.ndarray
    targets: list[int]
    is_free: bool
    other_targets: list[int]


class SceneBatches(Dataset[Batch]):
    """Batches by step number, for a data loader whose sampler yields step numbers.

    Parameters
    ----------
    window_s, hop_s
        length of a window, and time from one frame to the next.
    keyword_labels
        which of the labels are keywords.

    Raises
    ------
    RequestError
        if there is no positive, or a scene is too short for its windows.
    """

    def __init__(
        self,
        material: Material,
        config: SceneConfig,
        *,
        keyword_labels: frozenset[int],
        window_s: float,
        hop_s: float,
        seed: int,
    ) -> None:
        self.material = material
        self.config = config
        self.keyword_labels = keyword_labels
        self.window = round(window_s * SAMPLE_RATE)
        self.hop = round(hop_s * SAMPLE_RATE)
        self.samples = round(config.length_s * SAMPLE_RATE)
        # windows start on frames
        self.warmup = -(-round(config.warmup_s * SAMPLE_RATE) // self.hop) * self.hop
        self.seed = seed
        least_s = self.warmup / SAMPLE_RATE + window_s + 2 * config.jitter_s
        if config.length_s < least_s or config.windows < 2:
            raise RequestError(
                f"length_s {config.length_s}, windows {config.windows}: a scene must be at least "
                f"{least_s:g} s long (warm-up, window and jitter) and give at least 2 windows"
            )
        if not material.positives:
            raise RequestError("there is no positive clip to train on; give at least one")
        self.scenes = Scenes(
            material, config, samples=self.samples, window=self.window, warmup=self.warmup
        )
        self.surroundings = Surroundings(material, config, samples=self.samples)

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of one training step."""
        count = self.config.scenes
        # kinds have their shares over the batches, and in each batch to within one scene
        offset = np.random.default_rng([self.seed, step]).random()
        scenes = [
            self._scene(np.random.default_rng([self.seed, step, slot]), (slot + offset) / count)
            for slot in range(count)
        ]
        free = [slot for slot, scene in enumerate(scenes) if scene.is_free]
        along = self._along()
        return Batch(
            audio=torch.from_numpy(np.stack([scene.audio for scene in scenes])),
            starts=torch.from_numpy(np.stack([scene.starts for scene in scenes]) // self.hop),
            targets=_labels([scene.targets for scene in scenes], self.config.windows),
            free=torch.tensor(free, dtype=torch.long),
            others=torch.from_numpy(along // self.hop).repeat(len(free), 1),
            other_targets=_labels([scenes[slot].other_targets for slot in free], len(along)),
        )

    def _scene(self, rng: np.random.Generator, place: float) -> _Finished:
        scene = self.scenes.build(rng, place)
        starts = self._starts(scene, rng)
        is_free = not any(label in self.keyword_labels for _, label in scene.spoken)
        return _Finished(
            self.surroundings.add_to(scene, rng),
            starts,
            [self._label(scene, start) for start in starts],
            is_free,
            [self._label(scene, start) for start in self._along()] if is_free else [],
        )

    def _along(self) -> np.ndarray:
        """Return windows all along a scene behind its warm-up."""
        stride = max(self.hop, round(_STRIDE_S * SAMPLE_RATE) // self.hop * self.hop)
        return np.arange(self.warmup, self.samples - self.window + 1, stride)

    def _starts(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Choose windows: all but one about the focus, the others anywhere behind the warm-up."""
        last = self.samples - self.window
        starts = rng.integers(self.warmup, last + 1, size=self.config.windows)
        if scene.focus is not None:
            room = max(0.0, (self.window - scene.focus.samples) / 2 - self.hop)
            reach = min(self.config.jitter_s * SAMPLE_RATE, room)
            centre = (scene.focus.start + scene.focus.end) / 2
            offsets = rng.uniform(-reach, reach, size=self.config.windows - 1)
            starts[1:] = np.round(centre - self.window / 2 + offsets)
        return np.clip(starts, self.warmup, last) // self.hop * self.hop

    def _label(self, scene: Scene, start: int) -> int:
        """Return the class of a window: the keyword in it, else other speech or silence."""
        spoken = self.material.silence
        for span, label in scene.spoken:
            inside = min(span.end, start + self.window) - max(span.start, start)
            if inside <= 0:
                continue
            if label not in self.keyword_labels:
                spoken = label if spoken == self.material.silence else spoken
            # a frame of slack: windows start on frames, utterances anywhere
            elif inside >= min(span.samples, self.window) - 2 * self.hop:
                return label
            elif inside > _MOST_OF_A_NEGATIVE * span.samples:
                return IGNORED
            else:
                spoken = self.material.other
        return spoken


def _labels(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.long).view(len(rows), columns)
