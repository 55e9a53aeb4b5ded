"""Gradient norms at the output layer and at the logits: closed forms, no backward pass.

With the layer's inputs H (T, d) and the gradients at the logits G_k (T, V) = softmax - occupancy
of hypothesis k, the layer's weight has the gradient G_k^T H and its bias sum_t G_k, so that one
forward pass serves all hypotheses.

Shapes: K hypotheses, B clips, T frames, V symbols, d width of the layer's input.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from speechkit.active_learning.factored_gradients import LIMIT_ELEMENTS, squared_product
from speechkit.errors import RequestError


@contextmanager
def layer_inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the inputs of a layer, detached, while the context lasts: one for each call."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    try:
        yield seen
    finally:
        hook.remove()


@torch.no_grad()
def output_layer_squares(
    hidden: Tensor,
    logit_gradients: Tensor,
    lengths: Tensor,
    *,
    bias: bool = True,
    limit_elements: int = LIMIT_ELEMENTS,
) -> Tensor:
    """Squared gradient norms of a linear output layer for every hypothesis of every clip.

    Parameters
    ----------
    hidden
        The layer's inputs (B, T, d).
    logit_gradients
        Gradients of the loss at the logits (K, B, T, V).
    lengths
        Frames of each clip (B,); what lies behind is ignored, whatever it holds.
    bias
        Whether the layer has a bias, which counts as one more input that is always 1.
    limit_elements
        Bound on the elements of a temporary tensor.

    Returns
    -------
    Tensor
        Squared norms (K, B).
    """
    hidden, gradients = _valid(hidden, lengths), _valid(logit_gradients, lengths)
    _check_frames(hidden, gradients)
    squares = squared_product(hidden, gradients, limit_elements)
    return squares + gradients.sum(2).square().sum(-1) if bias else squares


@torch.no_grad()
def logit_squares(logit_gradients: Tensor, lengths: Tensor) -> Tensor:
    """Squared norms (K, B) of the gradients at the logits (K, B, T, V) within the lengths (B,)."""
    return _valid(logit_gradients, lengths).square().sum((-2, -1))


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """Put zeros behind the lengths, also in place of NaN; x is (..., B, T, C)."""
    frames = torch.arange(x.shape[-2], device=x.device)
    if len(lengths) != x.shape[-3] or int(lengths.max()) > len(frames):
        raise RequestError(
            f"lengths {lengths.tolist()} for clips and frames {tuple(x.shape[-3:-1])}; give one "
            "length a clip, at most the number of frames"
        )
    inside = frames < lengths.to(x.device)[:, None]
    return torch.where(inside[..., None], x, torch.zeros((), dtype=x.dtype, device=x.device))


def _check_frames(hidden: Tensor, gradients: Tensor) -> None:
    if gradients.ndim != 4 or hidden.shape[:2] != gradients.shape[1:3]:
        raise RequestError(
            f"hidden {tuple(hidden.shape)} and logit gradients {tuple(gradients.shape)}; give "
            "(B, T, d) and (K, B, T, V) of the same clips and frames"
        )
