"""What a training step costs, and curves of runs side by side."""

import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from speechkit.density.corpus import Bytes
from speechkit.density.evaluate import autocast, device
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.density.optimisation import Precision, parameter_groups
from speechkit.errors import JobError
from speechkit.files import atomic_path
from speechkit.isolated import Limits, run_isolated
from speechkit.kernels.peak_memory import peak_bytes, start_counting

_BITS = 1 / math.log(2)
# of glibc: from this size on, what is freed goes back to the system
_THRESHOLD = "MALLOC_MMAP_THRESHOLD_"
_UNLIMITED = Limits(seconds=math.inf, gib=math.inf)


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What training steps took.

    Parameters
    ----------
    seconds, bits_per_byte
        of each step.
    peak_bytes
        the most memory, beyond what the process held before it had a model.
    """

    seconds: tuple[float, ...]
    bits_per_byte: tuple[float, ...]
    peak_bytes: int

    @property
    def best_s(self) -> float:
        """The shortest step: the one that others on the machine disturbed least."""
        return min(self.seconds)


def step_cost(
    config: DensityConfig,
    batches: Sequence[Bytes],
    *,
    learning_rate: float = 1e-3,
    precision: Precision = "32",
    give_back: bool = False,
) -> StepCost:
    """Train for a few steps on batches (B, n), in a process of its own.

    Parameters
    ----------
    give_back
        on the CPU, return the memory of every larger tensor to the system as soon as it is free:
        the peak is then that of the tensors, without what the C library keeps for reuse (up to
        twice as much again with tensors below 32 MiB), but steps take longer.

    Raises
    ------
    JobError
        if the process ends before it is done, as one does that takes all memory.
    """
    with _environment({_THRESHOLD: str(1 << 20)} if give_back else {}):
        outcome = run_isolated(
            _measure, config, list(batches), learning_rate, precision, limits=_UNLIMITED
        )
    if outcome.stopped is not None:
        raise JobError(
            f"a step of {batches[0].shape[1]:,} bytes: {outcome.stopped}; give a smaller model, or "
            "recompute"
        )
    cost: StepCost = outcome.value
    return cost


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            os.environ.update({} if value is None else {name: value})


def _measure(
    config: DensityConfig, batches: list[Bytes], learning_rate: float, precision: Precision
) -> StepCost:
    place = device()
    torch.zeros(1, device=place)
    before = start_counting(place.type)
    torch.manual_seed(0)
    model = DensityModel(config).to(place).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, rate=learning_rate, decay=0.01))
    seconds, losses = [], []
    for batch in batches:
        begun = time.perf_counter()
        with autocast(precision):
            loss = model.loss(torch.from_numpy(batch).to(place))
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() * _BITS)
        seconds.append(time.perf_counter() - begun)
    return StepCost(
        seconds=tuple(seconds),
        bits_per_byte=tuple(losses),
        peak_bytes=peak_bytes(place.type) - before,
    )


def at_length(config: DensityConfig, length: int, patterns: Sequence[str]) -> DensityConfig:
    """Return a model for another length.

    Parameters
    ----------
    patterns
        of the layers; ``{stride}`` in them becomes the power of two nearest to the length's root,
        which also is how many columns the positions have.
    """
    stride = 1 << round(math.log2(length) / 2)
    filled = tuple(pattern.format(stride=stride) for pattern in patterns)
    return dataclasses.replace(
        config,
        shape=(-(-length // stride), stride),
        stack=dataclasses.replace(config.stack, patterns=filled),
    )


def noise(count: int, batch: int, length: int) -> list[Bytes]:
    """Return batches (B, n) of random bytes: a step costs the same, whatever they are."""
    rng = np.random.default_rng(0)
    return [rng.integers(256, size=(batch, length), dtype=np.uint8) for _ in range(count)]


@torch.no_grad()
def stream_sizes(model: DensityModel, batch: Bytes) -> list[float]:
    """Return the root mean square of the residual stream: of the embedding, after each block."""
    sizes: list[float] = []

    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        sizes.append(float(output.square().mean().sqrt()))

    parts = [model.embedding, *model.stack.blocks]
    hooks = [part.register_forward_hook(keep) for part in parts]
    try:
        model.stack(model.embedding(torch.from_numpy(batch)))
    finally:
        for hook in hooks:
            hook.remove()
    return sizes


def read_log(run: Path) -> list[dict[str, Any]]:
    """Return the lines that a training run logged."""
    text = (run / "log.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def plot_curves(path: Path, runs: Mapping[str, Path]) -> None:
    """Plot bits per byte over the steps of training runs: of batches, and on valid."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, (name, run) in enumerate(runs.items()):
        lines = read_log(run)
        batches = [line for line in lines if "bits_per_byte" in line]
        valid = [line for line in lines if "valid_bits_per_byte" in line]
        colour = f"C{index}"
        axes.plot(*_points(batches, "bits_per_byte"), color=colour, alpha=0.3)
        axes.plot(*_points(valid, "valid_bits_per_byte"), color=colour, marker=".", label=name)
    axes.set(xlabel="step", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _points(lines: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [line[name] for line in lines]
