"""Expected gradient length: how much a clip would move the model, whatever its transcript is.

EGL(x) = sum_y p(y | x) ||d(-log p(y | x)) / d parameters||^2 (Settles et al. 2008; for speech with
CTC, and squared, Huang et al. 2016): the trace of the clip's Fisher information.

Shapes: K hypotheses, B clips, S frames out, V tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from speechkit import ctc
from speechkit.active_learning.cotangents import principal
from speechkit.active_learning.gradient_norms import GradientNorms, record
from speechkit.active_learning.hypotheses import (
    WEIGHTS,
    Hypotheses,
    Weights,
    draws_of,
    from_beam,
    from_beam_and_draws,
    from_draws,
)
from speechkit.active_learning.models import Utterances
from speechkit.active_learning.output_layer import logit_squares, output_layer_squares
from speechkit.errors import RequestError
from speechkit.seeds import seed_of

Columns = dict[str, list[Any]]
"""What a scorer finds of a batch: "" is the score, other names go with it."""

Unit = Literal["none", "frames", "seconds", "tokens"]
UNITS: tuple[Unit, ...] = get_args(Unit)

_USUAL_K = 16
_PAPER_K = 100
# signals of a clip that are held together
_PASSES_AT_ONCE = 16
# elements of the gradients at the logits of a batch that are held together
_LIMIT_ELEMENTS = 2**24


@dataclass(frozen=True, kw_only=True)
class Egl:
    """Expected gradient length of a recogniser's clips.

    Attributes
    ----------
    weights
        renorm: posteriors of the K best over their sum; raw: the posteriors themselves, as the
        paper has it; sample: K draws; stratified: the K best, and draws for all the others.
    k
        hypotheses of the beam, or draws; 16, and 100 for raw.
    tail
        draws outside the beam, for stratified.
    parameters
        all, output (the output layer), logits (the gradient at the logits), or names of modules
        and parameters, or regular expressions, joined by "+".
    normalise
        divide the score by the clip's frames, seconds or expected tokens.
    power
        2 for squared norms, 1 for norms.
    tolerance
        with squared norms of layers below the output, the share of the gradients at the logits
        that may be left out to save backward passes (the error of the score is about as large); 0
        for none.
    passes
        backward passes of a clip at most, the last one for a random mixture of what the others
        leave: unbiased, see `cotangents.principal`.
    seed
        of the draws, which depend on it and on the clip's id alone.
    """

    weights: Weights = "renorm"
    k: int | None = None
    tail: int = 8
    parameters: str = "all"
    normalise: Unit = "none"
    power: int = 2
    tolerance: float = 1e-2
    passes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS or self.normalise not in UNITS:
            raise RequestError(
                f"egl: weights {self.weights}, normalise {self.normalise}; there are weights "
                f"{', '.join(WEIGHTS)} and units {', '.join(UNITS)}"
            )
        if self.count < 1 or self.tail < 1 or self.power not in (1, 2):
            raise RequestError(
                f"egl: k {self.count}, tail {self.tail}, power {self.power}; give k and tail of 1 "
                "or more, power 1 or 2"
            )
        if self.passes is not None and not self.can_save_passes:
            raise RequestError(
                f"egl: passes {self.passes} with weights {self.weights}, power {self.power}, "
                f"parameters {self.parameters}: every hypothesis has a pass of its own there, or "
                "none has; leave passes out"
            )
        if not 0 <= self.tolerance < 1 or (self.passes is not None and self.passes < 1):
            raise RequestError(
                f"egl: tolerance {self.tolerance:g}, passes {self.passes}; give 0 to below 1, and "
                "1 or more"
            )

    @property
    def can_save_passes(self) -> bool:
        """Whether the sum over hypotheses can be had by fewer backward passes than there are."""
        drawn = self.weights in ("sample", "stratified")
        return self.power == 2 and not drawn and self.parameters not in ("logits", "output")

    @property
    def count(self) -> int:
        """Hypotheses of the beam, or draws."""
        if self.k is not None:
            return self.k
        return _PAPER_K if self.weights == "raw" else _USUAL_K

    def score(self, batch: Utterances) -> Columns:
        """Return the score of each clip, its standard error, the beam's mass, and K."""
        parts = [self._score(part) for part in _parts(batch, self.count)]
        return {name: [value for part in parts for value in part[name]] for name in parts[0]}

    def hypotheses(self, batch: Utterances) -> list[Hypotheses]:
        """Return the hypotheses of each clip."""
        if self.weights in ("raw", "renorm"):
            renormalise = self.weights == "renorm"
            return [from_beam(beam, renormalise=renormalise) for beam in batch.beam(self.count)]
        draws = [
            draws_of(batch.posteriors(place), self._generator(clip.id), blank=batch.blank)
            for place, clip in enumerate(batch.clips)
        ]
        if self.weights == "sample":
            return [from_draws(draw(self.count)) for draw in draws]
        beams = batch.beam(self.count)
        pairs = zip(beams, draws, strict=True)
        return [from_beam_and_draws(beam, draw, tail=self.tail) for beam, draw in pairs]

    def _generator(self, id_: str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_of("egl", self.seed, id_))

    def _score(self, batch: Utterances) -> Columns:
        sets = self.hypotheses(batch)
        found = self.expectations(batch, sets)
        units = [self._unit(batch, place, one) for place, one in enumerate(sets)]
        pairs = list(zip(found, units, strict=True))
        return {
            "": [value / unit for (value, _), unit in pairs],
            "stderr": [None if error is None else error / unit for (_, error), unit in pairs],
            "beam_mass": [one.beam_mass for one in sets],
            "distinct": [len(one) for one in sets],
            "k": [self.count] * len(sets),
        }

    def expectations(
        self, batch: Utterances, sets: Sequence[Hypotheses]
    ) -> list[tuple[float, float | None]]:
        """Return the expected power of the norm, and its standard error, of each clip."""
        gradients = logit_gradients(batch, sets)
        closed = self.parameters in ("logits", "output")
        if self.can_save_passes:
            return [(total, None) for total in self._totals(batch, gradients, sets)]
        squares = self._closed(batch, gradients) if closed else self._recorded(batch, gradients)
        values = [square if self.power == 2 else square.sqrt() for square in squares]
        pairs = zip(sets, values, strict=True)
        return [(one.expectation(value), one.standard_error(value)) for one, value in pairs]

    def _closed(self, batch: Utterances, gradients: Sequence[Tensor]) -> list[Tensor]:
        layer = batch.model.output_layer
        if self.parameters == "output":
            hidden = batch.hidden.double()
            return [
                output_layer_squares(
                    hidden[i : i + 1, : g.shape[1]],
                    g[:, None],
                    batch.frames[i : i + 1],
                    bias=layer.bias is not None,
                )[:, 0]
                for i, g in enumerate(gradients)
            ]
        return [
            logit_squares(g[:, None], batch.frames[i : i + 1])[:, 0]
            for i, g in enumerate(gradients)
        ]

    def _recorded(self, batch: Utterances, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return the squared norm of every hypothesis of each clip (K,)."""
        squares = [
            norms.squared(logits, _stack(gradients[rows], logits))
            for rows, logits, norms in self._passes(batch)
        ]
        columns = [column for part in squares for column in part.unbind(1)]
        return [column[: len(g)] for g, column in zip(gradients, columns, strict=True)]

    def _totals(
        self, batch: Utterances, gradients: Sequence[Tensor], sets: Sequence[Hypotheses]
    ) -> list[float]:
        """Return the weighted sums of the squared norms, by as few passes as will do."""
        few = [
            principal(
                g,
                one.weights,
                tolerance=self.tolerance,
                passes=self.passes,
                generator=self._generator(clip.id),
            )
            for g, one, clip in zip(gradients, sets, batch.clips, strict=True)
        ]
        totals = [
            norms.total(logits, _stack(few[rows], logits))
            for rows, logits, norms in self._passes(batch)
        ]
        return [float(total) for part in totals for total in part]

    def _passes(self, batch: Utterances) -> Iterator[tuple[slice, Tensor, GradientNorms]]:
        """Yield recorded forward passes: of single clips on the CPU, where padding only costs."""
        network = batch.model.network
        single = batch.features.device.type == "cpu"
        for first in range(0, len(batch), 1 if single else len(batch)):
            part = batch.part(first, first + 1) if single else batch
            frames = int(part.lengths.max())
            at_once = _PASSES_AT_ONCE if single else 4
            with record(network, self._names(), hypotheses_at_once=at_once) as norms:
                logits, _, _ = network(part.features[:, :frames], part.lengths)
                yield slice(first, first + len(part)), logits, norms

    def _names(self) -> str | list[str]:
        return "all" if self.parameters == "all" else self.parameters.split("+")

    def _unit(self, batch: Utterances, place: int, hypotheses: Hypotheses) -> float:
        if self.normalise == "frames":
            return float(batch.frames[place])
        if self.normalise == "seconds":
            return float(batch.clips[place].cut.duration)
        return hypotheses.expected_tokens() if self.normalise == "tokens" else 1.0


def logit_gradients(batch: Utterances, sets: Sequence[Hypotheses]) -> list[Tensor]:
    """Return for each clip the gradients of the loss at its logits (K, S, V), float64."""
    flat = [tokens for one in sets for tokens in one.tokens]
    owners = [place for place, one in enumerate(sets) for _ in one.tokens]
    found = ctc.logit_gradients(
        batch.logits, flat, lengths=batch.frames, clips=owners, blank=batch.blank
    )
    parts = torch.split(found.gradients, [len(one) for one in sets])
    return [part[:, : int(n)] for part, n in zip(parts, batch.frames, strict=True)]


def _stack(gradients: Sequence[Tensor], logits: Tensor) -> Tensor:
    """Return (K, B, S, V) of the logits' type; hypotheses that a clip lacks, and padding, are 0."""
    count = max(len(g) for g in gradients)
    stacked = logits.new_zeros(count, *logits.shape)
    for place, g in enumerate(gradients):
        stacked[: len(g), place, : g.shape[1]] = g
    return stacked


def _parts(batch: Utterances, count: int) -> list[Utterances]:
    """Cut a batch whose gradients at the logits would be too large."""
    size = max(1, _LIMIT_ELEMENTS // (count * batch.logits[0].numel()))
    if size >= len(batch):
        return [batch]
    return [batch.part(first, first + size) for first in range(0, len(batch), size)]
