"""Consistency-regularised CTC (Yao et al. 2024): two views of an utterance must be read alike.

An utterance is masked twice, differently. To each view's CTC loss comes the divergence of its
posteriors from the other's, frame by frame, which are held fixed: each view learns from what the
other saw.

Shapes: B utterances, U frames, V tokens.
"""

import torch
from torch import Tensor


def divergence(logits: Tensor, lengths: Tensor) -> Tensor:
    """Return for each utterance (B,) the divergence of its two views, in nats over all frames.

    That is the mean of KL(a || b) and KL(b || a), where gradients reach the second alone.

    Parameters
    ----------
    logits
        (2 B, U, V): all first views, then all second ones.
    lengths
        (2 B,), equal for the views of an utterance.
    """
    log_probs = logits.float().log_softmax(dim=-1)
    others = log_probs.detach().roll(len(logits) // 2, dims=0)
    each = (others.exp() * (others - log_probs)).sum(dim=-1)
    frames = torch.arange(logits.shape[1], device=logits.device)
    inside = frames < lengths.to(logits.device)[:, None]
    first, second = torch.where(inside, each, 0.0).sum(dim=1).chunk(2)
    return (first + second) / 2
