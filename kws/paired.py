"""Misses of two spotters in pairs: rows of one beside another that heard the same clips."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from speechkit.kws.measure import Scored, operating_point, rates, thresholds_of
from speechkit.kws.report import parse_snr
from speechkit.metrics import mcnemar_test, paired_difference_interval

ALL = "all"

_COUNTS = ("misses", "positives", "false_alarms", "negative_hours", "only_this", "only_first")
_RATES = (
    "frr",
    "frr_low",
    "frr_high",
    "measured_fa_per_hour",
    "fa_per_hour_low",
    "fa_per_hour_high",
    "difference",
    "difference_low",
    "difference_high",
    "p",
)

Row = dict[str, Any]


def rows_beside(
    key: tuple[str, str], own: Sequence[Scored], first: Sequence[Scored], *, target: float
) -> list[Row]:
    """Return what one system does with a keyword in a condition, with either threshold.

    Parameters
    ----------
    first
        that of the system to compare with; the first itself has nothing to be compared with.
    """
    rows = []
    for kind in ("eval", "dev"):
        missed = _missed(own, target, kind)
        reference = _missed(first, target, kind)
        point = operating_point(own, fa_per_hour=target, frozen=kind == "dev")
        counts: dict[str, int | None] = dict.fromkeys(("only_this", "only_first"))
        if own is not first and missed is not None and reference is not None:
            counts = {
                "only_this": sum(missed[id_] and not reference[id_] for id_ in missed),
                "only_first": sum(reference[id_] and not missed[id_] for id_ in missed),
            }
        kept = ("misses", "positives", "false_alarms", "negative_hours", "status")
        rows.append(
            _with_rates(
                {
                    "keyword": key[0],
                    "condition": key[1],
                    "snr_db": parse_snr(key[1]),
                    "threshold_from": kind,
                    **{name: point[name] for name in kept},
                    **counts,
                }
            )
        )
    return rows


def _missed(parts: Sequence[Scored], target: float, kind: str) -> dict[str, bool] | None:
    """Return whether each keyword is missed, by id; None where there is no threshold."""
    thresholds = thresholds_of(parts, fa_per_hour=target, frozen=kind == "dev")
    if not thresholds:
        return None
    return {
        o.id: not len(o.onsets.starts(threshold))
        for part, threshold in zip(parts, thresholds, strict=True)
        for o in part.occurrences
    }


def pooled_rows(rows: Sequence[Row]) -> list[Row]:
    """Return rows of all keywords together, those of one system by condition and threshold."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["condition"], row["threshold_from"]), []).append(row)
    pooled = []
    for group in groups.values():
        sums = {name: _sum(group, name) for name in _COUNTS}
        status = next((r["status"] for r in group if r["status"] != "ok"), "ok")
        frrs = [row["frr"] for row in group]
        row = _with_rates({**group[0], **sums, "keyword": ALL, "status": status})
        row["mean_frr"] = None if None in frrs else float(np.mean(frrs))
        pooled.append(row)
    return pooled


def _sum(rows: Sequence[Row], name: str) -> Any:
    values = [row[name] for row in rows]
    return None if None in values else sum(values)


def _with_rates(counts: Row) -> Row:
    """Return counts with the rates, intervals and the paired difference that follow from them."""
    row = {**counts, **dict.fromkeys(_RATES)}
    misses, positives, hours = (row[n] for n in ("misses", "positives", "negative_hours"))
    if misses is None:
        return row
    row |= rates(misses, positives, alarms=row["false_alarms"], hours=hours)
    if row["only_this"] is not None:
        apart = row["only_first"], row["only_this"]
        between = paired_difference_interval(*apart, positives)
        row |= {
            "difference": (row["only_this"] - row["only_first"]) / positives,
            "difference_low": between.low,
            "difference_high": between.high,
            "p": mcnemar_test(*apart),
        }
    return row
