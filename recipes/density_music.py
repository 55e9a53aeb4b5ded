"""Raw audio, mu-law at 12 kHz: the three models of the paper, or one that trains on two cores.

    python recipes/density_music.py --data FOLDER --out out/music --size 65k --precision bf16
    python recipes/density_music.py --data FOLDER --out out/voices --size tiny

The paper (Child et al. 2019) reports, on classical music, 1.97 bits per byte at 65,536 steps, 2.17
at 262,144 and 2.99 at 1,048,576; it gives neither layers nor learning rates, which are ours.
"""

import sys
from pathlib import Path
from typing import Literal

from speechkit.cli import run_recipe
from speechkit.density.audio import AudioConfig, read_audio
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.optimisation import FitConfig
from speechkit.density.sample import SampleConfig, sample_with
from speechkit.density.train import ModelChanges, train_model

PRESETS = {"65k": "music_65k", "262k": "music_262k", "1m": "music_1m", "tiny": "tiny_audio"}
PAPER = {"65k": 1.97, "262k": 2.17, "1m": 2.99}
SETTINGS = FitConfig(validate_every=100, valid_windows=16)


def density_music(
    *,
    data: Path,
    out: Path,
    size: Literal["65k", "262k", "1m", "tiny"] = "65k",
    samples: int = 1,
    windows: int = 0,
    model: ModelChanges = ModelChanges(),
    source: AudioConfig = AudioConfig(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train on audio, measure bits per byte of the test files, draw samples.

    Parameters
    ----------
    data
        a folder of audio, or a manifest.
    out
        gets model/, log.jsonl, test/ (the report) and samples/.
    size
        steps of the model; tiny has 16,384.
    samples
        sounds to draw, each as long as the model's context.
    windows
        windows to score, at even distances; 0 for all.
    """
    corpus = read_audio(data, source)
    artifact = train_model(corpus, preset=PRESETS[size], out=out, model=model, config=config)
    scoring = ScoringConfig(
        windows=windows,
        batch=1,
        precision=config.precision,
        baselines=size == "tiny" and not windows,
    )
    found = evaluate_with(artifact, corpus, split="test", out=out / "test", config=scoring)
    print(
        f"test, minimum context 0: {found.score.bits_per_byte:.4f} bits per byte "
        f"(the paper, classical music: {PAPER.get(size, '-')})"
    )
    for one in found.baselines:
        print(f"{one.name}, after the training bytes: {one.after_training:.4f}")
    if samples:
        sample_with(artifact, out=out / "samples", config=SampleConfig(count=samples))


if __name__ == "__main__":
    sys.exit(run_recipe(density_music))
