"""Fixed against dense attention on text, at equal size, steps and data; and what a step costs.

    python recipes/density_text_patterns.py --text FILE.txt --out out/patterns

The paper (Child et al. 2019, table 2) has 0.99 bits per byte for fixed and 1.00 for dense attention
on Enwik8, in 0.42 of the time.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit.cli import run_recipe
from speechkit.density.evaluate import ScoringConfig, evaluate_with
from speechkit.density.optimisation import FitConfig, Precision
from speechkit.density.presets import preset
from speechkit.density.study import at_length, noise, plot_curves, step_cost
from speechkit.density.text import read_text
from speechkit.density.train import ModelChanges, train_model
from speechkit.reports import markdown_table, provenance, write_report

PATTERNS = {"fixed": "Fixed(32, 8, True)", "dense": "Dense()"}
SETTINGS = FitConfig(validate_every=200, valid_windows=32)


def density_text_patterns(
    *,
    text: Path,
    out: Path,
    lengths: list[int] = [1024, 2048, 4096, 8192],  # noqa: B006
    timed_steps: int = 3,
    model: ModelChanges = ModelChanges(),
    config: FitConfig = SETTINGS,
) -> None:
    """Train both, measure bits per byte of both, time steps of both.

    Parameters
    ----------
    text
        a text file, whose last tenth is to validate on.
    out
        gets fixed/ and dense/ (the runs), curves.png, report.json and report.md.
    lengths
        of the steps that are timed; none to leave that out.
    timed_steps
        steps of each length, of which the shortest counts.
    """
    corpus = read_text(text)
    runs = {name: out / name for name in PATTERNS}
    rows = []
    for name, pattern in PATTERNS.items():
        changed = dataclasses.replace(model, patterns=[pattern])
        artifact = train_model(
            corpus, preset="tiny_text", out=runs[name], model=changed, config=config
        )
        scoring = ScoringConfig(min_context=artifact.model.config.context // 2, baselines=True)
        found = evaluate_with(artifact, corpus, out=runs[name] / "report", config=scoring)
        rows.append([name, f"{found.score.bits_per_byte:.4f}", scoring.min_context])
    rows += [[one.name, f"{one.after_training:.4f}", None] for one in found.baselines]
    plot_curves(out / "curves.png", runs)
    times = [timed(length, timed_steps, config.precision) for length in lengths]
    bits = markdown_table(["", "bits per byte of valid", "minimum context"], rows)
    seconds = markdown_table(["length", "fixed, s", "dense, s", "dense / fixed"], times)
    report = {"bits_per_byte": rows, "seconds": times}
    about = provenance(seed=config.seed, data={corpus.name: corpus.fingerprint()})
    write_report(out, {**report, **about}, f"# Fixed and dense\n\n{bits}\n\n{seconds}\n")
    print(f"{bits}\n\n{seconds}\n\ncurves: {out / 'curves.png'}")


def timed(length: int, steps: int, precision: Precision) -> list[object]:
    """Return length, seconds of a training step of both patterns, and their ratio."""
    base = preset("tiny_text").model
    seconds = [
        step_cost(
            at_length(base, length, [pattern]), noise(steps, 1, length), precision=precision
        ).best_s
        for pattern in ("Fixed({stride}, 8, True)", "Dense()")
    ]
    return [length, *(f"{one:.3f}" for one in seconds), f"{seconds[1] / seconds[0]:.2f}"]


if __name__ == "__main__":
    sys.exit(run_recipe(density_text_patterns))
