"""Few backward passes in place of one a hypothesis, for a weighted sum of squared norms.

A backward pass is linear in the gradient at the outputs: sum_k w_k ||J^T G_k||^2 =
tr(J^T (sum_k w_k G_k G_k^T) J). For squared norms only.

Shapes: K hypotheses, ... the axes of the model's output for a clip, R mixtures.
"""

import torch
from torch import Tensor


@torch.no_grad()
def principal(
    cotangents: Tensor,
    weights: Tensor,
    *,
    tolerance: float = 0.0,
    passes: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Few orthogonal mixtures whose squared norms add up to the weighted sum of squared norms.

    Any rotation of the vectors sqrt(w_k) G_k leaves sum_k w_k ||J^T G_k||^2 as it is; the one that
    makes them orthogonal leaves the least to do, since alternatives of one clip are much alike.

    Parameters
    ----------
    cotangents
        Gradients at the outputs of one clip (K, ...).
    weights
        Weights of the hypotheses (K,), not negative.
    tolerance
        The share of sum_k w_k ||G_k||^2 that may be left out, in the smallest mixtures; the others
        are scaled so that this sum is kept. With 0 only what is 0 up to rounding goes.
    passes
        Mixtures at most. The last one is then a random mixture of all that are left, so that the
        mean over its signs is the weighted sum (Hutchinson 1990).
    generator
        Of these signs, on the CPU.

    Returns
    -------
    Tensor
        Mixtures (R, ...), 1 <= R <= K, the largest one first.
    """
    flat = cotangents.flatten(1) * weights.sqrt().to(cotangents)[:, None]
    values, vectors = torch.linalg.eigh(flat @ flat.mT)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = values.sum()
    left_out = total - values.cumsum(0)
    least = torch.finfo(values.dtype).eps * len(values)
    count = 1 + int((left_out[:-1] > max(tolerance, least) * total).sum())
    kept = values[:count].sum()
    scale = (total / kept).sqrt() if kept > 0 else torch.ones_like(total)
    rotation = scale * vectors[:, :count]
    if passes is not None and passes < count:
        draws = torch.randint(2, (count - passes + 1, 1), generator=generator)
        signs = (2 * draws - 1).to(rotation)
        rest = rotation[:, passes - 1 :] @ signs
        rotation = torch.cat([rotation[:, : passes - 1], rest], dim=1)
    return torch.unflatten(rotation.mT @ flat, 1, cotangents.shape[1:])
