"""The CNN spotter along a stream, whose windows share most of their work.

Steps of both convolutions are computed once where windows share them. With the default sizes that
is 7 and 12 steps a window in place of 19 and 19. `Cnn` is the reference; logits agree to float32
rounding.

Shapes: T frames, F mel bands, N windows, S steps of one, P different steps, L steps of a filter, C
channels, D numbers at a step, K classes.
"""

import copy
import math

import torch
from torch import Tensor, nn

from speechkit.kws.models import Cnn
from speechkit.kws.shared_steps import shared_neighbours, shared_steps


class StreamedCnn(nn.Module):
    """A copy of a `Cnn` for inference on all windows of a stream.

    Parameters
    ----------
    shift
        frames from one window to the next.
    """

    def __init__(self, network: Cnn, shift: int) -> None:
        super().__init__()
        config = self.config = network.config
        self.shift = shift
        own = copy.deepcopy(network)
        self.first, self.pool, self.second = own.first, own.pool, own.second
        self.projection, self.hidden, self.output = own.projection, own.hidden, own.output
        # the channels of a step lie beside each other here, which spares copies
        steps = math.ceil(config.frames / config.first_stride[0])
        weight = self.projection.weight.view(config.projection, config.filters, steps, -1)
        self.projection.weight = nn.Parameter(weight.permute(0, 2, 3, 1).flatten(1))
        self.requires_grad_(False)

    def forward(self, features_tf: Tensor) -> Tensor:
        """Map features (T, F), at least one window of them, to logits (N, K)."""
        config = self.config
        steps = shared_steps(
            len(features_tf),
            window=config.frames,
            shift=self.shift,
            size=config.first_size[0],
            stride=config.first_stride[0],
        )
        around = shared_neighbours(steps, size=config.second_size[0]).to(features_tf.device)
        patches = steps.to(features_tf.device).seen(features_tf)[:, None]
        x_pcf = self.pool(self.first(patches.to(memory_format=torch.channels_last)).relu())[:, :, 0]
        x_pld = around.seen(x_pcf.transpose(1, 2).flatten(1))
        x_plfc = x_pld.view(*x_pld.shape[:2], -1, config.filters)
        x_pcf = self.second(x_plfc.permute(0, 3, 1, 2)).relu()[:, :, 0]
        x_nsd = around.of_windows(x_pcf.transpose(1, 2).flatten(1))
        return self.output(self.hidden(self.projection(x_nsd.flatten(1))).relu())
