"""Gradients of single clips in the factored form in which a backward pass delivers them.

The gradient of a weight is a sum over positions of outer products, of a gain or a bias a sum of
vectors, of an embedding table a scatter of vectors. Their squared norms follow from the factors;
the gradients of all clips are never held together.

Shapes: K hypotheses, B clips, G groups of channels, T positions, p inputs and q outputs of a group,
N = B G matrices, d width, n length of a vector.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

LIMIT_ELEMENTS = 2**18
"""Default bound on the elements of a temporary tensor: 1 MiB in float32, which a core's cache
holds (on the CPU larger is slower); give an accelerator more."""


class FactoredGradient(Protocol):
    """The gradients of one parameter for K hypotheses of B clips."""

    def plus(self, other: Self) -> Self:
        """Return the sum with the gradient from another use of the same parameter."""

    def together(self) -> Self:
        """Return one hypothesis whose squared norm is the sum of those of all."""

    def squared(self, limit: int) -> Tensor:
        """Return the squared norms (K, B), in temporaries of at most about `limit` elements."""


@dataclass(frozen=True)
class Vector:
    """A gradient small enough to be held: ``values`` (K, B, n)."""

    values: Tensor

    def plus(self, other: Self) -> Self:
        """Add the values."""
        return type(self)(self.values + other.values)

    def together(self) -> Self:
        """Join the values of the hypotheses: (1, B, K n)."""
        return type(self)(self.values.transpose(0, 1).flatten(1)[None])

    def squared(self, limit: int) -> Tensor:
        """Return the squared norms (K, B)."""
        return self.values.square().sum(-1)


@dataclass(frozen=True)
class Product:
    """The matrices ``left^T right`` of each group: left (B, G, T, p), right (K, B, G, T, q)."""

    left: Tensor
    right: Tensor

    def plus(self, other: Self) -> Self:
        """Join the positions: the sum of two products is the product of the joined factors."""
        left = torch.cat([self.left, other.left], dim=-2)
        return type(self)(left, torch.cat([self.right, other.right], dim=-2))

    def together(self) -> Self:
        """Join the outputs of the hypotheses: (1, B, G, T, K q)."""
        return type(self)(self.left, self.right.movedim(0, -2).flatten(-2)[None])

    def squared(self, limit: int) -> Tensor:
        """Return the squared norms (K, B), summed over the groups."""
        squares = squared_product(self.left.flatten(0, 1), self.right.flatten(1, 2), limit)
        return squares.view(-1, *self.left.shape[:2]).sum(-1)


@dataclass(frozen=True)
class Rows:
    """Vectors (K, B, T, d) that are added to the rows ``ids`` (B, T) of a table."""

    ids: Tensor
    vectors: Tensor

    def plus(self, other: Self) -> Self:
        """Join the positions."""
        ids = torch.cat([self.ids, other.ids], dim=1)
        return type(self)(ids, torch.cat([self.vectors, other.vectors], dim=2))

    def together(self) -> Self:
        """Join the columns of the hypotheses: (1, B, T, K d)."""
        return type(self)(self.ids, self.vectors.movedim(0, -2).flatten(-2)[None])

    def squared(self, limit: int) -> Tensor:
        """Return the squared norms (K, B); only the rows that a clip touches are formed."""
        clips = torch.arange(len(self.ids), device=self.ids.device)
        pairs = torch.stack([clips[:, None].expand_as(self.ids), self.ids]).flatten(1)
        touched, row_of = torch.unique(pairs, dim=1, return_inverse=True)
        vectors = self.vectors.flatten(1, 2)
        rows = vectors.new_zeros(len(vectors), touched.shape[1], vectors.shape[-1])
        rows.index_add_(1, row_of, vectors)
        squares = vectors.new_zeros(len(vectors), len(clips))
        return squares.index_add_(1, touched[0], rows.square().sum(-1))


def squared_product(left: Tensor, right: Tensor, limit: int = LIMIT_ELEMENTS) -> Tensor:
    """Squared Frobenius norms of ``left^T right``, by the cheaper of two exact forms.

    Direct, ``||sum_t l_t r_t^T||^2``: K T p q multiplications. By Gram matrices,
    ``sum_ts (l_t . l_s)(r_t . r_s)``, of which the left one serves all hypotheses: T^2 (p + K q).
    The rule is the mixed one of "ghost" norms for private training (Bu et al. 2022), with the
    shared matrix counted once.

    Parameters
    ----------
    left
        Factor (N, T, p) that the hypotheses share.
    right
        Factors (K, N, T, q).
    limit
        Bound on the elements of a temporary tensor; one row of a Gram matrix, or one column of a
        product, is the least.

    Returns
    -------
    Tensor
        Squared norms (K, N).
    """
    hypotheses, _, positions, outputs = right.shape
    inputs = left.shape[-1]
    if hypotheses == 0 or len(left) == 0 or positions == 0:
        return right.new_zeros(right.shape[:2])
    gram = positions * (inputs + hypotheses * outputs) < hypotheses * inputs * outputs
    form, size = (
        (_by_gram, (hypotheses + 1) * positions**2)
        if gram
        else (
            _directly,
            hypotheses * max(inputs, positions) * outputs,
        )
    )
    matrices = max(1, limit // size)
    parts = zip(torch.split(left, matrices), torch.split(right, matrices, dim=1), strict=True)
    return torch.cat([form(*part, limit) for part in parts], dim=1)


def _directly(left: Tensor, right: Tensor, limit: int) -> Tensor:
    hypotheses, matrices, positions, _ = right.shape
    columns = max(1, limit // (hypotheses * matrices * max(left.shape[-1], positions)))
    squares = right.new_zeros(matrices, hypotheses)
    for part in torch.split(right, columns, dim=-1):
        # one multiplication for all hypotheses: (N, K q', T) (N, T, p)
        rows = part.permute(1, 0, 3, 2).flatten(1, 2)
        gradient = rows @ left
        squares += gradient.square_().view(matrices, hypotheses, -1).sum(-1)
    return squares.T


def _by_gram(left: Tensor, right: Tensor, limit: int) -> Tensor:
    hypotheses, matrices, positions, _ = right.shape
    rows = max(1, limit // ((hypotheses + 1) * matrices * positions))
    squares = right.new_zeros(hypotheses, matrices)
    for start in range(0, positions, rows):
        stop = start + rows
        shared = left[:, start:stop] @ left.mT
        squares += (right[:, :, start:stop] @ right.mT).mul_(shared).sum((-2, -1))
    return squares
