"""Longer recordings made of clips: connected digits of single ones, an hour of sentences.

The text and the time of every clip in a recording are known, so a long recording can be transcribed
as a whole, and the same audio clip by clip.
"""

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lhotse import AudioSource, CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from speechkit import manifests
from speechkit.audio import SAMPLE_RATE, Audio, load_cut, writing
from speechkit.errors import RequestError
from speechkit.seeds import seed_of

logger = logging.getLogger(__name__)

UTTERANCES = "utterances"  # names a joined cut's alignment, and the manifest of its clips

# clips rarely begin and end at 0: a click at every seam would give them away
_FADE_S = 0.005


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """What a recording holds.

    Parameters
    ----------
    clips, length_s
        how many clips, and seconds with gaps, a recording aims at, drawn evenly between these ends;
        None for any. It is complete when it has the clips, or when the next one would overstep
        the seconds.
    gap_s
        shortest and longest gap between two clips.
    gap_dbfs
        level of the white noise in gaps; None for digital silence.
    same_speaker
        all clips of a recording are of one speaker.
    recordings
        how many to make; clips come again, in another order, when all have been used. None: as
        many as use each clip once, a rest too small for a recording being left out.
    sample_rate
        of what is written.
    seed
        of everything drawn.
    """

    clips: tuple[int, int] | None = (3, 7)
    length_s: tuple[float, float] | None = None
    gap_s: tuple[float, float] = (0.1, 0.5)
    gap_dbfs: float | None = -70.0
    same_speaker: bool = False
    recordings: int | None = None
    sample_rate: int = SAMPLE_RATE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips is None and self.length_s is None:
            raise RequestError("neither clips nor length_s is given; give one, or both")
        if self.clips is not None and not 1 <= self.clips[0] <= self.clips[1]:
            raise RequestError(f"clips {self.clips}: give two ascending numbers, 1 or more")
        for name, ends in (("length_s", self.length_s), ("gap_s", self.gap_s)):
            low, high = ends or (0.0, 0.0)
            if not 0 <= low <= high < np.inf:
                raise RequestError(f"{name} {low, high}: give two ascending numbers of seconds")
        if self.sample_rate < 1 or (self.recordings is not None and self.recordings < 1):
            raise RequestError(
                f"sample_rate {self.sample_rate}, recordings {self.recordings}: must be positive"
            )


@dataclass(frozen=True)
class _Part:
    """A clip, and the gap before it."""

    gap_s: float
    cut: Cut


def join(cuts: Iterable[Cut], out: Path, config: JoinConfig = JoinConfig()) -> CutSet:
    """Write recordings made of clips, piece by piece, in memory bounded by the longest clip.

    Writes OUT/audio/*.wav; OUT/utterances.jsonl.gz, the clips as cuts of the recordings, with their
    texts, speakers and times; and last OUT/cuts.jsonl.gz, a cut a recording.

    Parameters
    ----------
    cuts
        clips with a text (`manifests.text_of`).

    Returns
    -------
    The cuts of OUT/cuts.jsonl.gz, whose ids begin with the folder's name. The text of each is its
    clips' texts, joined by spaces; the alignment ``utterances`` of its supervision holds text,
    start and duration of each clip; the speaker is given where it is but one.

    Raises
    ------
    RequestError
        if a clip has no text or no speaker that is needed, or is too long for any recording, or
        the clips are too few for one.
    AudioError
        if a clip cannot be read.
    """
    cuts = _checked(sorted(cuts, key=lambda cut: cut.id), config)
    (out / manifests.CUTS_NAME).unlink(missing_ok=True)  # it says that all is there
    joined: list[Cut] = []
    utterances: list[Cut] = []
    for number, parts in enumerate(_recordings(cuts, config)):
        whole, clips = _write(parts, out / "audio" / f"{out.name}-{number:05d}.wav", config)
        joined.append(whole)
        utterances += clips
    if not joined:
        raise RequestError(
            f"{len(cuts)} clips are too few for a recording of clips {config.clips} and length_s "
            f"{config.length_s}; lower these, or set recordings to use clips again"
        )
    manifests.write(utterances, out / f"{UTTERANCES}.jsonl.gz")
    manifests.write(joined, out / manifests.CUTS_NAME)
    logger.info("%s: %d recordings of %d clips", out, len(joined), len(utterances))
    return CutSet.from_cuts(joined)


def _checked(cuts: list[Cut], config: JoinConfig) -> list[Cut]:
    for cut in cuts:
        if manifests.text_of(cut) is None:
            raise RequestError(f"{cut.id}: has no text; leave it out")
        if config.same_speaker and manifests.speaker_of(cut) is None:
            raise RequestError(f"{cut.id}: has no speaker; leave it out, or mix speakers")
        if config.length_s is not None and cut.duration > config.length_s[1]:
            raise RequestError(
                f"{cut.id}: lasts {cut.duration:.2f} s, and recordings {config.length_s[1]:g} s at "
                "most; raise length_s or leave it out"
            )
    return cuts


def _recordings(cuts: list[Cut], config: JoinConfig) -> Iterator[list[_Part]]:
    """Yield what each recording is made of."""
    rng = np.random.default_rng(seed_of("join", config.seed))
    groups: dict[str | None, list[Cut]] = {}
    for cut in cuts:
        speaker = manifests.speaker_of(cut) if config.same_speaker else None
        groups.setdefault(speaker, []).append(cut)
    if config.recordings is None:
        for group in groups.values():
            yield from _filled(_shuffled(group, rng), rng, config)
        return
    endless = [
        _filled(itertools.chain.from_iterable(_passes(group, rng)), rng, config)
        for group in groups.values()
    ]
    sizes = np.array([len(group) for group in groups.values()])
    for _ in range(config.recordings if groups else 0):
        yield next(endless[rng.choice(len(endless), p=sizes / sizes.sum())])


def _passes(cuts: list[Cut], rng: np.random.Generator) -> Iterator[list[Cut]]:
    while True:
        yield _shuffled(cuts, rng)


def _shuffled(cuts: list[Cut], rng: np.random.Generator) -> list[Cut]:
    return [cuts[index] for index in rng.permutation(len(cuts))]


def _filled(
    cuts: Iterable[Cut], rng: np.random.Generator, config: JoinConfig
) -> Iterator[list[_Part]]:
    """Yield recordings filled with cuts in their order."""
    parts: list[_Part] = []
    length_s, wanted, target_s = 0.0, *_goal(rng, config)
    for cut in cuts:
        gap_s = float(rng.uniform(*config.gap_s)) if parts else 0.0
        if parts and (len(parts) == wanted or length_s + gap_s + cut.duration > target_s):
            yield parts
            parts, gap_s = [], 0.0
            length_s, wanted, target_s = 0.0, *_goal(rng, config)
        parts.append(_Part(gap_s, cut))
        length_s += gap_s + cut.duration
    if len(parts) >= (config.clips or (1,))[0] and length_s >= (config.length_s or (0.0,))[0]:
        yield parts


def _goal(rng: np.random.Generator, config: JoinConfig) -> tuple[float, float]:
    """Draw how many clips a recording gets at most, and how many seconds."""
    clips = np.inf if config.clips is None else rng.integers(config.clips[0], config.clips[1] + 1)
    length_s = np.inf if config.length_s is None else rng.uniform(*config.length_s)
    return float(clips), float(length_s)


def _write(parts: list[_Part], path: Path, config: JoinConfig) -> tuple[MonoCut, list[MonoCut]]:
    """Write a recording; return its cut and those of its clips."""
    rng = np.random.default_rng(seed_of("gaps", config.seed, path.name))
    rate = config.sample_rate
    spans: list[tuple[int, int]] = []
    with writing(path, sample_rate=rate) as write:
        for part in parts:
            write(_gap(round(part.gap_s * rate), rng, config.gap_dbfs))
            audio = _faded(load_cut(part.cut, sample_rate=rate), round(_FADE_S * rate))
            spans.append((write(audio), len(audio)))
    samples = sum(spans[-1])
    recording = Recording(
        id=path.stem,
        sources=[AudioSource(type="file", channels=[0], source=str(path.absolute()))],
        sampling_rate=rate,
        num_samples=samples,
        duration=samples / rate,
    )
    clips = [
        _clip(part.cut, recording, number, start / rate, length / rate)
        for number, (part, (start, length)) in enumerate(zip(parts, spans, strict=True))
    ]
    return _whole(recording, clips), clips


def _gap(samples: int, rng: np.random.Generator, level_dbfs: float | None) -> Audio:
    if level_dbfs is None:
        return np.zeros(samples, dtype=np.float32)
    noise = rng.standard_normal(samples, dtype=np.float32)
    return noise * np.float32(10 ** (level_dbfs / 20))


def _faded(audio: Audio, samples: int) -> Audio:
    """Fade in and out, over half a short clip at most."""
    samples = min(samples, len(audio) // 2)
    if samples == 0:
        return audio
    faded = audio.copy()
    ramp = (np.arange(samples, dtype=np.float32) + 0.5) / samples
    faded[:samples] *= ramp
    faded[-samples:] *= ramp[::-1]
    return faded


def _clip(
    cut: Cut, recording: Recording, number: int, start_s: float, duration_s: float
) -> MonoCut:
    id_ = f"{recording.id}-{number:04d}"
    supervision = cut.supervisions[0]
    custom = {**(supervision.custom or {}), "source": cut.id}
    text = supervision.text
    if len(cut.supervisions) > 1:
        text = manifests.text_of(cut)
        custom.pop("text_norm", None)
    return MonoCut(
        id=id_,
        start=start_s,
        duration=duration_s,
        channel=0,
        recording=recording,
        supervisions=[
            SupervisionSegment(
                id=id_,
                recording_id=recording.id,
                start=0.0,
                duration=duration_s,
                text=text,
                speaker=supervision.speaker,
                custom=custom,
            )
        ],
    )


def _whole(recording: Recording, clips: list[MonoCut]) -> MonoCut:
    texts = [str(manifests.text_of(clip)) for clip in clips]
    said = " ".join(text for text in texts if text)
    normalised = all("text_norm" in manifests.custom_of(clip) for clip in clips)
    speakers = {manifests.speaker_of(clip) for clip in clips}
    alignment = [
        AlignmentItem(symbol=text, start=clip.start, duration=clip.duration)
        for text, clip in zip(texts, clips, strict=True)
    ]
    supervision = SupervisionSegment(
        id=recording.id,
        recording_id=recording.id,
        start=0.0,
        duration=recording.duration,
        text=said,
        # what needed no normalisation in the clips needs none here
        custom={"text_norm": said} if normalised else None,
        speaker=speakers.pop() if len(speakers) == 1 else None,
        alignment={UTTERANCES: alignment},
    )
    return MonoCut(
        id=recording.id,
        start=0.0,
        duration=recording.duration,
        channel=0,
        recording=recording,
        supervisions=[supervision],
    )
