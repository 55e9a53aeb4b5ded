"""Little corpora of tones that a tiny recogniser can learn within seconds."""

import json

import numpy as np
import torch
from lhotse import CutSet

from speechkit import manifests
from speechkit.asr.encoders import Network, SparseConfig
from speechkit.asr.normaliser import Normaliser
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.recurrent import RecurrentConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.tokenizer import Characters
from speechkit.audio import SAMPLE_RATE, write_audio
from speechkit.features import InputConfig, Inputs
from speechkit.frontend import LogMel, LogMelConfig
from speechkit.stored_features import StoredFeatures

# the pitch of each letter
PITCH = {"a": 400.0, "b": 900.0, "c": 1_700.0, "d": 3_000.0}
LETTER_S = 0.12
GAP_S = 0.06

SMALL = SparseConfig(
    subsampling=SubsamplingConfig(kind="1d", factor=2, channels=24),
    layers=2,
    width=24,
    heads=2,
    feed_forward_ratio=2,
    patterns=("Local(12)",),
    convolution=5,
)
SMALL_RECURRENT = RecurrentConfig(
    subsampling=SubsamplingConfig(kind="2d", factor=4, channels=4), layers=2, units=12, width=16
)


def tones(text, rng):
    """Return audio that spells a text: a tone a letter, silence for a space."""
    pieces = [silence(0.1, rng)]
    for letter in text:
        if letter in PITCH:
            time = np.arange(int(LETTER_S * SAMPLE_RATE)) / SAMPLE_RATE
            pieces.append(0.3 * np.sin(2 * np.pi * PITCH[letter] * time))
        pieces.append(silence(GAP_S, rng))
    return np.concatenate(pieces).astype(np.float32)


def silence(seconds, rng):
    return 0.001 * rng.standard_normal(int(seconds * SAMPLE_RATE))


def random_text(rng, *, words=2):
    letters = list(PITCH)
    return " ".join("".join(rng.choice(letters, rng.integers(1, 4))) for _ in range(words))


def write_corpus(folder, *, clips=6, speakers=3, seed=0):
    """Write clips and a manifest; return the cuts."""
    rng = np.random.default_rng(seed)
    rows = []
    for index in range(clips):
        text = random_text(rng)
        path = folder / f"{index:03d}.wav"
        write_audio(path, tones(text, rng))
        row = {"audio_filepath": path.name, "text": text.upper(), "speaker": f"s{index % speakers}"}
        rows.append(row)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CutSet.from_cuts(manifests.read(folder / "manifest.jsonl"))


def recogniser(config=SMALL, *, stored=False, tokens="abcd ", seed=0, inputs=InputConfig()):
    """Return an untrained recogniser of audio, or of features with 5 bands."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        source = StoredFeatures(bands=5) if stored else LogMel(LogMelConfig(mels=20))
        found = Inputs(source, inputs)
        tokenizer = Characters(tokens)
        network = Network(config, found.dimensions, tokenizer.size)
        return Recogniser(found, network, tokenizer=tokenizer, normaliser=Normaliser()).eval()
