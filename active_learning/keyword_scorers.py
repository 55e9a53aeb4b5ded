"""Scores of a keyword spotter's clips: its few classes let every expectation be exact.

Shapes: B clips, C classes, d width of the output layer's input.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speechkit.active_learning.cotangents import principal
from speechkit.active_learning.egl import Columns
from speechkit.active_learning.gradient_norms import record
from speechkit.active_learning.models import Windows
from speechkit.active_learning.output_layer import layer_inputs
from speechkit.active_learning.per_clip_autograd import per_clip_autograd
from speechkit.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class ClassEgl:
    """Expected squared gradient length over all classes, exact.

    Attributes
    ----------
    parameters
        output (the last linear layer), logits, all (by one backward pass a mixture of classes and
        clip where layers are recurrent), or names of modules and parameters, or regular
        expressions, joined by "+".
    """

    parameters: str = "output"

    def score(self, batch: Windows) -> Columns:
        """Return the scores."""
        p = batch.log_posteriors().exp()
        if self.parameters in ("output", "logits"):
            # sum_c p_c ||p - e_c||^2 = 1 - ||p||^2, times the square of the layer's input
            squares = 1 - p.square().sum(1)
            return {"": (squares * self._input_square(batch)).tolist()}
        mixtures = _mixtures(p).to(batch.logits.dtype)
        return {"": _squares(batch, mixtures, self._names()).double().sum(0).tolist()}

    def _input_square(self, batch: Windows) -> Tensor:
        if self.parameters == "logits":
            return torch.ones(len(batch), dtype=torch.float64)
        layer = _last_linear(batch.model.network, batch.logits.shape[1])
        with torch.no_grad(), layer_inputs(layer) as seen:
            batch.model.network(batch.features)
        bias = 0.0 if layer.bias is None else 1.0
        return seen[-1].double().square().sum(1) + bias

    def _names(self) -> str | list[str]:
        return "all" if self.parameters == "all" else self.parameters.split("+")


@dataclass(frozen=True, kw_only=True)
class ClassEntropy:
    """Entropy of the class."""

    def score(self, batch: Windows) -> Columns:
        """Return nats."""
        log_p = batch.log_posteriors()
        return {"": (-(log_p.exp() * log_p).sum(1)).tolist()}


@dataclass(frozen=True, kw_only=True)
class ClassMargin:
    """How near the second-best class comes to the best: p2 - p1, at most 0."""

    def score(self, batch: Windows) -> Columns:
        """Return differences of probabilities."""
        best = batch.log_posteriors().exp().topk(2, dim=1).values
        return {"": (best[:, 1] - best[:, 0]).tolist()}


@dataclass(frozen=True, kw_only=True)
class ClassConfidence:
    """One less the probability of the best class."""

    def score(self, batch: Windows) -> Columns:
        """Return probabilities."""
        return {"": (1 - batch.log_posteriors().exp().amax(1)).tolist()}


def _mixtures(p: Tensor) -> Tensor:
    """Return (C, B, C): mixtures of the gradients p - e_c whose squares add up to the score."""
    identity = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
    found = [principal(row - identity, row, tolerance=0.0) for row in p]
    mixtures = p.new_zeros(p.shape[1], *p.shape)
    for place, few in enumerate(found):
        mixtures[: len(few), place] = few
    return mixtures[: max(len(few) for few in found)]


def _squares(batch: Windows, mixtures: Tensor, names: str | list[str]) -> Tensor:
    """Return squared norms (R, B)."""
    network = batch.model.network
    if any(isinstance(module, nn.RNNBase) for module in network.modules()) and names == "all":
        return per_clip_autograd(
            network,
            lambda place: network(batch.features[place : place + 1]),
            [mixtures[:, place : place + 1] for place in range(len(batch))],
        )
    with record(network, names) as norms:
        logits = network(batch.features)
        return norms.squared(logits, mixtures)


def _last_linear(network: nn.Module, classes: int) -> nn.Linear:
    """Return the linear layer that makes the logits."""
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    if not layers or layers[-1].out_features != classes:
        raise RequestError("the spotter's last linear layer does not make its logits; name layers")
    return layers[-1]
