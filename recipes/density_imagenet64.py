"""ImageNet at 64 x 64 with the settings of the paper: 152 million parameters, strided attention.

    python recipes/density_imagenet64.py --data FOLDER --out out/imagenet64 --precision bf16 \
        --devices 8 --nodes 8 --strategy fsdp

FOLDER holds train_data_batch_1.npz and so on, and val_data.npz. The paper (Child et al. 2019)
reports 3.44 bits per byte on the validation images after 70 epochs, 7 days on 64 V100, of the older
set that was scaled by another filter: the two do not compare (give --pictures for the older one).
"""

import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.imagenet import read_imagenet64
from speechkit.density.images import ImageConfig, read_images
from speechkit.density.optimisation import FitConfig
from speechkit.density.train import ModelChanges, train_model

PAPER = 3.44
SETTINGS = FitConfig(validate_every=2000, valid_windows=1000)


def density_imagenet64(
    *,
    data: Path,
    out: Path,
    pictures: bool = False,
    cache: Path | None = None,
    windows: int = 0,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train on ImageNet-64 and measure bits per byte of the validation images.

    Parameters
    ----------
    data
        the folder with the npz files.
    out
        gets model/, log.jsonl and valid/ (the report).
    pictures
        the folder has folders of PNG files instead: the older set, which the paper reports on.
    cache
        the folder for 15.7 GB of decoded images; below the user's cache folder by default.
    windows
        pictures to score, at even distances; 0 for all.
    """
    older = ImageConfig(size=(64, 64), cache=cache)
    corpus = read_images(data, older) if pictures else read_imagenet64(data, cache=cache)
    artifact = train_model(corpus, preset="imagenet64", out=out, model=model, config=config)
    scoring = ScoringConfig(windows=windows, precision=config.precision)
    found = evaluate_with(artifact, corpus, out=out / "valid", config=scoring)
    print(f"valid: {found.score.bits_per_byte:.4f} bits per byte (the paper: {PAPER})")


if __name__ == "__main__":
    sys.exit(run_recipe(density_imagenet64))
