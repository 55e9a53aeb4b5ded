"""Front-ends: audio in, features out, offline and streaming with the same numbers.

Each is a module that maps audio (B, samples) in [-1, 1] and lengths (B,) to features
(B, frames, bands) and frame lengths (B,). Audio beyond a length does not count, and features beyond
a frame length are 0. ``stream()`` gives the twin that takes chunks. A front-end is a plain
dictionary in a model's config: `build` makes it, ``describe()`` returns it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from speechkit.errors import RequestError
from speechkit.frontend_base import Frontend, FrontendStream
from speechkit.mel import AUTO, MelConfig
from speechkit.pcen import Pcen, PcenConfig
from speechkit.ranges import require

__all__ = [
    "Frontend",
    "FrontendStream",
    "LogMel",
    "LogMelConfig",
    "Mfcc",
    "MfccConfig",
    "Pcen",
    "PcenConfig",
    "build",
]


@dataclass(frozen=True, kw_only=True)
class LogMelConfig(MelConfig):
    """Log-mel features.

    Parameters
    ----------
    log_floor
        energies below count as this. 1 unless given, which is under the noise of 16-bit audio and
        makes digital silence 0; for Kaldi its float epsilon.
    """

    log_floor: float = AUTO

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill("log_floor", torch.finfo(torch.float32).eps if self.kaldi else 1.0)
        require(self, "log_floor", above=0)


class LogMel(Frontend):
    """Natural logarithms of mel energies."""

    name = "logmel"
    config_type = LogMelConfig

    def __init__(self, config: LogMelConfig | None = None) -> None:
        config = config or LogMelConfig()
        super().__init__(config)
        self._floor = config.log_floor

    def features(self, energies: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return log energies; nothing is carried."""
        return energies.clamp(min=self._floor).log(), None


@dataclass(frozen=True, kw_only=True)
class MfccConfig(LogMelConfig):
    """Mel-frequency cepstral coefficients.

    Kaldi's own front-end differs from the defaults here in `mels` (23) and in `use_energy`, which
    its recipes turn off.

    Parameters
    ----------
    coefficients
        kept, C0 included.
    lifter
        Q of Kaldi's cepstral lifter 1 + Q/2 sin(pi n / Q); 0 for none.
    use_energy
        put the log energy of the frame, before pre-emphasis and window, in the place of C0.
    """

    coefficients: int = 13
    lifter: float = 22.0
    use_energy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.coefficients <= self.mels:
            raise RequestError(
                f"coefficients {self.coefficients}: give 1 to {self.mels}, the number of mels"
            )
        require(self, "lifter", at_least=0)


class Mfcc(Frontend):
    """Orthonormal DCT-II of the log-mel energies, liftered."""

    name = "mfcc"
    config_type = MfccConfig
    transform: Tensor

    def __init__(self, config: MfccConfig | None = None) -> None:
        config = config or MfccConfig()
        super().__init__(config, frame_energy=config.use_energy)
        self._coefficients = config.coefficients
        self._floor = config.log_floor
        self._use_energy = config.use_energy
        self.register_buffer("transform", _cepstral_transform(config).float(), persistent=False)

    @property
    def bands(self) -> int:
        """Coefficients a frame."""
        return self._coefficients

    def features(self, energies: Tensor, carry: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return cepstra; nothing is carried."""
        logs = energies.clamp(min=self._floor).log()
        cepstra = logs[..., : self.config.mels] @ self.transform
        if self._use_energy:
            cepstra = torch.cat([logs[..., -1:], cepstra[..., 1:]], dim=-1)
        return cepstra, None


_FRONTENDS: dict[str, type[Frontend]] = {kind.name: kind for kind in (LogMel, Mfcc, Pcen)}


def build(description: Mapping[str, Any]) -> Frontend:
    """Make the front-end that ``describe()`` or a model's config describes.

    Parameters
    ----------
    description
        ``{"type": "pcen", "mels": 40, ...}``; what is left out has its default.

    Raises
    ------
    RequestError
        if the type, a key or a value is not one of those allowed.
    """
    if not isinstance(description, Mapping):
        raise RequestError(
            f'front-end {description!r}: give a dictionary such as {{"type": "pcen"}}'
        )
    values = dict(description)
    name = values.pop("type", None)
    if not isinstance(name, str) or name not in _FRONTENDS:
        raise RequestError(f"front-end type {name!r}: choose from {', '.join(_FRONTENDS)}")
    config_type = _FRONTENDS[name].config_type
    allowed = {field.name: field.default for field in fields(config_type)}
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        raise RequestError(
            f"front-end {name}: unknown {', '.join(unknown)}; allowed are {', '.join(allowed)}"
        )
    hints = get_type_hints(config_type)
    for key, value in values.items():
        if not (value is AUTO and allowed[key] is AUTO):
            _check_type(key, value, hints[key])
    return _FRONTENDS[name](config_type(**values))


def _check_type(key: str, value: Any, hint: Any) -> None:
    """Refuse a value that is not of the type of its field; a whole number may stand for a float."""
    choices = get_args(hint)
    if choices:
        right = isinstance(value, str) and value in choices
    else:
        right = type(value) is hint or (hint is float and type(value) is int)
    if not right:
        wanted = f"one of {', '.join(choices)}" if choices else f"a value of type {hint.__name__}"
        raise RequestError(f"front-end {key} {value!r}: give {wanted}")


def _cepstral_transform(config: MfccConfig) -> Tensor:
    """Return the liftered, orthonormal DCT-II (K, coefficients) in float64."""
    order = torch.arange(config.coefficients, dtype=torch.float64)
    band = torch.arange(config.mels, dtype=torch.float64)
    cosines = torch.cos(math.pi / config.mels * (band[:, None] + 0.5) * order)
    scale = torch.where(order == 0, 1.0, 2.0).div(config.mels).sqrt()
    if config.lifter == 0:
        return cosines * scale
    return cosines * scale * (1 + config.lifter / 2 * torch.sin(math.pi * order / config.lifter))
