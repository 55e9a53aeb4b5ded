"""Speech recognition by CTC: tokenizers, encoders, training, decoding, transcribing."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.asr.decoding import DecodingConfig
    from speechkit.asr.hypothesis import Hypothesis, Word
    from speechkit.asr.normaliser import Normaliser
    from speechkit.asr.recogniser import Recogniser
    from speechkit.asr.transcriber import Transcriber

__all__ = ["DecodingConfig", "Hypothesis", "Normaliser", "Recogniser", "Transcriber", "Word"]

_HOMES = {
    "DecodingConfig": "decoding",
    "Hypothesis": "hypothesis",
    "Normaliser": "normaliser",
    "Recogniser": "recogniser",
    "Transcriber": "transcriber",
    "Word": "hypothesis",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``import speechkit.asr`` is quick."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
