"""Squared gradient norms of single clips, from one forward pass and one backward pass a hypothesis.

A backward pass that stops at the layers' outputs never forms a gradient of a weight; each layer's
input and the signal at its output give the norm of every clip's own gradient ("ghost" norms:
Goodfellow 2015; Li et al. 2022 for sequences; Bu et al. 2022 for the choice between two forms).

Shapes: K hypotheses, B clips, ... the axes of the model's output for a clip.
"""

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from speechkit.active_learning.factored_gradients import LIMIT_ELEMENTS
from speechkit.active_learning.layer_gradients import squared_norms, supports
from speechkit.active_learning.parameters import choose, scoring_mode
from speechkit.errors import RequestError

logger = logging.getLogger(__name__)

REMEDY = (
    "restrict the parameters to layers that are covered, write the module from torch.nn.Linear "
    "layers, or use per_clip_autograd"
)


@contextmanager
def record(
    model: nn.Module,
    parameters: str | Sequence[str] = "all",
    *,
    hypotheses_at_once: int = 4,
    limit_elements: int = LIMIT_ELEMENTS,
) -> Iterator["GradientNorms"]:
    """Record one forward pass, so that norms of gradients can be asked for.

    >>> with record(model, "encoder") as norms:  # doctest: +SKIP
    ...     logits = model(features, lengths)
    ...     squares = norms.squared(logits, logit_gradients)

    Inside, the model is in evaluation mode and only the chosen parameters require a gradient.

    Parameters
    ----------
    model
        A model whose layers all have the clips on their first axis.
    parameters
        What the norm is over: see `choose`.
    hypotheses_at_once
        How many hypotheses' signals are held together; more is faster, up to a point.
    limit_elements
        Bound on the elements of a temporary tensor in the norms of a layer.

    Raises
    ------
    RequestError
        When a request matches no parameter, or a chosen parameter is shared by two modules.
    """
    chosen = choose(model, parameters)
    _refuse_tied(model, chosen)
    norms = GradientNorms(
        chosen, hypotheses_at_once=hypotheses_at_once, limit_elements=limit_elements
    )
    owners = [m for m in model.modules() if any(p in norms for p in m.parameters(recurse=False))]
    with scoring_mode(model, chosen):
        # first in the row: other hooks may change the output, and did change the input
        hooks = [
            owner.register_forward_hook(norms.note, prepend=True)
            for owner in owners
            if supports(owner)
        ]
        try:
            yield norms
        finally:
            for hook in hooks:
                hook.remove()
            norms.forget()


def _refuse_tied(model: nn.Module, chosen: Mapping[str, nn.Parameter]) -> None:
    owners = Counter(p for m in model.modules() for p in m.parameters(recurse=False))
    tied = [name for name, parameter in chosen.items() if owners[parameter] > 1]
    if tied:
        raise RequestError(
            f"{_some(tied)} shared by several modules, whose norms do not add; leave it out or "
            "use per_clip_autograd"
        )


@dataclass(frozen=True)
class _Use:
    """One call of a layer."""

    module: nn.Module
    activation: Tensor
    version: int  # of the activation's memory, to notice when it is overwritten
    edge: GradientEdge


class GradientNorms:
    """Norms of the gradients of single clips for one recorded forward pass; made by `record`."""

    def __init__(
        self, chosen: Mapping[str, nn.Parameter], *, hypotheses_at_once: int, limit_elements: int
    ) -> None:
        self._names = {parameter: name for name, parameter in chosen.items()}
        self._hypotheses_at_once = hypotheses_at_once
        self._limit = limit_elements
        self._uses: list[_Use] = []
        self._batched = True

    def __contains__(self, parameter: nn.Parameter) -> bool:
        return parameter in self._names

    def note(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the layer's input and its place in the graph (a forward hook)."""
        if output.requires_grad and inputs:
            activation = inputs[0].detach()
            edge = get_gradient_edge(output)
            self._uses.append(_Use(module, activation, activation._version, edge))

    def forget(self) -> None:
        """Release the activations."""
        self._uses.clear()

    def squared(self, outputs: Tensor, cotangents: Tensor) -> Tensor:
        """Squared norms of the gradients of ``(outputs * cotangents).sum()``, clip by clip.

        Parameters
        ----------
        outputs
            The model's outputs (B, ...), or what was computed from them clip by clip.
        cotangents
            Gradients of the loss at the outputs: (B, ...), or (K, B, ...) for K hypotheses; may be
            asked for again and again.

        Returns
        -------
        Tensor
            Squared norms (B,) or (K, B), summed over the chosen parameters.

        Raises
        ------
        RequestError
            When the shapes do not fit, when a chosen parameter takes part in the outputs in a way
            that the layers' signals do not show, or when a layer's first axis is not the clips.
        """
        return torch.stack(list(self.by_parameter(outputs, cotangents).values())).sum(0)

    def total(self, outputs: Tensor, cotangents: Tensor) -> Tensor:
        """Return the sums over the hypotheses (B,) of `squared`, quicker than one by one.

        Parameters
        ----------
        outputs
            As in `squared`.
        cotangents
            (K, B, ...).
        """
        self._check_shapes(outputs, cotangents)
        uses = self._live_uses(outputs)
        sums = [
            torch.stack(list(self._squares(outputs, uses, part, together=True).values())).sum(0)
            for part in torch.split(cotangents, self._hypotheses_at_once)
        ]
        return torch.cat(sums).sum(0)

    def by_parameter(self, outputs: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        """Return the squared norms of `squared` for each chosen parameter, by its full name."""
        if cotangents.shape == outputs.shape:
            squares = self.by_parameter(outputs, cotangents[None])
            return {name: square[0] for name, square in squares.items()}
        self._check_shapes(outputs, cotangents)
        uses = self._live_uses(outputs)
        zeros = outputs.new_zeros(cotangents.shape[:2])
        total = dict.fromkeys(self._names.values(), zeros)
        parts = [
            self._squares(outputs, uses, part)
            for part in torch.split(cotangents, self._hypotheses_at_once)
        ]
        return total | {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _check_shapes(self, outputs: Tensor, cotangents: Tensor) -> None:
        if cotangents.shape[1:] != outputs.shape:
            raise RequestError(
                f"cotangents {tuple(cotangents.shape)} for outputs {tuple(outputs.shape)}; give "
                "the shape of the outputs, or one axis of hypotheses before it"
            )

    def _squares(
        self, outputs: Tensor, uses: list[_Use], cotangents: Tensor, *, together: bool = False
    ) -> dict[str, Tensor]:
        """Return the squares for a few hypotheses, whose signals are held together."""
        passes = self._signals(outputs, [use.edge for use in uses], cotangents)
        signals: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        for use, deltas in zip(uses, passes, strict=True):
            signals.setdefault(use.module, []).append((use.activation, deltas))
        return {
            self._names[getattr(module, own)]: square
            for module, pairs in signals.items()
            for own, square in squared_norms(module, pairs, self._limit, together=together).items()
        }

    def _signals(
        self, outputs: Tensor, edges: Sequence[GradientEdge], cotangents: Tensor
    ) -> Sequence[Tensor]:
        """Return the gradients (K, B, ...) at each edge: in one pass, if the operators allow it."""
        if self._batched and len(cotangents) > 1:
            try:
                with warnings.catch_warnings():
                    # operators without a batching rule are looped over, which is no worse
                    warnings.filterwarnings("ignore", message=".*performance drop.*")
                    return torch.func.vmap(
                        lambda one: torch.autograd.grad(outputs, edges, one, retain_graph=True)
                    )(cotangents)
            except RuntimeError as error:
                logger.debug("one backward pass a hypothesis, since batched ones fail: %s", error)
                self._batched = False
        passes = [
            torch.autograd.grad(outputs, edges, cotangent, retain_graph=True)
            for cotangent in cotangents
        ]
        return [torch.stack(deltas) for deltas in zip(*passes, strict=True)]

    def _live_uses(self, outputs: Tensor) -> list[_Use]:
        """Return the uses that the outputs depend on, after checking that they tell all."""
        if outputs.grad_fn is None:
            raise RequestError(
                "the outputs depend on none of the chosen parameters; run the forward pass inside "
                "the record, with gradients on"
            )
        nodes = _graph(outputs.grad_fn)
        uses = [use for use in self._uses if use.edge.node in nodes]
        self._check_coverage(nodes, uses)
        for use in uses:
            self._check_use(use, len(outputs))
        return uses

    def _check_coverage(self, nodes: set[Node], uses: list[_Use]) -> None:
        """Compare how often each parameter enters the graph with the uses that were seen."""
        seen = Counter(p for use in uses for p in use.module.parameters(recurse=False))
        entered = Counter(
            child.variable
            for node in nodes
            for child, _ in node.next_functions
            if child is not None and hasattr(child, "variable")
        )
        uncovered = [name for p, name in self._names.items() if entered[p] != seen[p]]
        if uncovered:
            raise RequestError(
                f"{_some(uncovered)} used outside a layer whose gradients can be read off its "
                f"signals; {REMEDY}"
            )

    def _check_use(self, use: _Use, clips: int) -> None:
        name = next(self._names[p] for p in use.module.parameters(recurse=False) if p in self)
        if len(use.activation) != clips:
            raise RequestError(
                f"the layer of {name} got an input {tuple(use.activation.shape)} in a batch of "
                f"{clips} clips; its first axis must be the clips (no folding of clips and frames, "
                "no input shared by the clips): change the model, leave the layer out, or use "
                "per_clip_autograd"
            )
        if use.activation._version != use.version:
            raise RequestError(
                f"the input of the layer of {name} was overwritten in place after its use; make "
                "that operation out of place or leave the layer out"
            )


def _graph(root: Node) -> set[Node]:
    nodes = {root}
    pending = [root]
    while pending:
        for child, _ in pending.pop().next_functions:
            if child is not None and child not in nodes:
                nodes.add(child)
                pending.append(child)
    return nodes


def _some(names: Sequence[str]) -> str:
    """Return at most four names and the number of the rest, with the verb."""
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return f"{', '.join(names[:4])}{rest} {'is' if len(names) == 1 else 'are'}"
