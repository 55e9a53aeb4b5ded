"""In which numbers attention is computed, whatever those of its inputs."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def statistics_type(x: Tensor) -> torch.dtype:
    """Return the type of scores and sums: float32, or float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Return a context without autocast, which would round the scores and sums."""
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return nullcontext()  # entering the other takes as long as a short product
    return torch.autocast(device, enabled=False)


def without_padding(x: Tensor, lengths: Tensor) -> Tensor:
    """Return (L, ..., T, D) with zeros from the lengths (L,) on: a weight of 0 times NaN is NaN."""
    padding = torch.arange(x.shape[-2], device=x.device) >= lengths.to(x.device)[:, None]
    return x.masked_fill(padding.view(x.shape[0], *(1,) * (x.ndim - 3), -1, 1), 0.0)
