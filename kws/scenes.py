"""Training scenes: seconds of augmented audio in which labelled windows lie.

A scene is built like the stream that a detector hears: a warm-up of at least a second, so that
the front-end's memory is warm in every window, then clips with others before and behind them, in
a room, under noise, at some level. Several windows are cut from one scene, because its audio and
its features cost more than the network's look at a window.

Batch number ``step`` of a run is a function of the seed and the step alone: workers, resumption
and epochs do not change it. Shapes: S scenes, F of them without a keyword, N samples, W windows a
scene, C to choose from.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.augment import (
    Span,
    active_power,
    change_gain,
    change_speed,
    loop_to,
    noise_gain,
    power,
    reverberate,
)
from speechkit.errors import RequestError
from speechkit.kws.clips import Clip
from speechkit.ranges import require, require_ascending

IGNORED = -100

T = TypeVar("T")

# a window counts as background while less than this share of a keyword lies in it
_MOST_OF_A_NEGATIVE = 0.5
# speech that a neighbour is cut from and faded over, next to a keyword
_FADE_S = 0.01
# how far a second noise lies below the first
_SECOND_BELOW_DB = (0.0, 12.0)
# of short negatives
_ALONE_PROBABILITY = 0.5
_MARGIN_S = 0.08
# of false alarms, which were heard in some noise already
_AS_HEARD_PROBABILITY = 0.5
# from one window to the next where the hardest are looked for
_STRIDE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """How scenes are made and what a batch holds.

    Parameters
    ----------
    scenes, windows
        scenes in a batch, windows from each.
    positive_share, hard_share, noise_share
        of the scenes: with a keyword, with a mined false alarm (if there are any), without speech.
    warmup_s, length_s
        audio before the first window, and in all.
    jitter_s
        how far a window's centre lies from the keyword's, at most; the keyword stays inside.
    neighbour_probability
        other speech right before and behind a keyword.
    noise_probability, snr_db
        noise, at an SNR drawn from this range (the paper: -5 to 15 dB).
    noise_speed, second_noise_probability
        a noise is played at a speed drawn from this range, and may have another one below it: few
        recordings of noise then sound like many.
    noise_change_probability
        the noise gives way to another one, at an SNR of its own, somewhere in the scene, as it does
        where recordings follow each other.
    babble_probability
        the noise is other speech.
    rir_probability, gain_db
        a room, and a level change drawn from its range.
    speed, speed_probability
        a factor drawn from its range; the others are played as they were recorded.
    """

    scenes: int = 16
    windows: int = 4
    positive_share: float = 0.4
    hard_share: float = 0.2
    noise_share: float = 0.05

    warmup_s: float = 1.0
    length_s: float = 4.0
    jitter_s: float = 0.25

    neighbour_probability: float = 0.4
    noise_probability: float = 0.9
    snr_db: tuple[float, float] = (-5.0, 15.0)
    noise_speed: tuple[float, float] = (0.7, 1.4)
    second_noise_probability: float = 0.5
    noise_change_probability: float = 0.3
    babble_probability: float = 0.1
    rir_probability: float = 0.3
    speed: tuple[float, float] = (0.88, 1.12)
    speed_probability: float = 0.7
    gain_db: tuple[float, float] = (-20.0, 5.0)

    def __post_init__(self) -> None:
        require(self, "scenes", "windows", at_least=1)
        require(self, "warmup_s", "jitter_s", at_least=0)
        require(self, "length_s", above=0)
        shares = ("positive_share", "hard_share", "noise_share")
        chances = (name for name in vars(self) if name.endswith("_probability"))
        require(self, *shares, *chances, at_least=0, at_most=1)
        require(self, "noise_speed", "speed", at_least=0.25, at_most=4)
        require_ascending(self, "snr_db", "noise_speed", "speed", "gain_db")


@dataclass(frozen=True)
class Material:
    """What scenes are made of; labels are indices of classes.

    Parameters
    ----------
    positives, negatives
        clips with their labels; hard negatives are what was heard, its span what raised the alarm.
    other, silence
        the labels of windows with speech that is no keyword, and without speech; may be equal.
    """

    positives: Sequence[tuple[Clip, int]]
    negatives: Sequence[tuple[Clip, int]]
    hard: Sequence[tuple[Clip, int]] = ()
    noises: Sequence[Clip] = ()
    responses: Sequence[Clip] = ()
    other: int = 0
    silence: int = 0


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


@dataclass(slots=True)
class _Scene:
    audio: Audio
    spoken: list[tuple[Span, int]] = field(default_factory=list)
    focus: Span | None = None
    as_heard: bool = False

    def lay(self, audio: Audio, at: int) -> None:
        """Add a piece that may reach beyond both ends."""
        first, last = max(0, at), min(len(self.audio), at + len(audio))
        if first < last:
            self.audio[first:last] += audio[first - at : last - at]


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
        # false alarms are counted by the hour, so speech is heard by the hour too
        self.ends = np.cumsum([len(clip.samples) for clip, _ in material.negatives])
        least_s = self.warmup / SAMPLE_RATE + window_s + 2 * config.jitter_s
        if config.length_s < least_s or config.windows < 2:
            raise RequestError(
                f"length_s {config.length_s}, windows {config.windows}: a scene must be at least "
                f"{least_s:g} s long (warm-up, window and jitter) and give at least 2 windows"
            )
        if not material.positives:
            raise RequestError("there is no positive clip to train on; give at least one")

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

    def _scene(self, rng: np.random.Generator, place: float) -> "_Finished":
        scene = self._kind(rng, place)
        starts = self._starts(scene, rng)
        is_free = not any(label in self.keyword_labels for _, label in scene.spoken)
        return _Finished(
            self._worsen(scene, rng),
            starts,
            [self._label(scene, start) for start in starts],
            is_free,
            [self._label(scene, start) for start in self._along()] if is_free else [],
        )

    def _along(self) -> np.ndarray:
        """Return windows all along a scene behind its warm-up."""
        stride = max(self.hop, round(_STRIDE_S * SAMPLE_RATE) // self.hop * self.hop)
        return np.arange(self.warmup, self.samples - self.window + 1, stride)

    def _kind(self, rng: np.random.Generator, place: float) -> _Scene:
        """Build one of the four kinds, by a scene's place in the batch, from 0 to 1."""
        for share, build in (
            (self.config.positive_share, self._keyword),
            (self.config.hard_share if self.material.hard else 0.0, self._mined),
            (self.config.noise_share, self._empty),
        ):
            if place < share:
                return build(rng)
            place -= share
        return self._speech(rng)

    def _keyword(self, rng: np.random.Generator) -> _Scene:
        return self._around(*_pick(self.material.positives, rng), rng)

    def _mined(self, rng: np.random.Generator) -> _Scene:
        """Lay a false alarm with all that was heard around it, half of them as they were heard."""
        clip, label = _pick(self.material.hard, rng)
        as_heard = bool(rng.random() < _AS_HEARD_PROBABILITY)
        factor = 1.0 if as_heard else self._speed(rng)
        span = clip.span.scaled(1 / factor)
        at = self._centre(rng) - (span.start + span.end) // 2
        scene = _Scene(np.zeros(self.samples, dtype=np.float32), as_heard=as_heard)
        audio = change_speed(clip.audio, factor)
        scene.lay(audio, at)
        scene.focus = span.shifted(at)
        scene.spoken.append((Span(at, at + len(audio)), label))
        return scene

    def _empty(self, rng: np.random.Generator) -> _Scene:
        return _Scene(np.zeros(self.samples, dtype=np.float32))

    def _speech(self, rng: np.random.Generator) -> _Scene:
        """Lay negatives one behind the other until the scene is full, or one like a keyword.

        Single words must come alone too, lest the network learn that a word alone is a keyword.
        """
        if not self.material.negatives:
            return self._empty(rng)
        clip, label = _pick(self.material.negatives, rng)
        if clip.span.samples < self.window and rng.random() < _ALONE_PROBABILITY:
            return self._around(clip, label, rng)
        scene = _Scene(np.zeros(self.samples, dtype=np.float32))
        at = -int(rng.integers(self.samples // 2))
        while at < self.samples:
            clip, label = self._pick_by_length(rng)
            factor = self._speed(rng)
            # of a long clip any part will do, and no more than the scene still holds
            skipped = int(rng.integers(max(1, len(clip.samples) - round(factor * self.samples))))
            end = skipped + math.ceil(factor * (self.samples - at))
            audio = change_speed(clip.part(skipped, end), factor)
            scene.lay(audio, at)
            if len(clip.samples) > 2 * self.window:
                # its span is its loudest stretch, but it speaks elsewhere too
                span = Span(0, len(audio))
            else:
                span = clip.span.shifted(-skipped).scaled(1 / factor)
            scene.spoken.append((span.shifted(at), label))
            at += len(audio)
        inside = [span for span, _ in scene.spoken if self._fits(span)]
        if inside:
            scene.focus = inside[int(rng.integers(len(inside)))]
        return scene

    def _speed(self, rng: np.random.Generator) -> float:
        changed = rng.random() < self.config.speed_probability
        return rng.uniform(*self.config.speed) if changed else 1.0

    def _pick_by_length(self, rng: np.random.Generator) -> tuple[Clip, int]:
        place = rng.integers(self.ends[-1])
        return self.material.negatives[int(np.searchsorted(self.ends, place, side="right"))]

    def _around(self, clip: Clip, label: int, rng: np.random.Generator) -> _Scene:
        """Build a scene around one utterance, perhaps with other speech on both sides."""
        factor = self._speed(rng)
        audio, span = change_speed(clip.audio, factor), clip.span.scaled(1 / factor)
        centre = self._centre(rng)
        at = centre - (span.start + span.end) // 2
        scene = _Scene(np.zeros(self.samples, dtype=np.float32))
        if self.material.negatives and rng.random() < self.config.neighbour_probability:
            audio, cut = _excerpt(audio, span)
            at += cut
            level = power(audio)
            self._lay_neighbour(scene, rng, end=at, level=level)
            self._lay_neighbour(scene, rng, start=at + len(audio), level=level)
        scene.lay(audio, at)
        scene.focus = span.shifted(centre - (span.start + span.end) // 2)
        scene.spoken.append((scene.focus, label))
        return scene

    def _centre(self, rng: np.random.Generator) -> int:
        """Draw where a scene's focus has its centre, so that windows about it fit."""
        margin = round(self.config.jitter_s * SAMPLE_RATE) + self.window // 2
        return int(rng.integers(self.warmup + margin, self.samples - margin + 1))

    def _lay_neighbour(
        self,
        scene: _Scene,
        rng: np.random.Generator,
        *,
        level: float,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        """Lay other speech, at about the same level, up to ``end`` or from ``start`` on."""
        clip, label = _pick(self.material.negatives, rng)
        audio, _ = _excerpt(clip.audio, clip.span)
        own = active_power(audio)
        if own <= 0:
            return
        gap = int(rng.uniform(0.0, 0.3) * SAMPLE_RATE)
        audio = audio * np.float32(np.sqrt(level / own) * 10 ** (rng.uniform(-8, 3) / 20))
        at = start + gap if start is not None else (end or 0) - gap - len(audio)
        scene.lay(audio, at)
        scene.spoken.append((Span(at, at + len(audio)), label))

    def _fits(self, span: Span) -> bool:
        half = self.window // 2
        centre = (span.start + span.end) // 2
        return span.samples <= self.window and self.warmup + half <= centre <= self.samples - half

    def _starts(self, scene: _Scene, rng: np.random.Generator) -> np.ndarray:
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

    def _label(self, scene: _Scene, start: int) -> int:
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

    def _worsen(self, scene: _Scene, rng: np.random.Generator) -> Audio:
        """Put the scene into a room, under noise and at another level."""
        config, material = self.config, self.material
        audio = scene.audio
        if scene.as_heard:
            return change_gain(audio, rng.uniform(*config.gain_db))
        if material.responses and rng.random() < config.rir_probability:
            audio = reverberate(audio, _pick(material.responses, rng).audio)
        speech = (
            active_power(audio)
            if scene.focus is None
            else power(audio[max(0, scene.focus.start) : scene.focus.end])
        )
        if rng.random() < config.noise_probability:
            noise = self._noise_at(speech, rng)
            if rng.random() < config.noise_change_probability:
                change = int(rng.integers(self.samples))
                noise[change:] = self._noise_at(speech, rng)[change:]
            audio = audio + noise
        return change_gain(audio, rng.uniform(*config.gain_db))

    def _noise_at(self, speech_power: float, rng: np.random.Generator) -> Audio:
        """Draw noise at an SNR; over no speech, at the level that ordinary speech would give it."""
        noise = self._noise(rng)
        snr_db = rng.uniform(*self.config.snr_db)
        gain = noise_gain(speech_power or 10 ** (-25 / 10), power(noise), snr_db)
        return np.float32(gain) * noise

    def _noise(self, rng: np.random.Generator) -> Audio:
        material = self.material
        if material.negatives and rng.random() < self.config.babble_probability:
            return loop_to(self._pick_by_length(rng)[0].audio, self.samples, rng)
        if not material.noises:
            return rng.standard_normal(self.samples, dtype=np.float32)
        # both at one speed, and only the part that is heard, since resampling is dear
        factor = rng.uniform(*self.config.noise_speed)
        samples = math.ceil(factor * self.samples) + 1
        noise = loop_to(_pick(material.noises, rng).audio, samples, rng)
        if rng.random() < self.config.second_noise_probability:
            second = loop_to(_pick(material.noises, rng).audio, samples, rng)
            gain = noise_gain(power(noise), power(second), rng.uniform(*_SECOND_BELOW_DB))
            noise = noise + np.float32(gain) * second
        return loop_to(change_speed(noise, factor), self.samples, rng)


def _labels(rows: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(rows, dtype=torch.long).view(len(rows), columns)


def _pick(items: Sequence[T], rng: np.random.Generator) -> T:
    return items[int(rng.integers(len(items)))]


def _excerpt(audio: Audio, span: Span) -> tuple[Audio, int]:
    """Cut an utterance out of its clip, faded at both ends; also return where it began."""
    margin, fade = round(_MARGIN_S * SAMPLE_RATE), round(_FADE_S * SAMPLE_RATE)
    start = max(0, span.start - margin)
    cut = audio[start : span.end + margin].copy()
    ramp = np.linspace(0, 1, min(fade, len(cut) // 2), dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[len(cut) - len(ramp) :] *= ramp[::-1]
    return cut, start
