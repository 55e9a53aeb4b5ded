"""How a recogniser is optimised: settings, learning rate, averaging of weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from speechkit.ranges import require

Weights = tuple[Tensor, ...] | list[Tensor]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Optimisation.

    Parameters
    ----------
    epochs
        passes over the training set.
    max_minutes
        end after so much time even so; the cosine schedule then ends with it, which makes the
        result depend on the machine's speed.
    learning_rate, weight_decay
        of AdamW, the highest rate.
    schedule, warmup_steps
        the rate rises over the warm-up and then falls: to 0 at the end as a cosine, or with the
        root of the step ("noam").
    clip_norm
        gradients are scaled down to this norm.
    accumulate
        batches to a step.
    precision
        of matrix products: "32", "bf16" or "16"; the loss is in float32 always.
    averaging
        decay per step of the moving average of weights that is measured and kept; 0 for none.
    average_epochs
        what is measured and kept is the mean of that over so many last epochs.
    dev_every
        epochs from one measurement on dev to the next; the last epoch is measured too.
    spec_augment_after
        steps before masking sets in: a network that sees masks first may learn blanks alone.
    consistency
        weight of the divergence between two differently masked views of each utterance
        (`speechkit.asr.consistency`; the paper's 0.2); it doubles the work of a step. 0: one view.
    blank_bias
        where the blank's output bias starts.
    workers
        processes that read and augment; 0 does so in between steps.
    devices, nodes, strategy
        how many processes share a step, on how many machines, and how: "auto" for one, "ddp" where
        each holds the whole model.
    """

    epochs: int = 60
    max_minutes: float | None = None
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    schedule: Literal["cosine", "noam"] = "cosine"
    warmup_steps: int = 300
    clip_norm: float = 5.0
    accumulate: int = 1
    precision: Literal["32", "bf16", "16"] = "32"
    averaging: float = 0.998
    average_epochs: int = 1
    dev_every: int = 1
    spec_augment_after: int = 300
    consistency: float = 0.0
    blank_bias: float = 0.0
    workers: int = 0
    devices: int = 1
    nodes: int = 1
    strategy: Literal["auto", "ddp"] = "auto"

    def __post_init__(self) -> None:
        require(self, "epochs", "accumulate", "average_epochs", "dev_every", at_least=1)
        require(self, "devices", "nodes", at_least=1)
        require(self, "learning_rate", "clip_norm", "max_minutes", above=0)
        require(self, "weight_decay", "warmup_steps", "spec_augment_after", at_least=0)
        require(self, "consistency", "workers", at_least=0)
        require(self, "averaging", at_least=0, below=1)

    def rate(self, step: int, steps: int, *, clock: float = 0.0) -> float:
        """Return the learning rate of a step of so many, as a share of the highest.

        Parameters
        ----------
        clock
            share of the allowed time that is over; the cosine follows it where it is ahead.
        """
        rise = (step + 1) / max(1, self.warmup_steps)
        if self.schedule == "noam":
            return min(rise, rise**-0.5)
        passed = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        passed = min(1.0, max(0.0, passed, clock if step > self.warmup_steps else 0.0))
        return min(rise, 0.5 * (1 + math.cos(math.pi * passed)))


def moving_average(decay: float) -> Callable[[Weights, Weights, Tensor | int], None]:
    """Return an exponential average that forgets the first steps, when weights change most."""

    @torch.no_grad()
    def update(averaged: Weights, current: Weights, count: Tensor | int) -> None:
        share = max(1 - decay, 9 / (10 + float(count)))
        torch._foreach_lerp_(averaged, current, share)

    return update


def decayed(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay, biases and gains do not."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
