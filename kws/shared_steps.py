"""Which steps of a convolution along time are the same in overlapping windows of a stream.

Neighbouring windows hold the same frames, so a step that lies inside of several is computed once;
only steps that reach into the padding, at both ends of a window, are its own.

Rows are picked by `embedding`, which copies them many times as fast as an index does.

Shapes: T frames, N windows, S steps of one, L frames (or steps) of a filter, P different steps, D
numbers at one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from speechkit.kws.models import same_pads


@dataclass(frozen=True)
class SharedSteps:
    """The different steps of all windows.

    Attributes
    ----------
    rows
        (P, L) what a step sees, by place along the stream; T, behind its end, where a window is
        padded.
    places
        (N, S) which of them each step of each window is.
    """

    rows: Tensor
    places: Tensor

    def to(self, device: torch.device) -> "SharedSteps":
        """Return them on a device."""
        return SharedSteps(self.rows.to(device), self.places.to(device))

    def seen(self, along: Tensor) -> Tensor:
        """Return (P, L, D) of what lies along the stream (T, D); zeros for padding."""
        return functional.embedding(self.rows, functional.pad(along, (0, 0, 0, 1)))

    def of_windows(self, steps: Tensor) -> Tensor:
        """Return (N, S, D) of the steps of all windows, from those of the different ones (P, D)."""
        return functional.embedding(self.places, steps)


def shared_steps(frames: int, *, window: int, shift: int, size: int, stride: int) -> SharedSteps:
    """Return the steps of windows ``shift`` apart under a filter with "same" padding."""
    before, _ = same_pads(window, size, stride)
    firsts = torch.arange(0, frames - window + 1, shift)[:, None]
    starts = firsts + torch.arange(0, window, stride) - before
    own = torch.arange(starts.numel()).view_as(starts)
    inside = (starts >= firsts) & (starts + size <= firsts + window)
    different, places = torch.unique(torch.where(inside, starts, frames + own), return_inverse=True)
    # one window of those that share it, whichever
    found = torch.empty_like(different).scatter_(0, places.flatten(), own.flatten())
    rows = starts.flatten()[found][:, None] + torch.arange(size)
    first = firsts.expand_as(starts).flatten()[found][:, None]
    padding = (rows < first) | (rows >= first + window)
    return SharedSteps(rows.masked_fill(padding, frames), places)


def shared_neighbours(steps: SharedSteps, *, size: int) -> SharedSteps:
    """Return the steps of a second filter, of stride 1 with "same" padding, behind a first one."""
    pads = same_pads(steps.places.shape[1], size, 1)
    places = functional.pad(steps.places, pads, value=len(steps.rows))
    rows, own = torch.unique(places.unfold(1, size, 1).flatten(0, 1), dim=0, return_inverse=True)
    return SharedSteps(rows, own.view_as(steps.places))
