"""Speed of the front-ends, and of librosa, which one would use in their place."""

import librosa
import numpy as np
import pytest
import torch

from speechkit.frontend import build

RATE = 16000
SECONDS = 60


@pytest.fixture(scope="module")
def audio():
    rng = np.random.default_rng(0)
    return rng.uniform(-0.5, 0.5, SECONDS * RATE).astype(np.float32)


def librosa_mel(audio):
    return librosa.feature.melspectrogram(
        y=audio, sr=RATE, n_fft=512, win_length=400, hop_length=160, n_mels=40, fmin=60, fmax=7600
    )


LIBROSA = {
    "logmel": lambda audio: np.log(np.maximum(librosa_mel(audio), 1e-10)),
    "mfcc": lambda audio: librosa.feature.mfcc(S=np.log(np.maximum(librosa_mel(audio), 1e-10))),
    "pcen": lambda audio: librosa.pcen(librosa_mel(audio), sr=RATE, hop_length=160),
}


def offline(name):
    frontend = build({"type": name})
    return lambda audio: frontend(torch.from_numpy(audio)[None])


def streamed(name):
    frontend = build({"type": name})

    def run(audio):
        stream = frontend.stream()
        for chunk in np.split(audio, SECONDS * 10):
            stream.push(chunk)

    return run


@pytest.mark.parametrize("name", LIBROSA)
@pytest.mark.parametrize("by", ["offline", "stream of 0.1 s", "librosa"])
def test_frontend(benchmark, audio, name, by):
    ways = {"offline": offline, "stream of 0.1 s": streamed, "librosa": LIBROSA.get}
    run = ways[by](name)
    benchmark.group = f"{name}, {SECONDS} s of audio, one thread"
    with torch.inference_mode():
        benchmark.pedantic(run, args=(audio,), rounds=7, warmup_rounds=1)
