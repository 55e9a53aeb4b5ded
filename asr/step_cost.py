"""What a training step costs, by the length of the utterance and what the encoder attends to.

U frames of the encoder, H heads.
"""

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils import clip_grad_norm_

from speechkit import ctc
from speechkit.asr.encoders import Network, SparseConfig
from speechkit.errors import RequestError
from speechkit.isolated import GIB, Limits, own_peak_bytes, run_isolated

_FLOAT_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Training steps that are measured.

    Parameters
    ----------
    lengths_s
        of the utterance, one a batch, ascending.
    patterns
        what all layers attend to: encoders of equal size.
    encoder
        their size.
    features, hop_s
        of the input.
    tokens, tokens_per_s
        of the output, and in a second of speech: subwords are some 4, characters 14. The loss
        itself takes memory in proportion to frames times labels.
    steps
        how many are timed, after one that is not; the shortest counts.
    """

    lengths_s: tuple[float, ...] = (15.0, 60.0, 300.0, 1200.0)
    patterns: tuple[str, ...] = ("Local(128)", "Dense()")
    encoder: SparseConfig = SparseConfig()
    features: int = 80
    hop_s: float = 0.01
    tokens: int = 500
    tokens_per_s: float = 4.0
    steps: int = 2

    def __post_init__(self) -> None:
        if self.steps < 1 or not all(length > 0 for length in self.lengths_s):
            raise RequestError(
                f"steps {self.steps}, lengths_s {self.lengths_s}: give 1 or more, and seconds"
            )

    def network(self, pattern: str) -> SparseConfig:
        """Return the encoder with one pattern in all layers."""
        return replace(self.encoder, patterns=(pattern,))


def step_row(
    config: StepConfig, pattern: str, length_s: float, *, limits: Limits = Limits()
) -> dict[str, Any]:
    """Measure steps of one encoder at one length; "stopped" says where it did not fit."""
    outcome = run_isolated(_train, config, pattern, length_s, limits=limits)
    # of what was stopped, nobody knows how much its imports held
    seconds, before = outcome.value or (None, None)
    return {
        "pattern": pattern,
        "length_s": length_s,
        "step_s": seconds,
        "peak_gib": None if before is None else (outcome.peak_bytes - before) / GIB,
        "scores_gib": scores_gib(config, length_s),
        "stopped": outcome.stopped,
    }


def scores_gib(config: StepConfig, length_s: float) -> float:
    """Return what the attention weights of all layers take if they are stored, U x U a head."""
    encoder = config.encoder
    frames = length_s / config.hop_s / encoder.subsampling.factor
    return encoder.layers * encoder.heads * frames**2 * _FLOAT_BYTES / GIB


def _train(config: StepConfig, pattern: str, length_s: float) -> tuple[float, int]:
    """Return the shortest step's seconds, and the bytes that were held before the network was."""
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.zeros(1, device=place)
    before = own_peak_bytes()
    torch.manual_seed(0)
    network = Network(config.network(pattern), config.features, config.tokens).to(place).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    frames = round(length_s / config.hop_s)
    x = torch.randn(1, frames, config.features, device=place)
    lengths = torch.tensor([frames], device=place)
    labels = torch.randint(1, config.tokens, (max(1, round(length_s * config.tokens_per_s)),))
    seconds = []
    for _ in range(1 + config.steps):
        begun = time.perf_counter()
        encoded = network(x, lengths)
        loss = ctc.loss(encoded.logits, encoded.lengths, (tuple(labels.tolist()),)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:]), before
