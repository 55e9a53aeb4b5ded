"""Ranges of settings: what lies out of one is refused by its name, before any work is done."""

import math
from typing import Any

from speechkit.errors import RequestError

_ANY = "a finite number"


def require(
    settings: object,
    *names: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> None:
    """Refuse attributes that are not finite numbers of a range.

    Parameters
    ----------
    names
        attributes of ``settings``: a number, several in a tuple, or None, which is no choice.

    Raises
    ------
    RequestError
        that says what was given and what is allowed.
    """
    for name in names:
        value = getattr(settings, name)
        for number in value if isinstance(value, list | tuple) else (value,):
            if number is not None and not (
                math.isfinite(number)
                and (above is None or number > above)
                and (at_least is None or number >= at_least)
                and (below is None or number < below)
                and (at_most is None or number <= at_most)
            ):
                allowed = _phrase(above, at_least, below, at_most)
                if math.isinf(number) and allowed != _ANY:
                    allowed += ", and no infinity"
                raise RequestError(f"{name} {_shown(value)}: give {allowed}")


def require_ascending(settings: object, *names: str) -> None:
    """Refuse attributes that are not two finite numbers, the second no lower than the first."""
    require(settings, *names)
    for name in names:
        low, high = getattr(settings, name)
        if low > high:
            raise RequestError(f"{name} {low:g} {high:g}: give two ascending numbers")


def _phrase(
    above: float | None, at_least: float | None, below: float | None, at_most: float | None
) -> str:
    low = f"more than {above:g}" if above is not None else None
    low = f"{at_least:g} or more" if at_least is not None else low
    high = f"less than {below:g}" if below is not None else None
    high = f"{at_most:g} or less" if at_most is not None else high
    return " and ".join(part for part in (low, high) if part) or _ANY


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
