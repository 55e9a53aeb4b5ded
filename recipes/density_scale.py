"""What a training step on very long sequences takes: memory predicted and measured, seconds, loss.

    python recipes/density_scale.py --out out/million --lengths 1048576 --model.width 128
    python recipes/density_scale.py --out out/memory --lengths 4096 16384 65536 --both

Local and strided attention, of stride near the root of the length, on audio (or, without a folder
of it, a sum of tones); every configuration runs in a process of its own.
"""

import dataclasses
import sys
from itertools import product
from pathlib import Path

import numpy as np

from speechkit.cli import run_recipe
from speechkit.density.audio import SAMPLE_RATE, mulaw_encode, read_audio
from speechkit.density.corpus import Bytes
from speechkit.density.memory import training_memory
from speechkit.density.optimisation import Precision
from speechkit.density.presets import preset as preset_of
from speechkit.density.study import at_length, step_cost
from speechkit.density.train import ModelChanges
from speechkit.reports import markdown_table, provenance, write_report

GIB = 1 << 30
PATTERNS = ("Local({stride})", "Strided({stride})")
HEADER = [
    "steps",
    "recompute",
    "predicted, GiB",
    "tensors, GiB",
    "process, GiB",
    "seconds a step",
    "bits per byte, by step",
]


def density_scale(
    *,
    out: Path,
    lengths: list[int] = [1_048_576],  # noqa: B006
    preset: str = "music_1m",
    audio: Path | None = None,
    steps: int = 3,
    both: bool = False,
    exact: bool = True,
    most_gib: float = 16.0,
    learning_rate: float = 2e-3,
    precision: Precision = "32",
    model: ModelChanges = ModelChanges(feed_forward_steps=16_384),
) -> None:
    """Measure training steps.

    Parameters
    ----------
    out
        gets report.json and report.md.
    lengths
        steps of the sequences, one sequence at a time.
    preset
        the model, whose positions and stride follow the length.
    audio
        a folder of audio, or a manifest.
    steps
        training steps of each, all on one sequence.
    both
        also without recomputation.
    exact
        also measure the memory of tensors alone, in two more steps; where each is larger than
        32 MiB, at a million steps for one, the process holds little else.
    most_gib
        what is predicted to take more memory is not run.
    learning_rate, precision
        of the steps.
    """
    rows = []
    for length, recompute in product(lengths, (True, False) if both else (True,)):
        changes = dataclasses.replace(model, recompute=recompute)
        config = at_length(changes.apply(preset_of(preset).model), length, PATTERNS)
        half = precision != "32"
        memory = training_memory(config, batch=1, steps=length, half=half).peak / GIB
        head = [f"{length:,}", "yes" if recompute else "no", f"{memory:.2f}"]
        if memory > most_gib:
            rows.append([*head, None, None, None, None])
            continue
        batch = sound(audio, length)
        settings = {"learning_rate": learning_rate, "precision": precision}
        cost = step_cost(config, [batch] * steps, **settings)
        tensors = None
        if exact:
            held = step_cost(config, [batch] * 2, give_back=True, **settings).peak_bytes
            tensors = f"{held / GIB:.2f}"
        bits = ", ".join(f"{one:.3f}" for one in cost.bits_per_byte)
        rows.append([*head, tensors, f"{cost.peak_bytes / GIB:.2f}", f"{cost.best_s:.1f}", bits])
    table = markdown_table(HEADER, rows)
    about = provenance(seed=0, data={})
    write_report(out, {"header": HEADER, "rows": rows, **about}, f"# Training steps\n\n{table}\n")
    print(table)


def sound(folder: Path | None, length: int) -> Bytes:
    """Return a batch (1, n) of mu-law audio, or of a sum of tones that rise slowly."""
    if folder:
        return read_audio(folder).training(length=length)[0][None]
    time_s = np.arange(length) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * hz * time_s * (1 + 0.01 * time_s)) for hz in (110, 277, 440))
    return mulaw_encode(tones / 4)[None]


if __name__ == "__main__":
    sys.exit(run_recipe(density_scale))
