"""A stack of 64 blocks, with and without smaller projections at the end of residual branches.

    python recipes/density_depth.py --out out/depth

The paper (Child et al. 2019, section 5.2) scales them by 1 / sqrt(2 N) for N blocks.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.generator import generated_corpus
from speechkit.density.optimisation import FitConfig
from speechkit.density.study import plot_curves, read_log
from speechkit.density.text import read_text
from speechkit.density.train import ModelChanges, train_model
from speechkit.reports import markdown_table, provenance, write_report

DEEP = ModelChanges(
    layers=64, width=64, heads=2, shape=[8, 32], patterns=["Fixed(32, 8, True)"], dropout=0.0
)
SETTINGS = FitConfig(
    steps=150, batch=4, learning_rate=3e-3, warmup_steps=10, validate_every=50, valid_windows=16
)


def density_depth(
    *,
    out: Path,
    text: Path | None = None,
    model: ModelChanges = DEEP,
    config: FitConfig = SETTINGS,
) -> None:
    """Train both for a short time; plot both.

    Parameters
    ----------
    out
        gets scaled/ and unscaled/ (the runs), curves.png, report.json and report.md.
    text
        a text file; generated text by default.
    """
    corpus = read_text(text) if text else generated_corpus()
    runs = {"scaled": True, "unscaled": False}
    rows = []
    for name, scaled in runs.items():
        changed = dataclasses.replace(model, depth_scaling=scaled)
        artifact = train_model(
            corpus, preset="tiny_text", out=out / name, model=changed, config=config
        )
        norms = [line["gradient_norm"] for line in read_log(out / name) if "gradient_norm" in line]
        largest = max((norm for norm in norms if norm is not None), default=float("nan"))
        rows.append([name, artifact.about["valid_bits_per_byte"], f"{largest:.3g}"])
    plot_curves(out / "curves.png", {name: out / name for name in runs})
    table = markdown_table(["", "best bits per byte of valid", "largest gradient norm"], rows)
    about = provenance(seed=config.seed, data={corpus.name: corpus.fingerprint()})
    write_report(out, {"rows": rows, **about}, f"# Depth\n\n{table}\n")
    print(f"{table}\n\ncurves: {out / 'curves.png'}")


if __name__ == "__main__":
    sys.exit(run_recipe(density_depth))
