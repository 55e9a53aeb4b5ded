"""The forward-backward recursion of CTC over the states of many hypotheses at once.

Shapes: B clips, T frames, V tokens, K hypotheses, L labels; F frames of a block. Probabilities are
logarithms in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# stands for log 0: finite, so that sums of impossible events never become NaN
IMPOSSIBLE = -1e30
# frames whose emissions are looked up at a time, so that they stay in the cache
BLOCK_FRAMES = 64


@dataclass(frozen=True)
class Job:
    """Hypotheses computed together: labels (K, L) padded with the blank, lengths and clips (K,)."""

    labels: Tensor
    lengths: Tensor
    clips: Tensor


class _Lattice:
    """The states of K hypotheses, and the probability in them as frames go by.

    A hypothesis of L labels has L + 1 blanks, before, between and after them. Both kinds of state
    are kept as planes of L + 1 columns: blank j follows j labels, and label j is the j-th, so that
    column 0 of the label plane is unused. ``mass`` (2, K, L + 1) is the log-probability of all
    that came so far and ends in a state; before the first frame it is in the blank ``start`` (K,).
    """

    def __init__(self, posteriors: Tensor, job: Job, *, start: Tensor, blank: int) -> None:
        self._flat = posteriors.transpose(0, 1).flatten(1)
        offsets = job.clips[:, None] * posteriors.shape[2]
        self._blanks, self._labels = offsets + blank, offsets + job.labels
        self._repeated = repeated(job.labels, blank)
        shape = (2, len(job.labels), job.labels.shape[1] + 1)
        self.mass = posteriors.new_full(shape, IMPOSSIBLE)
        self.mass[0].scatter_(1, start[:, None], 0.0)

    def table(self, frames: int) -> Tensor:
        """Return room for `advance` (frames, 2, K, L + 1)."""
        table = self.mass.new_empty(frames, *self.mass.shape)
        table[:, 1, :, 0] = IMPOSSIBLE
        return table

    def advance(self, block: slice, entering: Tensor) -> Tensor:
        """Go through a block of frames; return the price of each state (F, 2, K, L + 1) at each.

        ``entering`` is filled with the mass that reaches each state at each frame, *before* the
        frame's token is paid for.
        """
        blanks, labels = self.mass
        before, following = blanks[:, :-1], labels[:, 1:]
        prices = self._prices(block)
        steps = zip(
            prices.unbind(),
            entering.unbind(),
            entering[:, 0].unbind(),
            entering[:, 0, :, :-1].unbind(),
            entering[:, 1, :, 1:].unbind(),
            strict=True,
        )
        for price, reached, to_blank, past_label, to_label in steps:
            torch.logaddexp(blanks, labels, out=to_blank)
            # between equal labels there must be a blank: else the two would be one run
            source = torch.where(self._repeated, before, past_label)
            torch.logaddexp(following, source, out=to_label)
            torch.add(reached, price, out=self.mass)
        return prices

    def _prices(self, block: slice) -> Tensor:
        flat = self._flat[block]
        prices = flat.new_full((len(flat), *self.mass.shape), IMPOSSIBLE)
        prices[:, 0] = flat[:, self._blanks]
        prices[:, 1, :, 1:] = flat[:, self._labels]
        return prices


def frame_blocks(frames: int) -> list[slice]:
    """Return the frames in blocks of `BLOCK_FRAMES`."""
    return [slice(at, min(at + BLOCK_FRAMES, frames)) for at in range(0, frames, BLOCK_FRAMES)]


def _totals(mass: Tensor, job: Job) -> Tensor:
    """Return log p(y | x) (K,): the final mass in the last label and in the blank after it."""
    ends = mass.gather(2, job.lengths.expand(2, -1)[..., None])
    totals = torch.logaddexp(ends[0, :, 0], ends[1, :, 0])
    return totals.masked_fill(totals < IMPOSSIBLE / 2, -float("inf"))


def forward(posteriors: Tensor, job: Job, blank: int) -> Tensor:
    """Return log-likelihoods (K,)."""
    start = torch.zeros_like(job.lengths)
    lattice = _Lattice(posteriors, job, start=start, blank=blank)
    scratch = lattice.table(BLOCK_FRAMES)
    for block in frame_blocks(posteriors.shape[1]):
        lattice.advance(block, scratch[: block.stop - block.start])
    return _totals(lattice.mass, job)


def forward_backward(posteriors: Tensor, job: Job, *, blank: int, occupied: Tensor) -> Tensor:
    """Return log-likelihoods (K,); add the occupancies to ``occupied`` (T, K, V).

    The backward pass is the forward pass of time and labels reversed. Labels are padded at their
    end, so that reversed ones begin after their padding and the columns mirror as a whole.
    """
    frames, width = posteriors.shape[1], job.labels.shape[1]
    start = torch.zeros_like(job.lengths)
    forward = _Lattice(posteriors, job, start=start, blank=blank)
    table = forward.table(frames)
    for block in frame_blocks(frames):
        forward.advance(block, table[block])
    totals = _totals(forward.mass, job)
    # an infinite divisor leaves no occupancy to a hypothesis that cannot be
    divisor = torch.where(totals.isfinite(), totals, float("inf"))[:, None]

    mirrored = Job(job.labels.flip(1), job.lengths, job.clips)
    backward = _Lattice(posteriors.flip(1), mirrored, start=width - job.lengths, blank=blank)
    scratch = backward.table(BLOCK_FRAMES)
    for block in frame_blocks(frames):
        entering = scratch[: block.stop - block.start]
        behind = backward.advance(block, entering).add_(entering).flip(0, -1)
        here = slice(frames - block.stop, frames - block.start)
        blanks, labels = table[here].unbind(1)
        blanks = (blanks + behind[:, 0]).sub_(divisor).exp_()
        labels = (labels[..., 1:] + behind[:, 1, :, :-1]).sub_(divisor).exp_()
        part = occupied[here]
        part[..., blank] += blanks.sum(-1)
        part.scatter_add_(2, job.labels.expand(len(labels), -1, -1), labels)
    return totals


def repeated(labels: Tensor, blank: int) -> Tensor:
    """Return which labels (K, L), padded with the blank, equal the one before them."""
    same = torch.zeros_like(labels, dtype=torch.bool)
    same[:, 1:] = (labels[:, 1:] == labels[:, :-1]) & (labels[:, 1:] != blank)
    return same
