"""The CRNN spotter on one window at a time, as a detector hears a microphone.

At this size torch's calls cost more than their arithmetic, so that NumPy, with fewer and cheaper
ones, takes less than half of the time. `Crnn` is the reference; logits agree to float32 rounding.

Shapes: T frames, F mel bands, S steps and R rows behind the convolution, C filters, P weights of a
filter, H recurrent units, K classes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from speechkit.kws.models import Crnn, same_padding
from speechkit.kws.packed_gru import PackedGru

Array = NDArray[np.float32]


class PackedCrnn(nn.Module):
    """A copy of a `Crnn` with GRU layers, on the CPU, for inference on single windows."""

    def __init__(self, network: Crnn) -> None:
        super().__init__()
        self.config = network.config
        filters, bias = _weights(network.convolution)
        self._filters_pc, self._filter_bias = filters.reshape(self.config.filters, -1).T, bias
        self._patches_srp = _patches(network)
        # a row's filters stand together here, a filter's rows in the reference
        inputs = np.arange(network.recurrent.input_size).reshape(self.config.filters, -1)
        self._recur = PackedGru(network.recurrent, input_order=inputs.T.reshape(-1))
        self._hidden, self._output = _weights(network.hidden), _weights(network.output)

    def forward(self, window_btf: Tensor) -> Tensor:
        """Map one window (1, T, F) to logits (1, K)."""
        config = self.config
        padded = same_padding(window_btf, config.filter_size, config.filter_stride).numpy()
        # one product over all places: NumPy takes a stack of them one by one
        patches = padded.reshape(-1).take(self._patches_srp.reshape(-1, len(self._filters_pc)))
        convolved = np.maximum(patches @ self._filters_pc + self._filter_bias, 0)
        x_sh = self._recur(convolved.reshape(len(self._patches_srp), -1))
        (hidden, hidden_bias), (output, output_bias) = self._hidden, self._output
        x_h = np.maximum(hidden @ x_sh.reshape(-1) + hidden_bias, 0)
        return torch.from_numpy(output @ x_h + output_bias)[None]


def _patches(network: Crnn) -> NDArray[np.intp]:
    """Return where in a padded window, flat, each filter finds its inputs (S, R, P)."""
    config = network.config
    sizes, strides = config.filter_size, config.filter_stride
    padded = same_padding(torch.zeros(config.frames, config.bands), sizes, strides)
    places = torch.arange(padded.numel()).view(padded.shape)
    for axis in range(2):
        places = places.unfold(axis, sizes[axis], strides[axis])
    return places.flatten(2).numpy()


def _weights(layer: nn.Linear | nn.Conv2d) -> tuple[Array, Array]:
    state = {name: tensor.cpu().numpy().copy() for name, tensor in layer.state_dict().items()}
    return state["weight"], state["bias"]
