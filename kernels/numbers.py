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
