import lzma
import math

import numpy as np
import pytest

from speechkit.density.metrics import bits_per_byte, compressor_baselines, unigram_bits_per_byte
from speechkit.errors import RequestError


def test_a_uniform_guess_costs_eight_bits():
    assert bits_per_byte(1000 * math.log(256), 1000) == pytest.approx(8.0, abs=1e-12)
    with pytest.raises(RequestError, match="nothing to average"):
        bits_per_byte(0.0, 0)


def by_name(train, valid):
    return {baseline.name: baseline for baseline in compressor_baselines(train, valid)}


def test_xz_is_what_the_library_gives(rng):
    train, valid = (rng.integers(97, 105, size, dtype=np.uint8) for size in (30_000, 5_003))
    xz = by_name(train, valid)["xz -9"]
    sizes = [
        len(lzma.compress(data, preset=9))
        for data in (train.tobytes(), train.tobytes() + valid.tobytes(), valid.tobytes())
    ]
    assert xz.after_training == 8 * (sizes[1] - sizes[0]) / 5_003
    assert xz.alone == 8 * sizes[2] / 5_003


def test_what_was_seen_before_is_cheap_within_reach(rng):
    valid = rng.integers(0, 256, 20_000, dtype=np.uint8)
    far = rng.integers(0, 256, 60_000, dtype=np.uint8)
    cost = by_name(np.concatenate([valid, far]), valid)
    assert cost["xz -9"].after_training < 0.2 < 7.9 < cost["gzip -9"].after_training
    assert all(baseline.alone > 7.9 for baseline in cost.values())


def test_single_bytes_by_their_counts():
    train = np.array([0] * 768 + [1] * 256, dtype=np.uint8)
    even = unigram_bits_per_byte(np.tile(np.arange(256, dtype=np.uint8), 3), train)
    assert even == pytest.approx(8.0)
    wanted = -math.log2(769 / 1280)
    assert unigram_bits_per_byte(train, np.zeros(9, np.uint8)) == pytest.approx(wanted)


def test_no_validation_bytes():
    nothing = np.zeros(0, dtype=np.uint8)
    with pytest.raises(RequestError, match="no validation bytes"):
        compressor_baselines(np.ones(5, np.uint8), nothing)
