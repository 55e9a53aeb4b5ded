"""Training scenes: a few seconds of audio in which clips lie where they would along a stream.

A scene has a warm-up of at least a second, so that the front-end's memory is warm in every window
that is cut from it, and clips with others before and behind them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.augment import Span, active_power, change_speed, power
from speechkit.kws.clips import Clip
from speechkit.ranges import require, require_ascending

T = TypeVar("T")

# speech that a neighbour is cut from and faded over, next to a keyword
_FADE_S = 0.01
# of short negatives
_ALONE_PROBABILITY = 0.5
_MARGIN = round(0.08 * SAMPLE_RATE)
# of a long neighbour, so much is enough to know its level by
_MOST_OF_A_NEIGHBOUR = 60 * SAMPLE_RATE
# of false alarms, which were heard in some noise already
_AS_HEARD_PROBABILITY = 0.5


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

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum([len(clip.samples) for clip, _ in self.negatives])

    def negative_by_length(self, rng: np.random.Generator) -> tuple[Clip, int]:
        """Draw a negative by its length: false alarms are counted by the hour."""
        place = rng.integers(self._ends[-1])
        return self.negatives[int(np.searchsorted(self._ends, place, side="right"))]


@dataclass(slots=True)
class Scene:
    """Audio and what is said in it.

    Attributes
    ----------
    spoken
        where clips lie, with their labels.
    focus
        the utterance that windows are to be cut about.
    as_heard
        it was heard in some surroundings already and needs no others.
    """

    audio: Audio
    spoken: list[tuple[Span, int]] = field(default_factory=list)
    focus: Span | None = None
    as_heard: bool = False

    def lay(self, audio: Audio, at: int) -> None:
        """Add a piece that may reach beyond both ends."""
        first, last = max(0, at), min(len(self.audio), at + len(audio))
        if first < last:
            self.audio[first:last] += audio[first - at : last - at]


class Scenes:
    """Builds scenes, still without surroundings, of ``samples`` with windows of ``window``.

    The first ``warmup`` samples are in no window.
    """

    def __init__(
        self, material: Material, config: SceneConfig, *, samples: int, window: int, warmup: int
    ) -> None:
        self.material = material
        self.config = config
        self.samples = samples
        self.window = window
        self.warmup = warmup

    def build(self, rng: np.random.Generator, place: float) -> Scene:
        """Build one of the four kinds, by a scene's place in its batch, from 0 to 1."""
        for share, build in (
            (self.config.positive_share, self._keyword),
            (self.config.hard_share if self.material.hard else 0.0, self._mined),
            (self.config.noise_share, self._empty),
        ):
            if place < share:
                return build(rng)
            place -= share
        return self._speech(rng)

    def _keyword(self, rng: np.random.Generator) -> Scene:
        return self._around(*pick(self.material.positives, rng), rng)

    def _mined(self, rng: np.random.Generator) -> Scene:
        """Lay a false alarm with all that was heard around it, half of them as they were heard."""
        clip, label = pick(self.material.hard, rng)
        as_heard = bool(rng.random() < _AS_HEARD_PROBABILITY)
        factor = 1.0 if as_heard else self._speed(rng)
        span = clip.span.scaled(1 / factor)
        at = self._centre(rng) - (span.start + span.end) // 2
        scene = Scene(np.zeros(self.samples, dtype=np.float32), as_heard=as_heard)
        audio = change_speed(clip.audio, factor)
        scene.lay(audio, at)
        scene.focus = span.shifted(at)
        scene.spoken.append((Span(at, at + len(audio)), label))
        return scene

    def _empty(self, rng: np.random.Generator) -> Scene:
        return Scene(np.zeros(self.samples, dtype=np.float32))

    def _speech(self, rng: np.random.Generator) -> Scene:
        """Lay negatives one behind the other until the scene is full, or one like a keyword.

        Single words must come alone too, lest the network learn that a word alone is a keyword.
        """
        if not self.material.negatives:
            return self._empty(rng)
        clip, label = pick(self.material.negatives, rng)
        if clip.span.samples < self.window and rng.random() < _ALONE_PROBABILITY:
            return self._around(clip, label, rng)
        scene = Scene(np.zeros(self.samples, dtype=np.float32))
        at = -int(rng.integers(self.samples // 2))
        while at < self.samples:
            clip, label = self.material.negative_by_length(rng)
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

    def _around(self, clip: Clip, label: int, rng: np.random.Generator) -> Scene:
        """Build a scene around one utterance, perhaps with other speech on both sides."""
        factor = self._speed(rng)
        audio, span = change_speed(clip.audio, factor), clip.span.scaled(1 / factor)
        centre = self._centre(rng)
        at = centre - (span.start + span.end) // 2
        scene = Scene(np.zeros(self.samples, dtype=np.float32))
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
        scene: Scene,
        rng: np.random.Generator,
        *,
        level: float,
        start: int | None = None,
        end: int | None = None,
    ) -> None:
        """Lay other speech, at about the same level, up to ``end`` or from ``start`` on."""
        clip, label = pick(self.material.negatives, rng)
        near = _near(clip.span, at_its_end=start is None)
        first = max(0, near.start - _MARGIN)
        audio, _ = _excerpt(clip.part(first, near.end + _MARGIN), near.shifted(-first))
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


def pick(items: Sequence[T], rng: np.random.Generator) -> T:
    """Draw one."""
    return items[int(rng.integers(len(items)))]


def _near(span: Span, *, at_its_end: bool) -> Span:
    """Return the part of a neighbour's span that lies next to the keyword."""
    if at_its_end:
        return Span(max(span.start, span.end - _MOST_OF_A_NEIGHBOUR), span.end)
    return Span(span.start, min(span.end, span.start + _MOST_OF_A_NEIGHBOUR))


def _excerpt(audio: Audio, span: Span) -> tuple[Audio, int]:
    """Cut an utterance out of its clip, faded at both ends; also return where it began."""
    fade = round(_FADE_S * SAMPLE_RATE)
    start = max(0, span.start - _MARGIN)
    cut = audio[start : span.end + _MARGIN].copy()
    ramp = np.linspace(0, 1, min(fade, len(cut) // 2), dtype=np.float32)
    cut[: len(ramp)] *= ramp
    cut[len(cut) - len(ramp) :] *= ramp[::-1]
    return cut, start
