"""How much memory training takes, before it is tried.

`dense_attention_bytes` is the arithmetic behind the published table (1.0 GB at 1,024 steps to
590 GB at 24,000); `training_memory` predicts the peak of this implementation, tensor by tensor.

Bytes everywhere; "per step" is for one position of one sequence.
"""

from dataclasses import dataclass

import torch

from speechkit.density.model import LOSS_STEPS, DensityConfig, DensityModel
from speechkit.sparse_transformer import StackConfig

_FLOAT = 4
_HALF = 2

# what the attention's tiles of scores hold in its backward pass, whatever the length
_TILES = 6 << 20


def dense_attention_bytes(
    steps: int,
    *,
    layers: int,
    heads: int,
    recompute: bool = False,
    batch: int = 1,
    element_bytes: int = _FLOAT,
) -> int:
    """Return what the matrices of dense attention take: of all layers, or of one if recomputed."""
    return (1 if recompute else layers) * batch * heads * steps**2 * element_bytes


def count_parameters(config: DensityConfig) -> int:
    """Return the parameters of a model, without allocating them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in DensityModel(config).parameters())


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """What is held at the peak of a training step with Adam.

    Parameters
    ----------
    parameters, optimiser, gradients
        weights, their two moments, and the gradients that exist at the peak.
    activations
        kept from the forward pass, or as checkpoints for recomputation.
    workspace
        what the block at work holds besides, recomputed activations included.
    """

    parameters: int
    optimiser: int
    gradients: int
    activations: int
    workspace: int

    @property
    def peak(self) -> int:
        """All of it."""
        return self.parameters + self.optimiser + self.gradients + self.activations + self.workspace


def training_memory(
    config: DensityConfig, *, batch: int, steps: int, half: bool = False
) -> TrainingMemory:
    """Predict the peak of a training step on the CPU: within 15 % of the measured one (tested).

    The peak lies in the backward pass of the last block, where most activations are held, of the
    first, where most gradients are, in the loss, or in the optimiser; each is worked out and the
    largest returned. On a GPU dropout keeps a byte an element in place of a number, so that this
    is an upper bound there.

    Parameters
    ----------
    config
        The model, with its ``recompute`` and ``feed_forward_steps``.
    batch, steps
        Sequences and their length.
    half
        Whether it runs under autocast to bfloat16 or float16.
    """
    stack, positions = config.stack, batch * steps
    parameters = count_parameters(config) * _FLOAT
    block = _block(stack, positions, half)
    casts = parameters // 2 if half else 0
    last = 2 * stack.width * _FLOAT * positions  # the last norm's input and output
    if stack.recompute:
        kept, inside = stack.layers * block.input, block.kept
    else:
        kept, inside = stack.layers * (block.input + block.kept) + casts, 0
    each = kept // stack.layers
    loss = _loss(config.vocabulary, positions, keeps=not stack.recompute)
    share = parameters // stack.layers
    moments = (
        (0, kept + last, loss),
        (share, kept, inside + block.work),
        (parameters, each, inside + block.work),
        (parameters, 0, 0),
    )
    gradients, activations, workspace = max(moments, key=sum)
    return TrainingMemory(
        parameters=parameters,
        optimiser=2 * parameters,
        gradients=gradients,
        activations=activations,
        workspace=workspace,
    )


@dataclass(frozen=True)
class _Block:
    """A block's input; what it keeps besides; the most that its backward pass adds to that."""

    input: int
    kept: int
    work: int


def _block(config: StackConfig, positions: int, half: bool) -> _Block:
    number = _HALF if half else _FLOAT
    width, keys = config.width, 2 * config.key_width
    stream = width * _FLOAT
    noise = width * number if config.dropout else 0
    # the norm's output, q, k, v, what the heads gather, the same side by side; log-sum-exps
    attention = (keys + 4 * width) * number + config.heads * _FLOAT + noise
    convolution = stream + 7 * width * number + noise if config.convolution else 0
    feed_forward = stream + width * number + noise
    hidden = 2 * config.feed_forward_ratio * width * number
    # gradients in the stream and at the end of the branch
    arriving = stream + (width * number if half or config.dropout else 0)
    # inputs copied head by head, and their gradients, which half precision adds up in float32
    attending = (keys + 3 * width) * number
    attending += (keys + width) * (number + (_FLOAT if half else 0))
    if config.feed_forward_steps and config.recompute:
        feed_forward += width * (_FLOAT - number)  # the pieces' input, before it is cast
        piece = min(positions, config.feed_forward_steps)
        pieces, in_piece = 2 * stream, 2 * hidden * piece // positions
        work_there = arriving + pieces + in_piece
    else:
        feed_forward += hidden
        work_there = arriving + hidden
    kept = attention + convolution + feed_forward
    attention_work = positions * (arriving + attending - convolution - feed_forward) + _TILES
    work = max(positions * work_there, attention_work)
    return _Block(stream * positions, kept * positions, work)


def _loss(vocabulary: int, positions: int, *, keeps: bool) -> int:
    """Return what the loss holds: three of the logits' size in a piece, and one of all if kept."""
    piece = min(positions, LOSS_STEPS)
    return (3 * piece + (positions if keeps else 0)) * vocabulary * _FLOAT
