"""Patterns as text, so that an operator can take them: what `repr` prints, read back."""

import ast
from functools import lru_cache
from typing import Any

import torch

from speechkit.kernels import patterns
from speechkit.kernels.errors import KernelError
from speechkit.kernels.patterns import Pattern

_CLASSES = {
    name: getattr(patterns, name)
    for name in (
        "Dense",
        "Local",
        "Strided",
        "Dilated",
        "OwnBlock",
        "Columns",
        "Fixed",
        "Merged",
        "PerHead",
        "Blocks",
    )
}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def encode(pattern: Pattern) -> str:
    """Return a pattern as text; a constant in compiled code, so make patterns outside it."""
    return _encode(pattern)


@lru_cache(maxsize=1024)
def _encode(pattern: Pattern) -> str:
    return repr(pattern)


@lru_cache(maxsize=1024)
def decode(text: str) -> Pattern:
    """Return the pattern that a text such as ``Merged(Local(64), Strided(64))`` stands for.

    Raises
    ------
    KernelError
        If the text is not a pattern, or its numbers are not allowed.
    """
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, TypeError, _NotAPatternError) as error:
        raise KernelError(f"not a pattern: {text!r} ({error}); write e.g. Local(64)") from None
    if not isinstance(value, Pattern):
        raise KernelError(f"not a pattern: {text!r}; write e.g. Local(64)")
    return value


class _NotAPatternError(Exception):
    pass


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id not in _CLASSES:
            raise _NotAPatternError(f"{node.func.id} is not one of {', '.join(_CLASSES)}")
        named = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        return _CLASSES[node.func.id](*map(_value, node.args), **named)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _NotAPatternError("only patterns, numbers and tuples stand in one") from None
