import math
from types import SimpleNamespace

import pytest

from speechkit.errors import RequestError
from speechkit.ranges import require, require_ascending


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        (0, {"above": 0}, "x 0: give more than 0"),
        (-1, {"at_least": 0}, "x -1: give 0 or more"),
        (1.0, {"at_least": 0, "below": 1}, "x 1.0: give 0 or more and less than 1"),
        ((0.5, 1.5), {"above": 0, "at_most": 1}, "x 0.5 1.5: give more than 0 and 1 or less"),
        (math.nan, {"above": 0}, "x nan: give more than 0"),
        (math.inf, {}, "x inf: give a finite number"),
    ],
)
def test_what_is_out_of_range_is_named(value, limits, said):
    with pytest.raises(RequestError, match=f"^{said}$"):
        require(SimpleNamespace(x=value), "x", **limits)


def test_what_is_in_range_passes():
    settings = SimpleNamespace(rate=1e-3, share=1, none=None, pair=(0, 2))
    require(settings, "rate", "share", "none", "pair", at_least=0, below=3)
    require_ascending(settings, "pair")


def test_ranges_ascend():
    with pytest.raises(RequestError, match="snr 5 -5: give two ascending numbers"):
        require_ascending(SimpleNamespace(snr=(5.0, -5.0)), "snr")
    with pytest.raises(RequestError, match="snr nan 5: give a finite number"):
        require_ascending(SimpleNamespace(snr=(math.nan, 5)), "snr")
