"""A bidirectional GRU for one short sequence at a time, as a detector hears it.

torch's GRU spends most of a single window on the calls of its many small operations. Here both
directions run side by side in one loop of NumPy calls: hidden states [forward | backward], gates in
the order reset, update, new, each for both directions, recurrent weights block-diagonal.
`torch.nn.GRU` is the reference (equation as in its documentation); the results agree to float32
rounding.

Shapes: T steps, F inputs, H hidden units a direction.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Layer:
    inputs: Array  # (F, 6H)
    input_bias: Array  # (6H,)
    recurrent: Array  # (2H + 1, 6H), the last row a bias: that of "new" is inside the reset gate


class PackedGru:
    """A copy of a bidirectional `torch.nn.GRU`, packed for inference on one sequence.

    Parameters
    ----------
    input_order
        (F,) for each input that the copy is given, which input of ``gru`` it is.
    """

    def __init__(self, gru: nn.GRU, *, input_order: NDArray[np.intp] | None = None) -> None:
        self.units = gru.hidden_size
        self._layers = [_pack(gru, layer) for layer in range(gru.num_layers)]
        if input_order is not None:
            first = self._layers[0]
            self._layers[0] = dataclasses.replace(first, inputs=first.inputs[input_order])

    def __call__(self, x_tf: Array) -> Array:
        """Return the outputs of the last layer (T, 2H) for inputs (T, F), from a zero state."""
        for layer in self._layers:
            x_tf = self._run(layer, x_tf)
        return x_tf

    def _run(self, layer: _Layer, x_tf: Array) -> Array:
        units, both = self.units, 2 * self.units
        inputs = x_tf @ layer.inputs + layer.input_bias
        # the backward direction takes its inputs from the end
        by_gate = inputs.reshape(len(x_tf), 3, 2, units)
        by_gate[:, :, 1] = by_gate[::-1, :, 1].copy()
        outputs = np.empty((len(x_tf), both), dtype=np.float32)
        # the last entry is the constant that the recurrent bias is multiplied with
        state = np.zeros(both + 1, dtype=np.float32)
        state[-1] = 1
        hidden = np.empty(3 * both, dtype=np.float32)
        sigmoids, reset, update, new = (
            hidden[: 2 * both],
            hidden[:both],
            hidden[both : 2 * both],
            hidden[2 * both :],
        )
        memory = state[:-1]
        # every result has its place beforehand: at this size allocation is a third of the time
        for gates_ru, gates_n, output in zip(
            inputs[:, : 2 * both], inputs[:, 2 * both :], outputs, strict=True
        ):
            np.dot(state, layer.recurrent, out=hidden)
            # sigmoid(x) = (1 + tanh(x / 2)) / 2, whose inner half is in the packed weights
            np.add(sigmoids, gates_ru, out=sigmoids)
            np.tanh(sigmoids, out=sigmoids)
            np.add(sigmoids, 1, out=sigmoids)
            np.multiply(sigmoids, 0.5, out=sigmoids)
            np.multiply(new, reset, out=new)
            np.add(new, gates_n, out=new)
            np.tanh(new, out=new)
            np.subtract(memory, new, out=memory)
            np.multiply(memory, update, out=memory)
            np.add(memory, new, out=memory)
            output[:] = memory
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
    return _Layer(
        inputs=np.ascontiguousarray(weights.reshape(6 * units, -1).T),
        input_bias=biases.reshape(-1),
        recurrent=np.concatenate([recurrent.reshape(2 * units, -1), hidden_biases.reshape(1, -1)]),
    )
