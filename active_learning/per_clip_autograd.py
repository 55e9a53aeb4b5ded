"""Squared gradient norms of single clips, the slow and obvious way.

Shapes: K hypotheses, B clips, ... the axes of the model's output for a clip.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from speechkit.active_learning.parameters import choose, scoring_mode


def per_clip_autograd(
    model: nn.Module,
    forward: Callable[[int], Tensor],
    cotangents: Sequence[Tensor],
    *,
    parameters: str | Sequence[str] = "all",
) -> Tensor:
    """Squared gradient norms by one forward and backward pass per hypothesis and clip.

    The slow, obvious reference of `GradientNorms.squared`, and the way for models that it does
    not cover.

    Parameters
    ----------
    model
        Any model.
    forward
        Gives the model's output (1, ...) for clip i alone.
    cotangents
        For each clip, the gradients of the loss at its output: (K, 1, ...).
    parameters
        What the norm is over: see `choose`.

    Returns
    -------
    Tensor
        Squared norms (K, B).
    """
    chosen = choose(model, parameters)
    columns = []
    with scoring_mode(model, chosen):
        for clip, of_clip in enumerate(cotangents):
            squares = [_autograd_square(forward(clip), one, chosen) for one in of_clip]
            columns.append(torch.stack(squares))
    return torch.stack(columns, dim=1)


def _autograd_square(
    output: Tensor, cotangent: Tensor, chosen: Mapping[str, nn.Parameter]
) -> Tensor:
    gradients = torch.autograd.grad(output, list(chosen.values()), cotangent, allow_unused=True)
    return torch.stack([g.square().sum() for g in gradients if g is not None]).sum()
