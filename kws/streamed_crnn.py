"""The CRNN spotter along a stream, whose windows share most of their work.

Steps of the convolution, and their products with the input weights of the first recurrent layer,
are computed once where windows share them. With the paper's sizes that is 7 steps a window in
place of 19, and half of the time on a CPU. `Crnn` is the reference; logits agree to float32
rounding.

Shapes: T frames, F mel bands or features of a step, N windows, S steps of one, P different steps,
H recurrent units, G gates of both directions, K classes.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.kws.models import Crnn, same_pads
from speechkit.kws.shared_steps import shared_steps


class StreamedCrnn(nn.Module):
    """A copy of a `Crnn` for inference on all windows of a stream.

    Parameters
    ----------
    shift
        frames from one window to the next.
    """

    def __init__(self, network: Crnn, shift: int) -> None:
        super().__init__()
        config = network.config
        self.window, self.shift = config.frames, shift
        self.convolution, self.hidden, self.output = (
            copy.deepcopy(layer) for layer in (network.convolution, network.hidden, network.output)
        )
        self.recurrent, self.inputs_gf = _apart(network.recurrent)
        (self.size, bands), (self.stride, bands_stride) = config.filter_size, config.filter_stride
        self._bands = same_pads(config.bands, bands, bands_stride)
        self.requires_grad_(False)

    def forward(self, features_tf: Tensor) -> Tensor:
        """Map features (T, F), at least one window of them, to logits (N, K)."""
        steps = shared_steps(
            len(features_tf),
            window=self.window,
            shift=self.shift,
            size=self.size,
            stride=self.stride,
        ).to(features_tf.device)
        patches = steps.seen(functional.pad(features_tf, self._bands))[:, None]
        x_pf = self.convolution(patches.to(memory_format=torch.channels_last)).relu().flatten(1)
        x_nsh, _ = self.recurrent(steps.of_windows(x_pf @ self.inputs_gf.T))
        return self.output(self.hidden(x_nsh.flatten(1)).relu())


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
