"""Transcripts that stand for all that a model may say of a clip, and what each one weighs.

An expectation over transcripts, sum_y p(y | x) f(y), has exponentially many terms. Here are the
ways to take a few: the most probable ones of a beam, exact draws from the model, or the beam for
its own mass and draws for the rest. No language model takes part: p is the model's own.

Shapes: K hypotheses, S frames, V tokens.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from speechkit import ctc
from speechkit.ctc import Tokens
from speechkit.ctc_beam import Hypothesis

Weights = Literal["raw", "renorm", "sample", "stratified"]
WEIGHTS: tuple[Weights, ...] = get_args(Weights)

# mass outside the beam that is not worth a draw
_NEGLIGIBLE = 1e-6
# draws after which what lies outside the beam counts as nothing: it is at most about 1 / e of that
_MOST_DRAWS = 256

Draw = Callable[[int], dict[Tokens, int]]
"""Draws so many transcripts, and says how often each one came up."""


@dataclass(frozen=True)
class Hypotheses:
    """Distinct transcripts of one clip.

    Attributes
    ----------
    tokens
        K of them.
    weights
        (K,), float64: the expectation of f is estimated by sum_k weights_k f_k.
    draws
        (K,), how often each was drawn; 0 for those of the beam.
    drawn_mass
        the share of the expectation that rests on draws: 1 of samples, 0 of a beam.
    beam_mass
        the probability of all transcripts of the beam together; None without one.
    """

    tokens: tuple[Tokens, ...]
    weights: Tensor
    draws: Tensor
    drawn_mass: float = 0.0
    beam_mass: float | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def expectation(self, values: Tensor) -> float:
        """Return the estimate for values (K,)."""
        return float(self.weights @ values.double().cpu())

    def standard_error(self, values: Tensor) -> float | None:
        """Return the standard error that the draws leave; None if nothing, or once, was drawn."""
        count = int(self.draws.sum())
        if count < 2:
            return None
        shares = self.draws.double() / count
        values = values.double().cpu()
        variance = shares @ (values - shares @ values).square() * count / (count - 1)
        return self.drawn_mass * math.sqrt(float(variance) / count)

    def expected_tokens(self) -> float:
        """Return the mean length of the transcripts by weight, 1 at least."""
        lengths = torch.tensor([len(tokens) for tokens in self.tokens], dtype=torch.float64)
        total = float(self.weights.sum())
        return max(1.0, self.expectation(lengths) / total) if total > 0 else 1.0


def from_beam(beam: Sequence[Hypothesis], *, renormalise: bool) -> Hypotheses:
    """Return the transcripts of a beam, weighted by their posteriors.

    Renormalised, the weights sum to 1: as if the transcripts outside the beam were like those in
    it. Else they are the posteriors themselves, a lower bound that falls exponentially with the
    length of the clip (Huang et al. 2016 write it so).
    """
    log_probs = torch.tensor([h.log_prob for h in beam], dtype=torch.float64)
    weights = log_probs.softmax(0) if renormalise else log_probs.exp()
    tokens = tuple(h.tokens for h in beam)
    return Hypotheses(tokens, weights, _none_drawn(tokens), beam_mass=_mass(log_probs))


def from_draws(counts: dict[Tokens, int]) -> Hypotheses:
    """Return drawn transcripts, each one once, weighted by how often it came up (unbiased)."""
    draws = torch.tensor(list(counts.values()), dtype=torch.int64)
    weights = draws.double() / draws.sum()
    return Hypotheses(tuple(counts), weights, draws, drawn_mass=1.0)


def from_beam_and_draws(beam: Sequence[Hypothesis], draw: Draw, *, tail: int) -> Hypotheses:
    """Return a beam with its posteriors, and draws that stand for all transcripts outside it.

    Draws that fall into the beam are thrown away. It is unbiased but for the rare clip of which
    `_MOST_DRAWS` draws find nothing outside the beam, whose mass is then 1 / `_MOST_DRAWS` or so.

    Parameters
    ----------
    tail
        draws outside the beam, at least, where there is mass outside.
    """
    inside = from_beam(beam, renormalise=False)
    assert inside.beam_mass is not None
    outside_mass = 1.0 - inside.beam_mass
    counts = _draw_outside(set(inside.tokens), draw, outside_mass, tail)
    if not counts:
        return inside
    drawn = from_draws(counts)
    return Hypotheses(
        inside.tokens + drawn.tokens,
        torch.cat([inside.weights, outside_mass * drawn.weights]),
        torch.cat([inside.draws, drawn.draws]),
        drawn_mass=outside_mass,
        beam_mass=inside.beam_mass,
    )


def draws_of(log_posteriors: Tensor, generator: torch.Generator, *, blank: int) -> Draw:
    """Return a function that draws from a clip's log-posteriors (S, V)."""
    return lambda count: ctc.sample(log_posteriors, count, generator, blank=blank)


def _draw_outside(beam: set[Tokens], draw: Draw, mass: float, tail: int) -> dict[Tokens, int]:
    """Return draws outside the beam; when to stop depends on their number alone, not on them."""
    found: Counter[Tokens] = Counter()
    left = _MOST_DRAWS
    while mass > _NEGLIGIBLE and left > 0 and found.total() < tail:
        count = min(left, math.ceil((tail - found.total()) / mass))
        left -= count
        found.update({y: n for y, n in draw(count).items() if y not in beam})
    return dict(sorted(found.items()))


def _mass(log_probs: Tensor) -> float:
    return min(1.0, float(log_probs.logsumexp(0).exp()))


def _none_drawn(tokens: Sequence[Tokens]) -> Tensor:
    return torch.zeros(len(tokens), dtype=torch.int64)
