"""Strided against dense attention on small pictures that come with scikit-learn.

    python recipes/density_small_images.py --out out/digits --pictures digits
    python recipes/density_small_images.py --out out/patches --pictures patches

The paper (Child et al. 2019, table 2) has 2.80 bits per byte for strided and 2.82 for dense
attention on CIFAR-10, in 0.7 of the time.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from speechkit.cli import run_recipe
from speechkit.density.corpus import Corpus
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.images import from_arrays, tiles
from speechkit.density.optimisation import FitConfig
from speechkit.density.sample import SampleConfig, sample_with
from speechkit.density.study import plot_curves
from speechkit.density.train import ModelChanges, train_model
from speechkit.reports import markdown_table

SETTINGS = FitConfig(steps=600, validate_every=100)
# strength of a digit's stroke
DIGIT_LEVELS = 16


def density_small_images(
    *,
    out: Path,
    pictures: Literal["digits", "patches"] = "digits",
    side: int = 8,
    samples: int = 64,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train both, measure bits per byte of both, draw samples of both.

    Parameters
    ----------
    out
        gets strided/ and dense/ (the runs, their reports and samples) and curves.png.
    pictures
        1,797 digits of 8 x 8 in grey, or squares cut out of two photographs.
    side
        of the squares.
    samples
        pictures to draw of each.
    """
    corpus = digits() if pictures == "digits" else patches(side)
    height, width, channels = dataclasses.astuple(corpus.shape)
    row = width * channels
    patterns = {"strided": [f"Local({row})", f"Strided({row})"], "dense": ["Dense()"]}
    rows = []
    for name, pattern in patterns.items():
        changed = dataclasses.replace(model, patterns=pattern, shape=[height, width, channels])
        run = out / name
        artifact = train_model(corpus, preset="tiny_image", out=run, model=changed, config=config)
        scoring = ScoringConfig(baselines=True)
        found = evaluate_with(artifact, corpus, out=run / "report", config=scoring)
        rows.append([name, f"{found.score.bits_per_byte:.4f}"])
        sample_with(artifact, out=run / "samples", config=SampleConfig(count=samples))
    rows += [[one.name, f"{one.after_training:.4f}"] for one in found.baselines]
    plot_curves(out / "curves.png", {name: out / name for name in patterns})
    print(markdown_table([corpus.name, "bits per byte of valid"], rows))


def digits() -> Corpus:
    """Return the digits, their strengths stretched to 0 to 255."""
    images = np.round(load_digits().images * (255 / DIGIT_LEVELS))
    return from_arrays(images, name="digits", test_fraction=0.1)


def patches(side: int) -> Corpus:
    """Return the squares of the photographs."""
    cut = [tiles(np.asarray(photograph), side) for photograph in load_sample_images().images]
    return from_arrays(np.concatenate(cut), name="patches", test_fraction=0.1)


if __name__ == "__main__":
    sys.exit(run_recipe(density_small_images))
