"""Rooms and noise of a scene: what is drawn is what is heard."""

import numpy as np
import pytest

from speechkit.augment import reverberate
from speechkit.kws.scenes import Material, Scene, SceneConfig
from speechkit.kws.surroundings import Surroundings
from tests.kws.helpers import clip_of, noise, padded_clip, samples, tone

DRY = {"noise_probability": 0.0, "rir_probability": 0.0, "gain_db": (0.0, 0.0)}


def test_one_recording_of_noise_sounds_like_several():
    noise = padded_clip(3.0, hz=1_000.0, id_="noise")
    material = Material(positives=[], negatives=[], noises=[noise])
    surroundings = Surroundings(material, SceneConfig(), samples=samples(4.0))
    rng = np.random.default_rng(1)
    found = [surroundings.noise(rng) for _ in range(30)]
    assert {len(one) for one in found} == {samples(4.0)}
    peaks = {int(np.abs(np.fft.rfft(one)).argmax()) // 40 for one in found}
    assert len(peaks) > 10


def in_surroundings(scene, material, **changes):
    config = SceneConfig(**DRY | changes)
    surroundings = Surroundings(material, config, samples=len(scene.audio))
    return surroundings.add_to(scene, np.random.default_rng(0))


def test_a_room_is_that_of_its_response():
    response = np.zeros(4_000, np.float32)
    response[[0, 800, 3_000]] = 1.0, 0.5, -0.25
    material = Material(positives=[], negatives=[], responses=[clip_of(0.9 * response)])
    scene = Scene(np.pad(tone(0.5), (samples(1.0), samples(2.5))))
    found = in_surroundings(scene, material, rir_probability=1.0)
    np.testing.assert_allclose(found, reverberate(scene.audio, 0.9 * response), atol=1e-3)
    assert not np.allclose(found, scene.audio, atol=1e-2)
    assert np.array_equal(in_surroundings(scene, material), scene.audio)


def test_babble_is_the_speech_of_negatives():
    speech = clip_of(tone(4.0, 500.0), id_="speech")
    material = Material(positives=[], negatives=[(speech, 0)], noises=[clip_of(noise(4.0))])
    scene = Scene(np.zeros(samples(4.0), np.float32))
    babble = {"noise_probability": 1.0, "noise_change_probability": 0.0}
    for probability, tonal in ((1.0, True), (0.0, False)):
        found = in_surroundings(scene, material, babble_probability=probability, **babble)
        spectrum = np.abs(np.fft.rfft(found)) ** 2
        near = spectrum[4 * 490 : 4 * 510].sum() / spectrum.sum()
        assert (near > 0.9) == tonal


@pytest.mark.parametrize("gain_db", [-20.0, 5.0])
def test_what_was_heard_gets_another_level_and_nothing_else(gain_db):
    material = Material(
        positives=[], negatives=[], noises=[clip_of(noise(4.0))], responses=[clip_of(noise(0.1))]
    )
    scene = Scene(np.pad(tone(0.5), samples(1.0)), as_heard=True)
    changes = {"noise_probability": 1.0, "rir_probability": 1.0, "gain_db": (gain_db, gain_db)}
    found = in_surroundings(scene, material, **changes)
    np.testing.assert_allclose(found, 10 ** (gain_db / 20) * scene.audio, atol=1e-6)
