"""Recomputation: keep a block's input, and compute what is inside it again for the gradients.

Child et al. 2019, section 5.4: attention and feed-forward activations are not stored. Memory falls
from all that a block computes to its input, for one more forward pass.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVarTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from speechkit.kernels.dispatch import forced, use_backend

Inputs = TypeVarTuple("Inputs")


def recomputed(function: Callable[[*Inputs], Tensor], *inputs: *Inputs) -> Tensor:
    """Return ``function(*inputs)``, of which only the inputs are kept for the backward pass.

    The backward pass runs the function again with the same random state, so that dropout hides
    the same elements, under the same autocast and by the same backend of attention: gradients are
    equal to the bit. Without gradients nothing is kept and nothing computed again.
    """
    backend = forced()
    again = function if backend is None else partial(_by_backend, backend, function)
    return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=True)


def _by_backend(backend: str, function: Callable[[*Inputs], Tensor], *inputs: *Inputs) -> Tensor:
    with use_backend(backend):
        return function(*inputs)


def called(function: Callable[[*Inputs], Tensor], *inputs: *Inputs) -> Tensor:
    """Return ``function(*inputs)``: the other choice beside `recomputed`."""
    return function(*inputs)


def in_pieces(x_btd: Tensor, steps: int) -> tuple[Tensor, ...]:
    """Split (B, T, ...) along T into pieces of about ``steps`` positions; 0 for one piece.

    By chunk rather than by slices: the gradient of each slice would be as long as the whole.
    """
    pieces = -(-x_btd.shape[1] // steps) if steps else 1
    return x_btd.chunk(max(1, pieces), dim=1)
