"""Sparse attention: strided, fixed and local patterns, exact, on CPU and GPU.

Kept light on purpose: with a checkout on ``sys.path`` other libraries may import this folder
under the bare name ``kernels`` and look for a version, which must not be found here.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.kernels.attention import explain, sparse_attention
    from speechkit.kernels.decoding import DecodingCache
    from speechkit.kernels.dispatch import use_backend
    from speechkit.kernels.errors import KernelError
    from speechkit.kernels.patterns import (
        Blocks,
        Columns,
        Dense,
        Dilated,
        Fixed,
        Local,
        Merged,
        OwnBlock,
        Pattern,
        PerHead,
        Strided,
    )
    from speechkit.kernels.portable import exportable

__all__ = [
    "Blocks",
    "Columns",
    "DecodingCache",
    "Dense",
    "Dilated",
    "Fixed",
    "KernelError",
    "Local",
    "Merged",
    "OwnBlock",
    "Pattern",
    "PerHead",
    "Strided",
    "explain",
    "exportable",
    "sparse_attention",
    "use_backend",
]

_HOMES = {
    "DecodingCache": "decoding",
    "KernelError": "errors",
    "explain": "attention",
    "exportable": "portable",
    "sparse_attention": "attention",
    "use_backend": "dispatch",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is asked for, so that ``import speechkit.kernels`` is quick."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _HOMES.get(name, "patterns")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
