import numpy as np

from speechkit.kws.scenes import Material, SceneConfig
from speechkit.kws.surroundings import Surroundings
from tests.kws.helpers import padded_clip, samples


def test_one_recording_of_noise_sounds_like_several():
    noise = padded_clip(3.0, hz=1_000.0, id_="noise")
    material = Material(positives=[], negatives=[], noises=[noise])
    surroundings = Surroundings(material, SceneConfig(), samples=samples(4.0))
    rng = np.random.default_rng(1)
    found = [surroundings.noise(rng) for _ in range(30)]
    assert {len(one) for one in found} == {samples(4.0)}
    peaks = {int(np.abs(np.fft.rfft(one)).argmax()) // 40 for one in found}
    assert len(peaks) > 10
