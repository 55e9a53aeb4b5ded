"""Noises and room impulse responses made from random numbers, for users without recordings."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from speechkit.audio import SAMPLE_RATE, Audio
from speechkit.errors import RequestError

T60_S = (0.15, 0.8)
_PEAK = 0.5
Signal = NDArray[np.float64]


def noise(kind: str, duration_s: float, generator: np.random.Generator) -> Audio:
    """Return noise of a kind of `NOISES` at 16 kHz, with a peak of 0.5.

    Raises
    ------
    RequestError
        if there is no such kind, or the duration is not positive.
    """
    if kind not in NOISES:
        raise RequestError(f"noise {kind!r}: must be one of {', '.join(NOISES)}")
    samples = round(duration_s * SAMPLE_RATE)
    if samples <= 0:
        raise RequestError(f"duration_s {duration_s}: must be positive")
    return _normalized(NOISES[kind](samples, generator))


def babble(voices: Sequence[Audio], duration_s: float, generator: np.random.Generator) -> Audio:
    """Return the sum of several people's speech, each repeated from a random place in it."""
    if not voices:
        raise RequestError("babble of no voices: give at least one")
    samples = round(duration_s * SAMPLE_RATE)
    total = np.zeros(samples)
    for voice in voices:
        looped = np.resize(np.roll(voice, -generator.integers(len(voice))), samples)
        level = np.sqrt(np.mean(voice**2)) or 1.0  # of silence, none is added
        total += looped / level * 10 ** (generator.uniform(-6, 0) / 20)
    return _normalized(total)


def room_impulse_response(t60_s: float, generator: np.random.Generator) -> Audio:
    """Return a simulated room: a direct path, sparse early echoes, and a decaying tail.

    The tail is Gaussian noise whose level falls by 60 dB in ``t60_s`` (the statistical model of
    a diffuse field) and begins where echoes become dense; the direct path is the first sample,
    of height 1.

    Raises
    ------
    RequestError
        if ``t60_s`` is not positive.
    """
    if t60_s <= 0:
        raise RequestError(f"t60_s {t60_s}: must be positive")
    time_s = np.arange(round(t60_s * SAMPLE_RATE)) / SAMPLE_RATE
    decay = 10 ** (-3 * time_s / t60_s)
    mixing_s = generator.uniform(0.015, 0.04)
    tail = generator.standard_normal(len(time_s)) * decay * np.clip(time_s / mixing_s, 0, 1)
    tail *= np.sqrt(10 ** (-generator.uniform(0, 12) / 10) / np.sum(tail**2))
    echoes = np.zeros(len(time_s))
    for arrival_s in generator.uniform(0.001, mixing_s, size=generator.integers(4, 12)):
        sample = min(round(arrival_s * SAMPLE_RATE), len(time_s) - 1)
        gain = generator.uniform(0.1, 0.6) * generator.choice([-1, 1])
        echoes[sample] += gain * 0.005 / (0.005 + arrival_s)
    response = np.clip(tail + echoes, -0.95, 0.95)
    response[0] = 1.0
    return response.astype(np.float32)


def _white(samples: int, generator: np.random.Generator) -> Signal:
    return generator.standard_normal(samples)


def _coloured(samples: int, generator: np.random.Generator, slope: float) -> Signal:
    """Return Gaussian noise whose power falls as frequency to the power ``slope``."""
    spectrum = np.fft.rfft(generator.standard_normal(samples))
    frequency = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    # level below 20 Hz, where all the power would go otherwise
    return np.fft.irfft(spectrum * np.maximum(frequency, 20.0) ** (-slope / 2), samples)


def _pink(samples: int, generator: np.random.Generator) -> Signal:
    return _coloured(samples, generator, 1.0)


def _brown(samples: int, generator: np.random.Generator) -> Signal:
    return _coloured(samples, generator, 2.0)


def _time(samples: int) -> Signal:
    return np.arange(samples) / SAMPLE_RATE


def _hum(samples: int, generator: np.random.Generator) -> Signal:
    mains_hz = generator.choice([50.0, 60.0]) * generator.uniform(0.998, 1.002)
    tones = sum(
        generator.uniform(0.1, 1) / k * np.sin(2 * np.pi * (k * mains_hz * _time(samples)))
        for k in (1, 2, 3, 4, 5, 6, 8, 10)
    )
    return tones + 0.01 * generator.standard_normal(samples)


def _modulated(samples: int, generator: np.random.Generator) -> Signal:
    """Return pink noise that swells and fades irregularly, as wind or waves do."""
    envelope = _coloured(samples, generator, 3.0)
    spread = np.std(envelope) or 1.0
    return _pink(samples, generator) * np.exp(np.clip(envelope / spread, -3, 1.5))


def _clicks(samples: int, generator: np.random.Generator) -> Signal:
    """Return short decaying clicks at random times, from single knocks to rain."""
    per_second = 10 ** generator.uniform(0.5, 3)
    impulses = generator.standard_normal(samples)
    impulses *= generator.random(samples) < per_second / SAMPLE_RATE
    impulses[generator.integers(samples)] += 1.0  # never silent
    time_s = _time(400)
    ring = np.sin(2 * np.pi * generator.uniform(800, 5000) * time_s) * np.exp(-time_s * 400)
    return fftconvolve(impulses, ring)[:samples]


def _engine(samples: int, generator: np.random.Generator) -> Signal:
    speed = generator.uniform(25, 90) * (
        1 + 0.1 * np.sin(_time(samples) * generator.uniform(0.5, 3))
    )
    phase = 2 * np.pi * np.cumsum(speed) / SAMPLE_RATE
    harmonics = sum(
        generator.uniform(0.2, 1) / np.sqrt(k) * np.sin(k * phase + generator.uniform(0, 6))
        for k in range(1, 30)
    )
    rumble = _pink(samples, generator)
    return harmonics + rumble / (np.std(rumble) or 1.0)


def _arpeggio(samples: int, generator: np.random.Generator) -> Signal:
    """Return a random tune of plucked notes with overtones."""
    note_samples = round(generator.uniform(0.12, 0.4) * SAMPLE_RATE)
    time_s = _time(2 * note_samples)
    root_hz = generator.uniform(110, 330)
    tune = np.zeros(samples + 2 * note_samples)
    for start in range(0, samples, note_samples):
        pitch_hz = root_hz * 2 ** (generator.choice([0, 3, 4, 5, 7, 9, 12, 16]) / 12)
        note = sum(np.sin(2 * np.pi * k * pitch_hz * time_s) / k**2 for k in range(1, 6))
        tune[start : start + len(time_s)] += (
            note * np.exp(-time_s * 6) * np.minimum(1, time_s * 200)
        )
    return tune[:samples]


def _normalized(signal: Signal) -> Audio:
    peak = np.abs(signal).max()
    return (signal * (_PEAK / peak) if peak > 0 else signal).astype(np.float32)


NOISES: dict[str, Callable[[int, np.random.Generator], Signal]] = {
    "white": _white,
    "pink": _pink,
    "brown": _brown,
    "hum": _hum,
    "modulated": _modulated,
    "clicks": _clicks,
    "engine": _engine,
    "arpeggio": _arpeggio,
}
