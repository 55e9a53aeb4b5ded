"""Scenes before noise: what is drawn how often, at which speed and level, and where it lies."""

import numpy as np
import pytest

from speechkit.audio import SAMPLE_RATE
from speechkit.augment import active_power
from speechkit.kws.scenes import Material, SceneConfig, Scenes
from tests.kws.helpers import clip_of, padded_clip, samples


def test_long_speech_is_heard_by_its_length():
    long, short = padded_clip(9.0, hz=500.0, id_="long"), padded_clip(1.0, hz=4_000.0, id_="short")
    material = Material(positives=[], negatives=[(long, 0), *[(short, 0)] * 3])
    rng = np.random.default_rng(0)
    picked = [material.negative_by_length(rng)[0] is long for _ in range(2_000)]
    share = len(long.samples) / (len(long.samples) + 3 * len(short.samples))
    assert np.mean(picked) == pytest.approx(share, abs=0.04)


def sounding(scene):
    """Return the first and last sample that sounds, and the pitch between them in Hz."""
    places = np.flatnonzero(np.abs(scene.audio) > 0.02)
    first, last = int(places[0]), int(places[-1]) + 1
    spectrum = np.abs(np.fft.rfft(scene.audio[first:last], 1 << 16))
    return first, last, spectrum.argmax() * SAMPLE_RATE / (1 << 16)


@pytest.mark.parametrize("factor", [0.88, 1.12])
@pytest.mark.parametrize("kind", ["positive_share", "hard_share"])
def test_what_is_played_faster_is_shorter_and_where_the_scene_says(kind, factor):
    clip = padded_clip(0.5, before_s=0.3, after_s=0.2, hz=2_000.0)
    material = Material(positives=[(clip, 1)], negatives=[], hard=[(clip, 0)])
    shares = {"positive_share": 0.0, "hard_share": 0.0, kind: 1.0}
    config = SceneConfig(
        speed=(factor, factor), speed_probability=1.0, neighbour_probability=0.0, **shares
    )
    scenes = Scenes(
        material, config, samples=samples(5.0), window=samples(1.5), warmup=samples(1.0)
    )
    played = set()
    for seed in range(12):
        scene = scenes.build(np.random.default_rng(seed), 0.0)
        speed = 1.0 if scene.as_heard else factor
        first, last, hz = sounding(scene)
        assert hz == pytest.approx(2_000.0 * speed, rel=0.01)
        assert last - first == pytest.approx(samples(0.5) / speed, abs=samples(0.01))
        assert (scene.focus.start, scene.focus.end) == pytest.approx(
            (first, last), abs=samples(0.01)
        )
        assert samples(1.0) < first
        played.add(speed)
    assert played == ({factor} if kind == "positive_share" else {1.0, factor})


def test_a_neighbour_is_about_as_loud_as_the_keyword():
    keyword = padded_clip(0.5, hz=2_000.0)
    other = clip_of(0.01 * padded_clip(0.5, hz=500.0).audio, span=keyword.span, id_="other")
    material = Material(positives=[(keyword, 1)], negatives=[(other, 0)])
    config = SceneConfig(positive_share=1.0, speed_probability=0.0, neighbour_probability=1.0)
    scenes = Scenes(
        material, config, samples=samples(5.0), window=samples(1.5), warmup=samples(1.0)
    )
    found = []
    for seed in range(30):
        scene = scenes.build(np.random.default_rng(seed), 0.0)
        own = active_power(scene.audio[scene.focus.start : scene.focus.end])
        for span, label in scene.spoken:
            inside = scene.audio[max(0, span.start) : span.end]
            if label == 0 and len(inside) == span.samples:
                found.append(10 * np.log10(active_power(inside) / own))
    assert len(found) > 30
    assert -10.0 < min(found) < -4.0
    assert 0.0 < max(found) < 4.0
