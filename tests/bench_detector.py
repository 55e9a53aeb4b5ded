"""Speed of the streaming detector: the paper's network, untrained, on one thread."""

import sys

import numpy as np
import pytest

from speechkit.kws.detector import Detector
from speechkit.kws.spotter import Spotter, SpotterConfig

RATE = 16000
SECONDS = 30


@pytest.mark.parametrize("network", ["crnn", "cnn"])
@pytest.mark.parametrize("chunk_s", [0.02, 0.1, 1.0])
def test_detector(benchmark, capsys, network, chunk_s):
    config = SpotterConfig(labels=("_background_", "computer"), network={"type": network})
    detector = Detector(Spotter(config))
    rng = np.random.default_rng(0)
    audio = rng.integers(-3000, 3000, SECONDS * RATE).astype(np.int16)
    pieces = np.split(audio, round(SECONDS / chunk_s))

    def listen():
        detector.reset()
        for piece in pieces:
            detector.push(piece)
        detector.flush()

    benchmark.group = f"detector, {SECONDS} s of audio, one thread"
    benchmark.pedantic(listen, rounds=3, warmup_rounds=1)
    factor = benchmark.stats.stats.median / SECONDS
    with capsys.disabled():
        sys.stdout.write(f"\n{network}, chunks of {chunk_s} s: {factor:.4f} of real time")
