"""Few backward passes in place of one a hypothesis, for a weighted sum of squared norms.

A backward pass is linear in the gradient at the outputs: sum_k w_k ||J^T G_k||^2 =
tr(J^T (sum_k w_k G_k G_k^T) J), whose trace random mixtures of the hypotheses give in the mean
(Hutchinson 1990). For squared norms only.

Shapes: K hypotheses, B clips, ... the axes of the model's output for a clip, P probes.
"""

import torch
from torch import Tensor


@torch.no_grad()
def hutchinson(cotangents: Tensor, weights: Tensor, signs: Tensor) -> Tensor:
    """Random mixtures whose squared norms have the weighted sum of squared norms as mean.

    Parameters
    ----------
    cotangents
        Gradients at the outputs (K, B, ...).
    weights
        Weights of the hypotheses (K, B), not negative.
    signs
        Independent fair values of -1 and +1 (P, K, B), drawn by the caller for each clip.

    Returns
    -------
    Tensor
        Mixtures sum_k sign_k sqrt(w_k) G_k (P, B, ...); the mean over the probes of their squared
        norms is an unbiased estimate, of relative variance at most 2 / P.
    """
    scaled = (cotangents.flatten(2) * weights.sqrt().to(cotangents)[..., None]).transpose(0, 1)
    mixtures = torch.einsum("pkb,bkn->pbn", signs.to(scaled), scaled)
    return torch.unflatten(mixtures, 2, cotangents.shape[2:])
