"""Initial weights of the Sparse Transformer (Child et al. 2019, section 6).

The paper writes N(0, 0.125 / sqrt(d_in)) for the weights of linear layers. Read as a standard
deviation that is the reading "paper"; the authors' later code ("code") takes 0.125 / d_in for the
variance, which is 2.8 times as large a deviation for every width.

Projections that end a residual branch are smaller by 1 / sqrt(2 N) for N blocks of two branches
(section 5.2), so that the sum of all branches is as large as one would be without it.
"""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from speechkit.errors import RequestError

Reading = Literal["code", "paper"]

_SIZE = 0.125


def check_reading(reading: str) -> None:
    """Raise `RequestError` for an unknown reading."""
    if reading not in get_args(Reading):
        raise RequestError(f"initialisation {reading!r}: choose {' or '.join(get_args(Reading))}")


def linear_std(inputs: int, reading: Reading = "code") -> float:
    """Return the standard deviation of the weights of a layer with ``inputs`` inputs."""
    if reading == "paper":
        return _SIZE / math.sqrt(inputs)
    return math.sqrt(_SIZE / inputs)


def table_std(width: int, tables: int = 1) -> float:
    """Return the standard deviation of an embedding: one of ``tables`` that are added up.

    The paper's formula read as a deviation, which the code's constants are near to: 0.0078 at
    width 256, where the code has 0.007 to 0.013.
    """
    return _SIZE / math.sqrt(width * tables)


@torch.no_grad()
def initialise_linear(
    layer: nn.Linear | nn.Conv1d, *, reading: Reading = "code", scale: float = 1.0
) -> None:
    """Draw the weights of a layer, ``scale`` times as large as usual, and set its bias to zero."""
    inputs = layer.weight[0].numel()
    layer.weight.normal_(0.0, linear_std(inputs, reading) * scale)
    if layer.bias is not None:
        layer.bias.zero_()


@torch.no_grad()
def initialise_table(weight: Tensor, tables: int = 1) -> None:
    """Draw an embedding (rows, width) that is added to ``tables - 1`` others."""
    weight.normal_(0.0, table_std(weight.shape[-1], tables))
