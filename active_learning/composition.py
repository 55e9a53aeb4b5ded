"""What was selected, compared with the pool: durations, speakers, noise."""

import math
from collections import Counter
from collections.abc import Collection
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]

_QUANTILES = {"shortest tenth": 0.1, "median": 0.5, "longest tenth": 0.9}


def composition(scores: pa.Table, picked: Collection[str]) -> dict[str, Row]:
    """Return one row a property, with its value among the selected clips and in the whole pool.

    Speakers and signal-to-noise ratios are told where the table has ``speaker`` and ``snr_db``.
    """
    wanted = set(picked)
    mask = pa.array([id_ in wanted for id_ in scores["id"].to_pylist()], type=pa.bool_())
    chosen, pool = describe(scores.filter(mask)), describe(scores)
    return {name: {"selected": chosen.get(name), "pool": pool[name]} for name in pool}


def describe(table: pa.Table) -> Row:
    """Return clips, seconds, and the distributions of durations, speakers and noise of a table."""
    durations = _finite(table, "duration_s")
    found: Row = {"clips": table.num_rows, "seconds": round(float(durations.sum()), 3)}
    found |= _quantiles("duration", durations, "s")
    named = table["speaker"].to_pylist() if "speaker" in table.column_names else []
    if speakers := Counter(name for name in named if name is not None):
        found["speakers"] = len(speakers)
        found["effective speakers"] = round(_effective(speakers), 2)
    if "snr_db" in table.column_names:
        found |= _quantiles("SNR", _finite(table, "snr_db"), "dB")
    return found


def _finite(table: pa.Table, column: str) -> np.ndarray:
    values = table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return np.asarray(values[np.isfinite(values)])


def _quantiles(name: str, values: np.ndarray, unit: str) -> Row:
    if not len(values):
        return {}
    return {
        f"{name}, {label} ({unit})": round(float(np.quantile(values, share)), 3)
        for label, share in _QUANTILES.items()
    }


def _effective(counts: Counter[str]) -> float:
    """Return the number of equally frequent speakers that would have the same entropy."""
    total = counts.total()
    return (
        math.exp(-sum(n / total * math.log(n / total) for n in counts.values())) if total else 0.0
    )
