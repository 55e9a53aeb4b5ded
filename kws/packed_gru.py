"""A bidirectional GRU for one short sequence at a time, as a detector hears it.

torch's GRU spends most of a single window on the calls of its many small operations. Here both
directions run side by side in one loop of NumPy calls: hidden states [forward | backward], gates in
the order reset, update, new, each for both directions, recurrent weights block-diagonal.
`torch.nn.GRU` is the reference (equation as in its documentation); the results agree to float32
rounding.

Shapes: T steps, F inputs, H hidden units a direction.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    inputs: Array  # (F, 6H)
    input_bias: Array  # (6H,)
    recurrent: Array  # (2H, 6H)
    new_bias: Array  # (2H,), inside the product with the reset gate


class PackedGru(nn.Module):
    """A copy of a bidirectional `torch.nn.GRU` on the CPU, packed for inference on one sequence."""

    def __init__(self, gru: nn.GRU) -> None:
        super().__init__()
        self.units = gru.hidden_size
        self._layers = [_pack(gru, layer) for layer in range(gru.num_layers)]

    def forward(self, x_btf: Tensor) -> tuple[Tensor, None]:
        """Return the outputs of the last layer (1, T, 2H) from a zero state; B must be 1."""
        x_tf = x_btf.squeeze(0).numpy()
        for layer in self._layers:
            x_tf = self._run(layer, x_tf)
        return torch.from_numpy(x_tf)[None], None

    def _run(self, layer: _Layer, x_tf: Array) -> Array:
        units, both = self.units, 2 * self.units
        inputs = x_tf @ layer.inputs + layer.input_bias
        # the backward direction takes its inputs from the end
        by_gate = inputs.reshape(len(x_tf), 3, 2, units)
        by_gate[:, :, 1] = by_gate[::-1, :, 1].copy()
        state = np.zeros(both, dtype=np.float32)
        outputs = np.empty((len(x_tf), both), dtype=np.float32)
        for step, gates in enumerate(inputs):
            hidden = state @ layer.recurrent
            # sigmoid(x) = (1 + tanh(x / 2)) / 2, whose halves are in the packed weights
            sigmoids = np.tanh(hidden[: 2 * both] + gates[: 2 * both])
            sigmoids += 1
            sigmoids *= 0.5
            new = np.tanh(
                gates[2 * both :] + sigmoids[:both] * (hidden[2 * both :] + layer.new_bias)
            )
            state = new + sigmoids[both:] * (state - new)
            outputs[step] = state
        outputs[:, units:] = outputs[::-1, units:].copy()
        return outputs


def _pack(gru: nn.GRU, layer: int) -> _Layer:
    units = gru.hidden_size

    def gates(name: str) -> Array:
        """Return a parameter of both directions as (gate, direction, units, ...)."""
        pair = [getattr(gru, f"{name}_l{layer}{suffix}") for suffix in ("", "_reverse")]
        return np.stack([p.detach().cpu().numpy().reshape(3, units, -1) for p in pair], axis=1)

    halves = np.array([0.5, 0.5, 1.0], dtype=np.float32)[:, None, None, None]
    weights, biases = gates("weight_ih") * halves, gates("bias_ih") * halves
    hidden_weights, hidden_biases = gates("weight_hh") * halves, gates("bias_hh") * halves
    recurrent = np.zeros((2, units, 3, 2, units), dtype=np.float32)
    for direction in range(2):
        recurrent[direction, :, :, direction] = hidden_weights[:, direction].transpose(2, 0, 1)
    biases[:2] += hidden_biases[:2]
    return _Layer(
        inputs=np.ascontiguousarray(weights.reshape(6 * units, -1).T),
        input_bias=biases.reshape(-1),
        recurrent=recurrent.reshape(2 * units, 6 * units),
        new_bias=hidden_biases[2].reshape(-1),
    )
