"""The forward-backward recursion of CTC in probabilities: several times as fast as in logarithms.

Additions take the place of logaddexp; every few frames the mass of each hypothesis is scaled to 1.
States whose share is beyond the range of doubles are lost by that, and a hypothesis may live on
them later. So each one is checked: forward times backward mass, summed over the states, must be
p(y | x) at every frame, and more than all that may have been lost. Those that fail are left to
`ctc_lattice`, which computes in logarithms.

Shapes: B clips, T frames, V tokens, K hypotheses, L labels; F frames of a block. All is float64.
"""

import math

import torch
from torch import Tensor

from speechkit.ctc_lattice import Job, frame_blocks, repeated

# between two scalings of the mass to 1
_SCALE_FRAMES = 4
# shares below are dropped: products of them would be subnormal, whose arithmetic is slow
_SMALLEST = 1e-200
# nats by which p(y | x) must be above what may have been lost: a share of doubles' precision
_MARGIN = 36.0
# nats a frame by which p(y | x) may differ from frame to frame: more than rounding
_TOLERANCE = 1e-11


class _States:
    """The mass in the states of K hypotheses, over a scale of each hypothesis.

    A row is a state: L labels, then the L + 1 blanks before, between and after them. A row of zeros
    stands above the labels and one below, so that the neighbours of all labels are views.
    """

    def __init__(self, posteriors: Tensor, job: Job, blank: int) -> None:
        self._flat = posteriors.transpose(0, 1).flatten(1)
        offsets = job.clips * posteriors.shape[2]
        self._places = (offsets + job.labels.T).flatten(), offsets + blank
        self.count = job.labels.shape[1]
        self.mass = posteriors.new_zeros(2 * self.count + 3, len(job.labels))
        self.labels, self.blanks = self.mass[1 : self.count + 1], self.mass[self.count + 2 :]
        self.log_scale = posteriors.new_zeros(len(job.labels))
        # two equal labels need a blank between them: else they would be one run
        self.adjacent = (~repeated(job.labels, blank)).T.to(posteriors.dtype)

    def begin(self, blanks: Tensor) -> None:
        """Put all mass of each hypothesis into one of its blanks (K,)."""
        self.mass.zero_()
        self.blanks.scatter_(0, blanks[None], 1.0)
        self.log_scale.zero_()

    def prices(self, block: slice) -> tuple[Tensor, Tensor]:
        """Return the probabilities of the labels (F, L, K) and of the blank (F, K)."""
        flat = self._flat[block]
        # gather is several times as fast as an index
        labels, blanks = (flat.gather(1, where.expand(len(flat), -1)) for where in self._places)
        return labels.view(len(flat), *self.labels.shape), blanks

    def rescale(self, frame: int) -> None:
        """Scale the mass to 1 if it is time; a hypothesis without any is left without."""
        if frame % _SCALE_FRAMES == 0:
            total = self.mass.sum(0)
            self.log_scale += total.log()
            self.mass /= total.clamp(min=torch.finfo(total.dtype).tiny)
            torch.threshold_(self.mass, _SMALLEST, 0.0)


def forward_backward(
    posteriors: Tensor, job: Job, *, blank: int, occupied: Tensor
) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods (K,), and which of them (K,) are certain.

    Parameters
    ----------
    posteriors
        (B, T, V), probabilities: not their logarithms, as in `ctc_lattice`.
    occupied
        (T, K, V), to which the occupancies of the certain ones are added.
    """
    states = _States(posteriors, job, blank)
    # of the states but the upper row of zeros, at each frame: the mass that enters them, then p
    table = posteriors.new_empty(posteriors.shape[1], *states.mass[1:].shape)
    scales = posteriors.new_empty(table.shape[0], table.shape[2])
    states.begin(torch.zeros_like(job.lengths))
    _go_forward(states, table, scales)
    states.begin(job.lengths)
    _come_back(states, table, scales)
    sums = table.sum(1)
    scales += sums.log()
    totals = scales.mean(0)
    # NaN, of hypotheses that cannot be or of no frames at all, is not below the bound
    certain = ((scales - totals).abs() <= _TOLERANCE * len(table)).all(0) & totals.isfinite()
    # what is dropped of a mass of at most 1 can only become less, and frames and states are many
    most_lost = math.log(_SMALLEST) + math.log(max(1, table.shape[0] * table.shape[1]))
    certain &= totals > most_lost + _MARGIN
    _add(table, states.count, job, sums.where(certain, float("inf")), blank, occupied)
    return totals, certain


def _go_forward(states: _States, table: Tensor, scales: Tensor) -> None:
    """Note the mass that enters each state at each frame, before the token is paid for."""
    count, blanks, labels = states.count, states.blanks, states.labels
    above, left = states.mass[:count], blanks[:-1]
    table[:, count] = 0.0
    for block in frame_blocks(len(table)):
        rows = zip(
            table[block, :count].unbind(),
            table[block, count + 1 :].unbind(),
            *(price.unbind() for price in states.prices(block)),
            scales[block].unbind(),
            strict=True,
        )
        for frame, (to_label, to_blank, label_price, blank_price, scale) in enumerate(rows):
            states.rescale(frame)
            scale.copy_(states.log_scale)
            torch.add(blanks, states.mass[: count + 1], out=to_blank)
            torch.addcmul(labels, above, states.adjacent, out=to_label).add_(left)
            torch.mul(to_label, label_price, out=labels)
            torch.mul(to_blank, blank_price, out=blanks)


def _come_back(states: _States, table: Tensor, scales: Tensor) -> None:
    """Multiply the table by the mass of each state at each frame, its token paid for."""
    count, blanks, labels = states.count, states.blanks, states.labels
    below, right = states.mass[2 : count + 2], blanks[1:]
    adjacent = states.adjacent.roll(-1, 0)  # the last label has none below, but the zeros
    to_label, to_blank = torch.empty_like(labels), torch.empty_like(blanks)
    for block in reversed(frame_blocks(len(table))):
        rows = zip(
            table[block].unbind(),
            *(price.unbind() for price in states.prices(block)),
            scales[block].unbind(),
            strict=True,
        )
        for frame, (row, label_price, blank_price, scale) in enumerate(reversed(list(rows))):
            states.rescale(frame)
            scale += states.log_scale
            torch.add(blanks, states.mass[1 : count + 2], out=to_blank)
            torch.addcmul(labels, below, adjacent, out=to_label).add_(right)
            torch.mul(to_label, label_price, out=labels)
            torch.mul(to_blank, blank_price, out=blanks)
            row *= states.mass[1:]


def _add(table: Tensor, count: int, job: Job, sums: Tensor, blank: int, occupied: Tensor) -> None:
    """Add shares of states (T, 2 L + 2, K), over their sums (T, K), to tokens (T, K, V)."""
    tokens = occupied.shape[2]
    places = (torch.arange(len(job.labels), device=table.device) * tokens + job.labels.T).flatten()
    for block in frame_blocks(len(table)):
        shares = table[block].div_(sums[block, None])
        part = occupied[block]
        part[..., blank] += shares[:, count + 1 :].sum(1)
        part.view(len(part), -1).index_add_(1, places, shares[:, :count].flatten(1))
