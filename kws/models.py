"""Keyword-spotting networks: features of one window in, one logit a class out.

Shapes: B windows, T frames, F mel bands, C channels, K classes, H recurrent units a direction.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from speechkit.errors import RequestError

Pair = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class CrnnConfig:
    """Hyperparameters of `Crnn`; the defaults are the model that the paper chose.

    Parameters
    ----------
    filters, filter_size, filter_stride
        convolution: N_C, (L_T, L_F) and (S_T, S_F) in frames and bands.
    unit, recurrent_layers, recurrent_units
        GRU or LSTM, R layers, N_R units for each direction.
    hidden
        units of the fully connected layer, N_F.
    dropout
        before both layers behind the recurrent ones, in training; the paper mentions none.
    """

    frames: int = 151
    bands: int = 40
    filters: int = 32
    filter_size: Pair = (20, 5)
    filter_stride: Pair = (8, 2)
    unit: Literal["gru", "lstm"] = "gru"
    recurrent_layers: int = 2
    recurrent_units: int = 32
    hidden: int = 64
    dropout: float = 0.2


class Crnn(nn.Module):
    """Convolutional recurrent spotter (Arik et al. 2017, section 2).

    One 2-D convolution with "same" padding, bidirectional recurrent layers along time, a fully
    connected layer that sees all time steps, and a softmax layer.
    """

    name: ClassVar[Literal["crnn"]] = "crnn"

    def __init__(self, config: CrnnConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.convolution = nn.Conv2d(1, config.filters, config.filter_size, config.filter_stride)
        steps, rows = (
            math.ceil(size / stride)
            for size, stride in zip(
                (config.frames, config.bands), config.filter_stride, strict=True
            )
        )
        recurrent = {"gru": nn.GRU, "lstm": nn.LSTM}[config.unit]
        self.recurrent = recurrent(
            rows * config.filters,
            config.recurrent_units,
            config.recurrent_layers,
            batch_first=True,
            bidirectional=True,
        )
        self.hidden = nn.Linear(steps * 2 * config.recurrent_units, config.hidden)
        self.output = nn.Linear(config.hidden, classes)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_btf: Tensor) -> Tensor:
        """Map windows (B, T, F) to logits (B, K)."""
        x_btf = same_padding(x_btf, self.config.filter_size, self.config.filter_stride)
        x_bctf = self.convolution(_channels_last(x_btf[:, None])).relu()
        x_bth, _ = self.recurrent(x_bctf.permute(0, 2, 1, 3).flatten(2))
        x_bh = self.hidden(self.dropout(x_bth.flatten(1))).relu()
        return self.output(self.dropout(x_bh))


@dataclass(frozen=True, kw_only=True)
class CnnConfig:
    """Hyperparameters of `Cnn`; the defaults keep it under 250k parameters.

    Parameters
    ----------
    filters, first_size, first_stride, second_size
        the two convolutions, sizes and stride in frames and bands.
    pool_bands
        max-pooling over neighbouring bands after the first convolution.
    projection, hidden
        widths of the linear low-rank layer and of the fully connected layer.
    dropout
        before the low-rank layer and before the output, in training.
    """

    frames: int = 151
    bands: int = 40
    filters: int = 48
    first_size: Pair = (20, 8)
    first_stride: Pair = (8, 1)
    pool_bands: int = 3
    second_size: Pair = (5, 4)
    projection: int = 24
    hidden: int = 128
    dropout: float = 0.2


class Cnn(nn.Module):
    """The convolutional baseline that the CRNN is held against.

    The family of Sainath and Parada (Interspeech 2015, "cnn-tstride8"): two convolutions with
    max-pooling over bands between them, a linear low-rank layer, a fully connected layer and a
    softmax layer, sized for the CRNN paper's input and its cap of 250k parameters.
    """

    name: ClassVar[Literal["cnn"]] = "cnn"

    def __init__(self, config: CnnConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        pooled = (config.bands - config.first_size[1] + 1) // config.pool_bands
        if pooled < config.second_size[1]:
            raise RequestError(
                f"network first_size {config.first_size}, pool_bands {config.pool_bands}: leave "
                f"{max(0, pooled)} of {config.bands} bands, the second convolution takes "
                f"{config.second_size[1]}; make one of them smaller"
            )
        self.first = nn.Conv2d(1, config.filters, config.first_size, config.first_stride)
        self.pool = nn.MaxPool2d((1, config.pool_bands))
        self.second = nn.Conv2d(config.filters, config.filters, config.second_size)
        with torch.no_grad():
            flat = self._convolve(torch.zeros(1, config.frames, config.bands)).shape[1]
        self.projection = nn.Linear(flat, config.projection)
        self.hidden = nn.Linear(config.projection, config.hidden)
        self.output = nn.Linear(config.hidden, classes)
        self.dropout = nn.Dropout(config.dropout)

    def _convolve(self, x_btf: Tensor) -> Tensor:
        time_only = ((self.config.first_size[0], 1), (self.config.first_stride[0], 1))
        x_btf = same_padding(x_btf, *time_only)
        x_bctf = self.pool(self.first(_channels_last(x_btf[:, None])).relu())
        x_bctf = same_padding(x_bctf, (self.config.second_size[0], 1), (1, 1))
        return self.second(x_bctf).relu().flatten(1)

    def forward(self, x_btf: Tensor) -> Tensor:
        """Map windows (B, T, F) to logits (B, K)."""
        x_bp = self.projection(self.dropout(self._convolve(x_btf)))
        return self.output(self.dropout(self.hidden(x_bp).relu()))


NetworkConfig = CrnnConfig | CnnConfig
_CONFIGS: dict[str, type[NetworkConfig]] = {Crnn.name: CrnnConfig, Cnn.name: CnnConfig}


def network_config(description: dict[str, Any]) -> NetworkConfig:
    """Return the hyperparameters that ``{"type": "crnn" | "cnn", **hyperparameters}`` describes.

    Raises
    ------
    RequestError
        for an unknown type or hyperparameter, or an impossible value of one; the message lists
        what is allowed.
    """
    settings = dict(description)
    kind = settings.pop("type", None)
    if not isinstance(kind, str) or kind not in _CONFIGS:
        raise RequestError(f"network type {kind!r}: allowed are {', '.join(_CONFIGS)}")
    config = _CONFIGS[kind]
    allowed = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(settings) - allowed):
        raise RequestError(
            f"unknown {kind} hyperparameters {', '.join(unknown)}: allowed are "
            f"{', '.join(sorted(allowed))}"
        )
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
    }
    for key, value in values.items():
        _check_value(key, value, like=getattr(config, key))
    return config(**values)


def build_network(description: dict[str, Any], classes: int) -> Crnn | Cnn:
    """Build a network from its description, as `network_config` takes and refuses it."""
    config = network_config(description)
    return Crnn(config, classes) if isinstance(config, CrnnConfig) else Cnn(config, classes)


def describe_network(network: Crnn | Cnn) -> dict[str, Any]:
    """Return the description from which `build_network` builds the same network."""
    return {"type": network.name, **dataclasses.asdict(network.config)}


def count_parameters(module: nn.Module, *, paper: bool = False) -> int:
    """Count parameters; ``paper`` leaves out the second bias that torch gives recurrent layers."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not (paper and "bias_hh" in name)
    )


def _check_value(key: str, value: Any, *, like: int | float | str | Pair) -> None:
    """Refuse what is not of the form of the default: a size, two of them, a share or a unit."""
    if isinstance(like, str):
        right, wanted = value in ("gru", "lstm"), "gru or lstm"
    elif isinstance(like, float):
        right, wanted = (
            isinstance(value, (int, float)) and 0 <= value < 1,
            "a number from 0 below 1",
        )
    elif isinstance(like, tuple):
        right = isinstance(value, tuple) and len(value) == 2 and all(map(_is_size, value))
        wanted = "two whole numbers from 1 on"
    else:
        right, wanted = _is_size(value), "a whole number from 1 on"
    if not right:
        raise RequestError(f"network {key} {value!r}: give {wanted}")


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _channels_last(x_bctf: Tensor) -> Tensor:
    """Return the layout in which a CPU takes a third of the time for the gradients of filters."""
    return x_bctf.to(memory_format=torch.channels_last)


def same_padding(x: Tensor, size: Pair, stride: Pair) -> Tensor:
    """Pad the last two axes so that a convolution gives ceil(length / stride) outputs."""
    pads: list[int] = []
    for length, window, step in zip(reversed(x.shape[-2:]), size[::-1], stride[::-1], strict=True):
        pads += same_pads(length, window, step)
    return functional.pad(x, pads)


def same_pads(length: int, size: int, stride: int) -> Pair:
    """Return how many zeros such a convolution needs before and after one axis."""
    total = max(0, (math.ceil(length / stride) - 1) * stride + size - length)
    return total // 2, total - total // 2
