"""Active learning: which clips to label, and the proof that it pays."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speechkit.active_learning.score import score_pool as score
    from speechkit.active_learning.selection import choose as select
    from speechkit.active_learning.simulate import simulate

__all__ = ["score", "select", "simulate"]

_HOMES = {
    "score": ("score", "score_pool"),
    "select": ("selection", "choose"),
    "simulate": ("simulate", "simulate"),
}


class _Package(ModuleType):
    """A package whose functions are not hidden by the modules of the same names.

    Whenever a module is imported, Python makes it an attribute of its package.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Import a public name when it is asked for, so that importing the package is quick."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home, function = _HOMES[name]
        return getattr(importlib.import_module(f"{__name__}.{home}"), function)


sys.modules[__name__].__class__ = _Package
