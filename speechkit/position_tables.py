"""Learned positions and the embedding of bytes (Child et al. 2019, section 5.3, equation 15).

A position is written in mixed radix, like the time in hours, minutes and seconds, and each digit
has a table of vectors that are added up. (32, 32, 3) is an image's row, column and channel; for
text and audio (n / l, l) is row and column in a matrix as wide as the attention's stride l.

Shapes: B batch, T positions, d width.
"""

import math

import torch
from torch import Tensor, nn

from speechkit.errors import RequestError
from speechkit.initialisation import initialise_table


class PositionTables(nn.Module):
    """The sum of one learned vector for each digit of a position.

    Parameters
    ----------
    shape
        how many values each digit has, the last one changing fastest.
    width
        d.
    """

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.shape = shape
        tables = [nn.Embedding(size, width) for size in shape]
        for table in tables:
            initialise_table(table.weight, len(shape))
        self.tables = nn.ModuleList(tables)

    @property
    def positions(self) -> int:
        """How many positions there are."""
        return math.prod(self.shape)

    def forward(self, positions: Tensor) -> Tensor:
        """Return the vectors (T, d) of positions (T,)."""
        digits = torch.unravel_index(positions, self.shape)
        vectors = [table(digit) for table, digit in zip(self.tables, digits, strict=True)]
        return torch.stack(vectors).sum(0)


class ByteEmbedding(nn.Module):
    """Tokens and positions as vectors, shifted by one so that no step sees its own token.

    As in the authors' code the shift comes last: step t carries token t - 1 with the position of
    t - 1, step 0 a learned start vector.
    """

    def __init__(self, vocabulary: int, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = PositionTables(shape, width)
        self.start = nn.Parameter(torch.empty(width))
        initialise_table(self.token.weight)
        initialise_table(self.start)

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Return the vectors (B, T, d) of tokens (B, T) that stand at positions (T,), unshifted."""
        vectors: Tensor = self.token(tokens.long()) + self.position(positions)
        return vectors

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the input (B, T, d) of the steps that predict tokens (B, T).

        Raises
        ------
        RequestError
            If there are more tokens than positions.
        """
        batch, steps = tokens.shape
        if steps > self.position.positions:
            raise RequestError(
                f"{steps} steps: the position tables reach over {self.position.positions}; give "
                "shorter sequences, or train a model with a longer context"
            )
        start = self.start.expand(batch, 1, -1)
        if steps < 2:
            return start[:, :steps]
        positions = torch.arange(steps - 1, device=tokens.device)
        return torch.cat([start, self.embed(tokens[:, :-1], positions)], dim=1)
