"""The CRNN spotter along a stream, whose windows share most of their work.

Neighbouring windows hold the same frames. A step of the convolution that lies inside of several is
computed once, and so is its product with the input weights of the first recurrent layer; only
steps that reach into the padding, at both ends of a window, are its own. With the paper's sizes
that is 7 steps a window in place of 19, and half of the time on a CPU. `Crnn` is the reference;
logits agree to float32 rounding.

Shapes: T frames, F mel bands, N windows, S steps of one behind the convolution, P different steps,
L frames of a filter, G gates of both directions, K classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kws.models import Crnn, same_pads


class StreamedCrnn(nn.Module):
    """A copy of a `Crnn` for inference on all windows of a stream.

    Parameters
    ----------
    shift
        frames from one window to the next.
    """

    def __init__(self, network: Crnn, shift: int) -> None:
        super().__init__()
        config = self.config = network.config
        self.shift = shift
        self.convolution, self.hidden, self.output = (
            copy.deepcopy(layer) for layer in (network.convolution, network.hidden, network.output)
        )
        self.recurrent, self.inputs_gf = _apart(network.recurrent)
        time, bands = zip(config.filter_size, config.filter_stride, strict=True)
        self._before, _ = same_pads(config.frames, *time)
        self._bands = same_pads(config.bands, *bands)
        self.requires_grad_(False)

    def forward(self, features_tf: Tensor) -> Tensor:
        """Map features (T, F), at least one window of them, to logits (N, K)."""
        rows_pl, places_ns = self._steps(len(features_tf))
        # behind the last frame stands one of zeros, which the padding of a window refers to
        padded_tf = functional.pad(features_tf, (*self._bands, 0, 1))
        patches = padded_tf[rows_pl.to(features_tf.device)][:, None]
        x_pf = self.convolution(patches.to(memory_format=torch.channels_last)).relu().flatten(1)
        gates_pg = x_pf @ self.inputs_gf.T
        x_nsh, _ = self.recurrent(gates_pg[places_ns.to(features_tf.device)])
        return self.output(self.hidden(x_nsh.flatten(1)).relu())

    def _steps(self, frames: int) -> tuple[Tensor, Tensor]:
        """Return the frames of each different step (P, L), and which steps a window has (N, S)."""
        config, (size, _), (stride, _) = (
            self.config,
            self.config.filter_size,
            self.config.filter_stride,
        )
        windows = torch.arange(0, frames - config.frames + 1, self.shift)[:, None]
        starts = windows + torch.arange(0, config.frames, stride) - self._before
        own = torch.arange(starts.numel()).view_as(starts)
        inside = (starts >= windows) & (starts + size <= windows + config.frames)
        keys = torch.where(inside, starts, frames + own)
        different, places_ns = torch.unique(keys, return_inverse=True)
        # one window of those that share it, whichever
        found = torch.empty_like(different).scatter_(0, places_ns.flatten(), own.flatten())
        rows_pl = starts.flatten()[found][:, None] + torch.arange(size)
        first = windows.expand_as(starts).flatten()[found][:, None]
        padding = (rows_pl < first) | (rows_pl >= first + config.frames)
        return rows_pl.masked_fill(padding, frames), places_ns


def _apart(recurrent: nn.GRU | nn.LSTM) -> tuple[nn.GRU | nn.LSTM, Tensor]:
    """Return recurrent layers that take products with the first one's input weights; and those."""
    names = ("weight_ih_l0", "weight_ih_l0_reverse")
    weights = torch.cat([getattr(recurrent, name).detach() for name in names])
    rest = type(recurrent)(
        len(weights),
        recurrent.hidden_size,
        recurrent.num_layers,
        batch_first=True,
        bidirectional=True,
    ).to(weights)
    # each direction picks its own of the products
    picks = torch.eye(len(weights)).to(weights).chunk(2)
    rest.load_state_dict({**recurrent.state_dict(), **dict(zip(names, picks, strict=True))})
    return rest, weights
