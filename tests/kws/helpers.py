"""Small spotters, clips and sounds that the tests of the spotter share."""

import numpy as np
import torch

from speechkit.audio import INT16_SCALE, SAMPLE_RATE
from speechkit.augment import Span
from speechkit.kws.clips import Clip
from speechkit.kws.models import CrnnConfig
from speechkit.kws.spotter import DetectionConfig, Spotter, SpotterConfig

TINY = {
    "type": "crnn",
    "filters": 4,
    "recurrent_layers": 1,
    "recurrent_units": 4,
    "hidden": 8,
}


# sizes that divide nowhere
ODD_CRNN = CrnnConfig(
    frames=37,
    bands=11,
    filters=5,
    filter_size=(4, 3),
    filter_stride=(3, 2),
    recurrent_layers=1,
    recurrent_units=7,
    hidden=9,
)


def tiny_spotter(
    *, labels=("_background_", "computer"), seed=0, frontend="pcen", network=None, **detection
):
    """An untrained spotter whose scores nevertheless spread over (0, 1)."""
    torch.manual_seed(seed)
    config = SpotterConfig(
        labels=labels,
        frontend={"type": frontend},
        network=network if network and "type" in network else TINY | (network or {}),
        detection=DetectionConfig(**detection),
    )
    spotter = Spotter(config).eval()
    with torch.no_grad():
        for layer in (spotter.network.hidden, spotter.network.output):
            layer.weight *= 6
    return spotter


def samples(seconds):
    return round(seconds * SAMPLE_RATE)


def noise(seconds, *, seed=0, level=0.1):
    rng = np.random.default_rng(seed)
    return (level * rng.standard_normal(samples(seconds))).astype(np.float32)


def tone(seconds, hz=700.0, *, level=0.3):
    time_s = np.arange(samples(seconds)) / SAMPLE_RATE
    return (level * np.sin(2 * np.pi * hz * time_s)).astype(np.float32)


def bursts(seconds, *, seed=0):
    """Tones of random pitch and level, a fifth of a second each, over a little noise."""
    rng = np.random.default_rng(seed)
    pieces = [
        tone(0.2, rng.uniform(100, 6000), level=10 ** rng.uniform(-2.5, -0.5))
        for _ in range(int(seconds * 5) + 1)
    ]
    return np.concatenate(pieces)[: samples(seconds)] + noise(seconds, seed=seed, level=1e-3)


def clip_of(audio, *, id_="clip", span=None):
    """A clip whose speech, unless said otherwise, is all of it."""
    return Clip(
        id_, np.round(audio * (INT16_SCALE - 1)).astype(np.int16), span or Span(0, len(audio))
    )


def padded_clip(seconds=0.6, *, before_s=0.5, after_s=0.5, id_="clip", hz=700.0):
    """A tone between digital silence; the span is the tone's."""
    audio = np.pad(tone(seconds, hz), (samples(before_s), samples(after_s)))
    start = samples(before_s)
    return clip_of(audio, id_=id_, span=Span(start, start + samples(seconds)))
