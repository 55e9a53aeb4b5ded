"""Speed of the streaming detector: the paper's network, untrained, on one thread."""

import sys

import numpy as np
import pytest
import torch

from speechkit.kws.detector import Detector
from speechkit.kws.spotter import Spotter, SpotterConfig, windows_along

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


@pytest.mark.parametrize("network", ["crnn", "cnn"])
@pytest.mark.parametrize("way", ["their work shared", "each on its own"])
@torch.inference_mode()
def test_windows_of_long_features(benchmark, network, way):
    spotter = Spotter(SpotterConfig(labels=("_background_", "computer"), network={"type": network}))
    spotter.eval()
    features = torch.randn(spotter.window_frames + 255 * spotter.shift_frames, 40)

    def each(features):
        return spotter.keyword_scores(
            windows_along(features, spotter.window_frames, spotter.shift_frames)
        )

    score = spotter.along_streams() if way == "their work shared" else each
    torch.testing.assert_close(score(features), each(features), rtol=1e-4, atol=1e-6)
    benchmark.group = f"{network}, 256 windows of features, one thread"
    benchmark.pedantic(score, (features,), rounds=7, warmup_rounds=1)
