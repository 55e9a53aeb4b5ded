"""CIFAR-10 with the settings of the paper: 59 million parameters, strided attention.

    python recipes/density_cifar10.py --data cifar-10-batches-bin --out out/cifar10 --precision 16

The paper (Child et al. 2019) reports 2.80 bits per byte on the test images after 120 epochs.
"""

import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.images import read_cifar10
from speechkit.density.optimisation import FitConfig
from speechkit.density.sample import SampleConfig, sample_with
from speechkit.density.train import ModelChanges, train_model

PAPER = 2.80
SETTINGS = FitConfig(validate_every=1000)


def density_cifar10(
    *,
    data: Path,
    out: Path,
    samples: int = 16,
    windows: int = 0,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train on CIFAR-10, measure bits per byte of the test images, draw samples.

    Parameters
    ----------
    data
        the folder of the binary version, or one with folders train and test of PNG files.
    out
        gets model/, log.jsonl, test/ (the report) and samples/.
    samples
        pictures to draw.
    windows
        pictures to score, at even distances; 0 for all.
    """
    corpus = read_cifar10(data)
    artifact = train_model(corpus, preset="cifar10", out=out, model=model, config=config)
    scoring = ScoringConfig(windows=windows, precision=config.precision)
    found = evaluate_with(artifact, corpus, split="test", out=out / "test", config=scoring)
    print(f"test: {found.score.bits_per_byte:.4f} bits per byte (the paper: {PAPER})")
    if samples:
        sample_with(artifact, out=out / "samples", config=SampleConfig(count=samples))


if __name__ == "__main__":
    sys.exit(run_recipe(density_cifar10))
