import math

import numpy as np
import pytest

from speechkit.active_learning.quality import QualityLimits, measure
from speechkit.errors import RequestError


def speech(rng, *, snr_db=20.0, seconds=2.0):
    samples = round(16000 * seconds)
    noise = rng.normal(0, 0.01, samples)
    voice = rng.normal(0, 0.01 * 10 ** (snr_db / 20), samples) * (np.arange(samples) % 8000 < 4000)
    return (noise + voice).astype(np.float32)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_the_ratio_is_estimated(rng, snr_db):
    assert measure(speech(rng, snr_db=snr_db))["snr_db"] == pytest.approx(snr_db, abs=3.0)


@pytest.mark.parametrize("samples", [0, 1, 319, 640, 16000])
def test_silence_and_shreds_are_measured(samples):
    found = measure(np.zeros(samples, dtype=np.float32))
    assert found["level_dbfs"] == -100
    assert found["clipped_share"] == 0
    assert math.isnan(found["snr_db"])


def test_faults(rng):
    clipped = speech(rng).copy()
    clipped[:1000] = 1.0
    for audio, fault in [
        (speech(rng), None),
        (np.zeros(16000, np.float32), "silent"),
        (speech(rng)[:1000], "too short"),
        (clipped, "clipped"),
    ]:
        found = QualityLimits().fault({"duration_s": len(audio) / 16000, **measure(audio)})
        assert found == fault if fault is None else found.startswith(fault)


def test_what_was_not_measured_is_not_judged():
    limits = QualityLimits(max_duration_s=5)
    assert limits.fault({"duration_s": 1.0, "level_dbfs": None}) is None
    assert limits.fault({"duration_s": 6.0}) == "too long: 6.000 s"
    with pytest.raises(RequestError, match="durations from"):
        QualityLimits(min_duration_s=3, max_duration_s=2)
