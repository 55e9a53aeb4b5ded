"""Decoded clips: read once, kept in memory as int16, with the span of the speech in each."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from speechkit.audio import INT16_SCALE, SAMPLE_RATE, Audio, as_int16, load_cut
from speechkit.augment import Span, energy_span, loop_to
from speechkit.errors import AudioError, JobError

logger = logging.getLogger(__name__)

# a supervision that leaves this much of its clip uncovered states the times of the speech
_TIMES_GIVEN_S = 0.02


@dataclass(frozen=True, slots=True)
class Clip:
    """A decoded clip at the working rate."""

    id: str
    samples: NDArray[np.int16]
    span: Span

    @property
    def audio(self) -> Audio:
        """The samples as float32 in [-1, 1]."""
        return self.part(0, len(self.samples))

    def part(self, start: int, end: int) -> Audio:
        """Return some of the samples as float32 in [-1, 1]."""
        return self.samples[start:end].astype(np.float32) / np.float32(INT16_SCALE)

    def looped(self, samples: int, rng: np.random.Generator) -> Audio:
        """Return as much of the clip as is wanted, from a random place on, as `loop_to` does.

        Of an hour no more than that becomes floats.
        """
        return loop_to(self.samples, samples, rng).astype(np.float32) / np.float32(INT16_SCALE)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def load_clip(cut: Cut) -> Clip:
    """Decode a cut and find its speech.

    The span is the supervision's where that states times, else what energy trimming finds.

    Raises
    ------
    AudioError
        as for `speechkit.audio.load_cut`, and for a clip without a sample.
    """
    audio = load_cut(cut)
    if len(audio) == 0:
        raise AudioError(f"{cut.id}: holds no samples")
    return Clip(cut.id, as_int16(audio), _span(cut, audio))


@dataclass(frozen=True, slots=True)
class Loaded:
    """Clips that could be decoded, and for the others their id and the reason."""

    clips: list[Clip]
    broken: dict[str, str]

    @property
    def hours(self) -> float:
        """Audio in the clips."""
        return sum(clip.duration_s for clip in self.clips) / 3600


def load_clips(cuts: Iterable[Cut], *, what: str, decoded: dict[str, Clip] | None = None) -> Loaded:
    """Decode cuts; broken ones are named in the log and left out.

    An hour takes 115 MB.

    Parameters
    ----------
    what
        they are, for the log.
    decoded
        clips that need not be decoded again, by id; gets the others.

    Raises
    ------
    JobError
        if there are cuts, but not one of them can be decoded.
    """
    clips, broken = [], {}
    known = {} if decoded is None else decoded
    for cut in cuts:
        try:
            if cut.id not in known:
                known[cut.id] = load_clip(cut)
            clips.append(known[cut.id])
        except AudioError as error:
            broken[cut.id] = str(error)
            logger.warning("%s left out: %s", what, error)
    if broken and not clips:
        raise JobError(
            f"{what}: none of {len(broken)} clips can be used, as {min(broken.values())}"
        )
    return Loaded(clips, broken)


def load_noises(cuts: Iterable[Cut], *, decoded: dict[str, Clip] | None = None) -> Loaded:
    """Decode noise as `load_clips` does; digital silence, which has no SNR, is left out too."""
    loaded = load_clips(cuts, what="noise", decoded=decoded)
    silent = {clip.id: "is digital silence" for clip in loaded.clips if not clip.samples.any()}
    for id_, reason in silent.items():
        logger.warning("noise left out: %s: %s", id_, reason)
    sounding = [clip for clip in loaded.clips if clip.id not in silent]
    if silent and not sounding:
        raise JobError(f"noise: none of {len(silent)} clips can be used: all is digital silence")
    return Loaded(sounding, loaded.broken | silent)


def _span(cut: Cut, audio: Audio) -> Span:
    if len(cut.supervisions) == 1:
        speech = cut.supervisions[0]
        if cut.duration - speech.duration > _TIMES_GIVEN_S:
            start = max(0, round(speech.start * SAMPLE_RATE))
            end = min(len(audio), round(speech.end * SAMPLE_RATE))
            if start < end:
                return Span(start, end)
    return energy_span(audio)
