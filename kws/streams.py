"""Streams to measure on: audio with keywords at known places, or with none at all.

A stream is heard from a fresh detector on, so that what precedes a keyword is part of the stream.
Everything is drawn from a seed and the position in the list, whatever the condition: the same
noise meets the same clip at every SNR.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.augment import Span, active_power, add_noise, noise_gain, power
from speechkit.errors import RequestError
from speechkit.kws.clips import Clip

# audio before a keyword, to warm the front-end up, and behind it, where a late hit still counts
_LEAD_S = 1.5
_TAIL_S = 1.6
# negatives are joined to streams of about this length, so that every second of them is heard
_JOINED_S = 300.0
# of noise, before it is given up on clips that are silent
_DRAWS = 20


@dataclass(frozen=True, slots=True)
class Piece:
    """A clip within a stream."""

    id: str
    span: Span
    offset: int


@dataclass(frozen=True, slots=True)
class Stream:
    """Audio, and the clips in it: keywords, or negatives.

    ``features`` may hold what a fixed front-end makes of the audio, for those who listen often.
    """

    audio: Audio
    pieces: tuple[Piece, ...]
    features: Tensor | None = None


def keyword_streams(
    clips: Sequence[Clip], noises: Sequence[Clip], *, snr_db: float | None, seed: int
) -> Iterator[Stream]:
    """Yield a stream for each keyword clip: 1.5 s before it, 1.6 s behind it, noise over all.

    Parameters
    ----------
    snr_db
        measured over the keyword's span; None for no noise.
    """
    lead, tail = round(_LEAD_S * SAMPLE_RATE), round(_TAIL_S * SAMPLE_RATE)
    for index, clip in enumerate(clips):
        rng = np.random.default_rng([seed, 0, index])
        audio = np.pad(clip.audio, (lead, tail))
        span = clip.span.shifted(lead)
        if snr_db is not None:
            audio = add_noise(audio, _noise(noises, len(audio), rng), snr_db=snr_db, span=span)
        yield Stream(audio, (Piece(clip.id, span, lead),))


def negative_streams(
    clips: Sequence[Clip], noises: Sequence[Clip], *, snr_db: float | None, seed: int
) -> Iterator[Stream]:
    """Yield the negatives, joined in a random order to streams of about five minutes.

    Each clip has a noise of its own, at the SNR measured over its active steps.
    """
    order = np.random.default_rng([seed, 1]).permutation(len(clips))
    audio: list[Audio] = []
    pieces: list[Piece] = []
    samples = 0
    for index in order:
        clip = clips[index]
        rng = np.random.default_rng([seed, 2, int(index)])
        speech = clip.audio
        if snr_db is not None:
            speech = add_noise(speech, _noise(noises, len(speech), rng), snr_db=snr_db)
        audio.append(speech)
        pieces.append(Piece(clip.id, clip.span.shifted(samples), samples))
        samples += len(speech)
        if samples >= _JOINED_S * SAMPLE_RATE:
            yield Stream(np.concatenate(audio), tuple(pieces))
            audio, pieces, samples = [], [], 0
    if audio:
        yield Stream(np.concatenate(audio), tuple(pieces))


def background_stream(
    keywords: Sequence[Clip],
    backgrounds: Sequence[Clip],
    noises: Sequence[Clip],
    *,
    hours: float,
    snr_db: float | None,
    speech_share: float = 0.2,
    seed: int = 0,
) -> Stream:
    """Place each keyword once into long background audio.

    After the wake-word benchmark of Picovoice: between keywords lie stretches of equal length, in
    which background clips alternate at random with silence of their length (a share of
    ``speech_share`` is audible); noise runs under all of it. What differs: backgrounds must come
    free of the keyword (the benchmark's own exclusion has no effect), the SNR is that of the
    keyword's span instead of its loudest 32 ms, and hits are matched to the span instead of to
    the clip with its silence.
    """
    if not keywords or not backgrounds:
        raise RequestError(
            f"{len(keywords)} keywords and {len(backgrounds)} backgrounds: give at least one each"
        )
    rng = np.random.default_rng([seed, 3])
    stretch = round(hours * 3600 * SAMPLE_RATE / (len(keywords) + 1))
    if stretch < 1:
        raise RequestError(f"{hours} hours of background: give a positive number")
    parts = [_background(backgrounds, stretch, speech_share, rng)]
    pieces: list[Piece] = []
    samples = len(parts[0])
    for index in rng.permutation(len(keywords)):
        clip = keywords[index]
        pieces.append(Piece(clip.id, clip.span.shifted(samples), samples))
        # all at one level, over which one noise then gives one SNR
        parts += [
            _level(clip.audio, clip.span),
            _background(backgrounds, stretch, speech_share, rng),
        ]
        samples += len(parts[-2]) + len(parts[-1])
    audio = np.concatenate(parts)
    if snr_db is not None:
        for at in range(0, samples, stretch):
            noise = _noise(noises, min(stretch, samples - at), rng)
            # one by one: a loud recording must not set the SNR under the others
            audio[at : at + len(noise)] += (
                np.float32(noise_gain(_LEVEL, power(noise), snr_db)) * noise
            )
    return Stream(audio, tuple(pieces))


# mean square of speech in a background stream: -26 dB of full scale
_LEVEL = 10 ** (-26 / 10)


def _level(audio: Audio, span: Span | None = None) -> Audio:
    own = active_power(audio) if span is None else power(audio[span.start : span.end])
    return audio * np.float32(np.sqrt(_LEVEL / own)) if own > 0 else audio


def _background(
    clips: Sequence[Clip], samples: int, speech_share: float, rng: np.random.Generator
) -> Audio:
    stretch = np.zeros(samples, dtype=np.float32)
    at = 0
    while at < samples:
        clip = clips[int(rng.integers(len(clips)))]
        if rng.random() < speech_share:
            audio = _level(clip.audio)[: samples - at]
            stretch[at : at + len(audio)] = audio
        at += len(clip.samples)
    return stretch


def _noise(noises: Sequence[Clip], samples: int, rng: np.random.Generator) -> Audio:
    """Draw noise: a stretch of a random clip, or white where there is no clip.

    Drawn anew where the stretch is digital silence, with which no SNR can be made.
    """
    for _ in range(_DRAWS if noises else 0):
        noise = noises[int(rng.integers(len(noises)))].looped(samples, rng)
        if noise.any():
            return noise
    return rng.standard_normal(samples, dtype=np.float32)
