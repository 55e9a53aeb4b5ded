import numpy as np
import pytest

from speechkit.kws.scenes import Material
from tests.kws.helpers import padded_clip


def test_long_speech_is_heard_by_its_length():
    long, short = padded_clip(9.0, hz=500.0, id_="long"), padded_clip(1.0, hz=4_000.0, id_="short")
    material = Material(positives=[], negatives=[(long, 0), *[(short, 0)] * 3])
    rng = np.random.default_rng(0)
    picked = [material.negative_by_length(rng)[0] is long for _ in range(2_000)]
    share = len(long.samples) / (len(long.samples) + 3 * len(short.samples))
    assert np.mean(picked) == pytest.approx(share, abs=0.04)
