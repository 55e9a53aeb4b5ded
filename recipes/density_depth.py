"""A stack of 64 blocks, with and without smaller projections at the end of residual branches.

    python recipes/density_depth.py --text FILE.txt --out out/depth --log-every 1

The paper (Child et al. 2019, section 5.2) scales them by 1 / sqrt(2 N) for N blocks, so that the
sum of all branches keeps its size beside the embedding whatever N is. Measured here: that size in
untrained stacks of several depths, and the curves of the deepest stack trained both ways.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.generator import generated_corpus
from speechkit.density.optimisation import FitConfig
from speechkit.density.presets import preset
from speechkit.density.study import noise, plot_curves, read_log, stream_sizes
from speechkit.density.text import read_text
from speechkit.density.train import ModelChanges, new_model, train_model
from speechkit.reports import markdown_table, provenance, write_report

DEEP = ModelChanges(
    layers=64,
    width=64,
    heads=2,
    shape=[8, 16],
    patterns=["Fixed(16, 4, True)"],
    positions="none",
    dropout=0.0,
)
# tables at the preset's 20 times this rate: at 3e-3 for all alike the two do not part
SETTINGS = FitConfig(
    steps=250, batch=2, learning_rate=1e-3, warmup_steps=10, validate_every=50, valid_windows=64
)
DEPTHS = (4, 16, 64)
RUNS = {"scaled": True, "unscaled": False}


def density_depth(
    *,
    out: Path,
    text: Path | None = None,
    model: ModelChanges = DEEP,
    config: FitConfig = SETTINGS,
) -> None:
    """Measure untrained stacks; train both for a short time; plot both.

    Parameters
    ----------
    out
        gets scaled/ and unscaled/ (the runs), curves.png, report.json and report.md.
    text
        a text file; generated text by default.
    """
    corpus = read_text(text) if text else generated_corpus()
    rows = []
    for name, scaled in RUNS.items():
        changed = dataclasses.replace(model, depth_scaling=scaled)
        artifact = train_model(
            corpus, preset="tiny_text", out=out / name, model=changed, config=config
        )
        norms = [line["gradient_norm"] for line in read_log(out / name) if "gradient_norm" in line]
        largest = max((norm for norm in norms if norm is not None), default=float("nan"))
        grown = [f"{growth(changed, layers, config.seed):.1f}" for layers in DEPTHS]
        rows.append([name, *grown, artifact.about["valid_bits_per_byte"], f"{largest:.3g}"])
    plot_curves(out / "curves.png", {name: out / name for name in RUNS})
    heads = [f"stream over embedding, {layers} blocks" for layers in DEPTHS]
    header = ["", *heads, "best bits per byte of valid", "largest gradient norm"]
    table = markdown_table(header, rows)
    about = provenance(seed=config.seed, data={corpus.name: corpus.fingerprint()})
    write_report(out, {"header": header, "rows": rows, **about}, f"# Depth\n\n{table}\n")
    print(f"{table}\n\ncurves: {out / 'curves.png'}")


def growth(changes: ModelChanges, layers: int, seed: int) -> float:
    """Return the size of an untrained stack's residual stream at its end over that at its start."""
    config = dataclasses.replace(changes, layers=layers).apply(preset("tiny_text").model)
    sizes = stream_sizes(new_model(config, seed=seed), noise(1, 4, config.context)[0])
    return sizes[-1] / sizes[0]


if __name__ == "__main__":
    sys.exit(run_recipe(density_depth))
