"""How a density model is optimised: settings, learning rate, decay, averaging of weights."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechkit.density.corpus import Corpus
from speechkit.density.model import DensityModel
from speechkit.density.presets import Recipe
from speechkit.errors import RequestError
from speechkit.ranges import require

Precision = Literal["32", "bf16", "16"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Optimisation; what is None is as the preset says.

    Parameters
    ----------
    learning_rate
        the highest rate.
    batch
        sequences in a step, over all devices and accumulated batches.
    steps, epochs
        length of the run, by either one; the cosine falls to zero at its end.
    warmup_steps
        linear rise of the rate.
    weight_decay
        decoupled, on tensors of more than one axis.
    clip
        bound on the norm of all gradients together.
    ema
        decay per step of the moving average of weights that is measured and kept; 0 for none.
    table_rate
        learning rate of byte table, position tables and output layer, over that of the blocks.
    accumulate
        batches that a step's sequences are divided into, one after the other, to save memory.
    precision
        of matrix products: "32", "bf16" or, on a GPU, "16" with dynamic loss scaling; weights,
        softmax statistics and loss are in float32 always.
    validate_every
        steps between validations; the best model and the state of the run are written there.
    valid_windows
        windows that a validation scores, at even distances; 0 for all.
    valid_min_context
        context that each validated byte has at least, for text and audio.
    log_every
        steps between lines of the log.
    seed
        of weights, windows and dropout.
    devices, nodes, strategy
        how many processes share a step, on how many machines, and whether each holds the whole
        model ("ddp") or a shard of it ("fsdp").
    """

    learning_rate: float | None = None
    batch: int | None = None
    steps: int | None = None
    epochs: int | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    clip: float | None = None
    ema: float | None = None
    table_rate: float | None = None
    accumulate: int = 1
    precision: Precision = "32"
    validate_every: int = 500
    valid_windows: int = 0
    valid_min_context: int = 0
    log_every: int = 10
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "batch", "steps", "epochs", "accumulate", at_least=1)
        require(self, "validate_every", "log_every", "devices", "nodes", at_least=1)
        require(self, "learning_rate", "clip", "table_rate", above=0)
        require(self, "warmup_steps", "weight_decay", "seed", at_least=0)
        require(self, "valid_windows", "valid_min_context", at_least=0)
        require(self, "ema", at_least=0, below=1)

    def recipe(self, default: Recipe) -> Recipe:
        """Return a preset's recipe with what was given in place of it."""
        given: dict[str, Any] = {
            field.name: value
            for field in dataclasses.fields(Recipe)
            if (value := getattr(self, field.name, None)) is not None
        }
        if "steps" in given or "epochs" in given:
            given = {"steps": None, "epochs": None, **given}
        return dataclasses.replace(default, **given)

    def part(self, batch: int, world: int) -> int:
        """Return the sequences that a process computes at once.

        Raises
        ------
        RequestError
            if the batch of a step does not divide into equal parts.
        """
        parts = world * self.accumulate
        if batch % parts:
            raise RequestError(
                f"batch {batch} does not divide among {world} processes with {self.accumulate} "
                f"parts each; give a multiple of {parts}"
            )
        return batch // parts


def total_steps(recipe: Recipe, corpus: Corpus, length: int) -> int:
    """Return the steps of a run.

    Raises
    ------
    RequestError
        if the warm-up takes all of them.
    """
    epochs = recipe.epochs or 1
    steps = recipe.steps or math.ceil(epochs * corpus.split("train").epoch(length) / recipe.batch)
    if steps <= recipe.warmup_steps:
        raise RequestError(
            f"{steps} steps with a warm-up of {recipe.warmup_steps}: give more steps or epochs, or "
            "a shorter warm-up"
        )
    return steps


def rate(step: int, *, warmup: int, steps: int) -> float:
    """Return the learning rate of a step as a share of the highest: linear rise, then cosine."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (steps - warmup))))


def parameter_groups(
    model: DensityModel, *, rate: float, decay: float, table_rate: float = 1.0
) -> list[dict[str, Any]]:
    """Return the parameters in three groups: matrices of blocks, tables, and what does not decay.

    Tables are those of bytes and positions and the output layer, which starts at zero. Adam moves
    an element by the rate at most, and until they have grown the blocks have little to go by: in a
    short run of a small model they gain from a rate of their own.
    """
    tables = {id(p) for part in (model.embedding, model.output) for p in part.parameters()}
    grouped: list[list[nn.Parameter]] = [[], [], []]
    for parameter in model.parameters():
        grouped[2 if parameter.ndim <= 1 else int(id(parameter) in tables)].append(parameter)
    settings = ((rate, decay), (rate * table_rate, decay), (rate, 0.0))
    return [
        {"params": parameters, "lr": own_rate, "weight_decay": own_decay}
        for parameters, (own_rate, own_decay) in zip(grouped, settings, strict=True)
    ]


@torch.no_grad()
def average_into(averaged: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move an exponential average of weights on; it forgets the first steps sooner."""
    share = max(1 - decay, 9 / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)


def norm_of(gradients_norm: Tensor) -> float:
    """Return a norm as a number, also where it is spread over processes."""
    whole = getattr(gradients_norm, "full_tensor", lambda: gradients_norm)()
    return float(whole)
