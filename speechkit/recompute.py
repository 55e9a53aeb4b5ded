"""Recomputation: keep a block's input, and compute what is inside it again for the gradients.

Child et al. 2019, section 5.4: attention and feed-forward activations are not stored. Memory falls
from all that a block computes to its input, for one more forward pass.
"""

from collections.abc import Callable
from typing import TypeVarTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

Inputs = TypeVarTuple("Inputs")


def recomputed(function: Callable[[*Inputs], Tensor], *inputs: *Inputs) -> Tensor:
    """Return ``function(*inputs)``, of which only the inputs are kept for the backward pass.

    The backward pass runs the function again with the same random state, so that dropout hides
    the same elements, and under the same autocast: gradients are equal to the bit. Without
    gradients nothing is kept and nothing computed again.
    """
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=True)


def called(function: Callable[[*Inputs], Tensor], *inputs: *Inputs) -> Tensor:
    """Return ``function(*inputs)``: the other choice beside `recomputed`."""
    return function(*inputs)


def in_pieces(x_btd: Tensor, steps: int) -> tuple[Tensor, ...]:
    """Split (B, T, ...) along T into pieces of about ``steps`` positions; 0 for one piece.

    By chunk rather than by slices: the gradient of each slice would be as long as the whole.
    """
    pieces = -(-x_btd.shape[1] // steps) if steps else 1
    return x_btd.chunk(max(1, pieces), dim=1)
