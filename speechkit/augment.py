"""Augmentation of waveforms: noise at an SNR, room responses, speed, level.

Functions of arrays (N samples, float32) and a random generator that the caller seeds, so that a
result depends on the seed alone and never on the number of workers.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import soxr
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.errors import RequestError

S = TypeVar("S", np.float32, np.int16)

# energy trimming works on levels of 10 ms steps, averaged over 50 ms
_STEP_S = 0.01
_SMOOTH_STEPS = 5
# speech reaches within 30 dB of its loudest place, and stays well above the background, which is
# taken from the quietest part of what is no digital silence
_RANGE_DB = 30.0
_SILENCE_DB = 60.0
_FLOOR_PERCENTILE = 15
_ABOVE_FLOOR = 0.3
# of a steady sound, whose background cannot be told, this much below the peak still belongs to it
_RIPPLE_DB = 6.0
# a pause inside a keyword is shorter than this
_PAUSE_S = 0.4
# what is shorter is a click, if there is anything longer
_CLICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a signal, in samples: [start, end)."""

    start: int
    end: int

    @property
    def samples(self) -> int:
        """Length."""
        return self.end - self.start

    def shifted(self, samples: int) -> "Span":
        """Return the span, later by so many samples."""
        return Span(self.start + samples, self.end + samples)

    def scaled(self, factor: float) -> "Span":
        """Return the span on a time axis stretched by ``factor``."""
        return Span(round(self.start * factor), round(self.end * factor))


def energy_span(audio: Audio, *, sample_rate: int = SAMPLE_RATE) -> Span:
    """Find the utterance in a clip: the stretch of sounds, pauses included, with most energy.

    A sound stands out within 30 dB of the loudest place and in the upper 70 % of the decibels
    between background and that place; a pause over 0.4 s parts two stretches, so that a click
    elsewhere in the clip does not count, not even a loud one: under 0.2 s a stretch is taken only
    where there is no longer one. All of a silent or very short signal.
    """
    step = round(_STEP_S * sample_rate)
    steps = len(audio) // step
    if steps <= _SMOOTH_STEPS:
        return Span(0, len(audio))
    powers = np.square(audio[: steps * step].astype(np.float64)).reshape(steps, step).mean(axis=1)
    smooth = np.convolve(powers, np.full(_SMOOTH_STEPS, 1 / _SMOOTH_STEPS), mode="same")
    level_db = 10 * np.log10(smooth + 1e-12)
    peak_db = level_db.max()
    floor_db = np.percentile(level_db[level_db >= peak_db - _SILENCE_DB], _FLOOR_PERCENTILE)
    lowest_db = max(peak_db - _RANGE_DB, floor_db + _ABOVE_FLOOR * (peak_db - floor_db))
    active = np.flatnonzero(level_db >= min(lowest_db, peak_db - _RIPPLE_DB))
    stretches = np.split(active, np.flatnonzero(np.diff(active) > _PAUSE_S / _STEP_S) + 1)
    long = [s for s in stretches if (s[-1] + 1 - s[0]) * _STEP_S >= _CLICK_S - 1e-9]
    best = max(long or stretches, key=lambda stretch: float(powers[stretch].sum()))
    return Span(int(best[0]) * step, min(len(audio), int(best[-1] + 1) * step))


def active_power(audio: Audio, *, sample_rate: int = SAMPLE_RATE) -> float:
    """Return the mean square of the 10 ms steps within 30 dB of the loudest one."""
    step = round(_STEP_S * sample_rate)
    steps = len(audio) // step
    if steps == 0:
        return power(audio)
    levels = np.square(audio[: steps * step].astype(np.float64)).reshape(steps, step).mean(axis=1)
    active = levels[levels >= levels.max() * 10 ** (-_RANGE_DB / 10)]
    return float(active.mean())


def power(audio: Audio) -> float:
    """Return the mean square; 0.0 of nothing."""
    return float(np.mean(np.square(audio, dtype=np.float64))) if len(audio) else 0.0


def noise_gain(speech_power: float, noise_power: float, snr_db: float) -> float:
    """Return the factor on the noise that gives the SNR; 0.0 where either is silent."""
    if speech_power <= 0 or noise_power <= 0:
        return 0.0
    return float(np.sqrt(speech_power / noise_power * 10 ** (-snr_db / 10)))


def add_noise(speech: Audio, noise: Audio, *, snr_db: float, span: Span | None = None) -> Audio:
    """Add noise of the same length at a signal-to-noise ratio.

    The power of the speech is measured over ``span``, the keyword, so that the silence around it
    does not count; without a span, over the speech's active steps. The power of the noise is
    measured over all of it, so that a noise with gaps is not blown up where a gap meets the span.
    """
    if len(noise) != len(speech):
        raise RequestError(f"{len(noise)} samples of noise for {len(speech)} of speech: make equal")
    level = active_power(speech) if span is None else power(speech[span.start : span.end])
    return speech + np.float32(noise_gain(level, power(noise), snr_db)) * noise


def reverberate(audio: Audio, response: Audio) -> Audio:
    """Convolve with a room impulse response; the time of the direct sound and the level stay.

    The response is aligned on its strongest tap, and scaled so that white noise keeps its power.
    """
    energy = float(np.sqrt(np.sum(np.square(response, dtype=np.float64))))
    if energy == 0:
        return audio
    direct = int(np.argmax(np.abs(response)))
    wet = fftconvolve(audio, response / np.float32(energy))[direct : direct + len(audio)]
    return wet.astype(np.float32)


def change_speed(audio: Audio, factor: float) -> Audio:
    """Play ``factor`` times as fast: duration and pitch change together."""
    if factor == 1.0:
        return audio
    # soxr's lower qualities are no faster, and take up to 15 dB from the highest bands
    return np.asarray(soxr.resample(audio, factor, 1.0, quality="MQ"), dtype=np.float32)


def change_gain(audio: Audio, gain_db: float) -> Audio:
    """Scale by a gain in dB."""
    return audio * np.float32(10 ** (gain_db / 20))


def loop_to(audio: NDArray[S], samples: int, rng: np.random.Generator) -> NDArray[S]:
    """Cut or repeat a signal to a length, from a random place on."""
    if len(audio) == 0:
        return np.zeros(samples, dtype=audio.dtype)
    if len(audio) >= samples:
        start = int(rng.integers(len(audio) - samples + 1))
        return audio[start : start + samples].copy()
    start = int(rng.integers(len(audio)))
    return np.take(audio, np.arange(start, start + samples), mode="wrap")
