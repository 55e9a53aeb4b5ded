"""Keyword spotting: the CRNN spotter, its streaming detector, training and measurement."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.kws.detector import Detection, Detector
    from speechkit.kws.models import Cnn, Crnn
    from speechkit.kws.spotter import Spotter

__all__ = ["Cnn", "Crnn", "Detection", "Detector", "Spotter"]

_HOMES = {
    "Cnn": "models",
    "Crnn": "models",
    "Detection": "detector",
    "Detector": "detector",
    "Spotter": "spotter",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``import speechkit.kws`` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
