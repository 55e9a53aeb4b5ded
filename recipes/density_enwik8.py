"""Enwik8 with the settings of the paper: 95 million parameters, fixed attention, 12,288 bytes.

    python recipes/density_enwik8.py --data enwik8.zip --out out/enwik8 --precision bf16

The paper (Child et al. 2019) reports 0.99 bits per byte after 80 epochs on 8 V100; it does not give
the learning rate, which is ours. On more GPUs: --devices 8 --strategy ddp (or fsdp).
"""

import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.optimisation import FitConfig
from speechkit.density.text import read_enwik8
from speechkit.density.train import ModelChanges, train_model

# minimum context -> bits per byte in the paper's table 3
PAPER = {6144: 0.9952, 9216: 0.9936, 10752: 0.9932, 11904: 0.9930, 12096: 0.9922, 12160: 0.9908}
SETTINGS = FitConfig(validate_every=2000, valid_windows=64, accumulate=4)


def density_enwik8(
    *,
    data: Path,
    out: Path,
    min_context: list[int] = [6144, 12096],  # noqa: B006
    windows: int = 0,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train on Enwik8 and measure bits per byte of its test bytes.

    Parameters
    ----------
    data
        enwik8 or enwik8.zip.
    out
        gets model/, log.jsonl and a report for each minimum context.
    min_context
        bytes before each byte that is scored, at least.
    windows
        windows to score, at even distances; 0 for all.
    """
    corpus = read_enwik8(data)
    artifact = train_model(corpus, preset="enwik8", out=out, model=model, config=config)
    for least in min_context:
        scoring = ScoringConfig(min_context=least, windows=windows, precision=config.precision)
        found = evaluate_with(
            artifact, corpus, split="test", out=out / f"test-{least}", config=scoring
        )
        print(
            f"test, minimum context {least}: {found.score.bits_per_byte:.4f} bits per byte "
            f"(the paper: {PAPER.get(least, '-')})"
        )


if __name__ == "__main__":
    sys.exit(run_recipe(density_enwik8))
