"""What an evaluation leaves behind: rows, a table for people, a DET curve, an SNR sweep, scores."""

import logging
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from speechkit.errors import RequestError
from speechkit.files import atomic_path
from speechkit.kws.events import Onsets
from speechkit.kws.measure import Occurrence, Scored, operating_point
from speechkit.kws.plots import DetLine, plot_det, plot_snr
from speechkit.reports import markdown_table, write_report

logger = logging.getLogger(__name__)

# what NumPy raises over an archive that is something else, cut off or altered
_DAMAGED = (KeyError, ValueError, OSError, EOFError, NotImplementedError, BadZipFile, zlib.error)

CLEAN = "clean"
SCORES = "scores.npz"
# in a folder of a recipe, from its start on
PIPELINE = "pipeline.json"

# (keyword, condition) -> one measurement, or one for each fold
Measured = dict[tuple[str, str], list[Scored]]


def condition_of(snr_db: float | None) -> str:
    """Return the name of a condition, one for each SNR: "5", whether 5, 5.0 or 5dB was given."""
    return CLEAN if snr_db is None else f"{snr_db:g}"


def in_words(condition: str) -> str:
    """Return a condition with its unit."""
    return condition if condition == CLEAN else f"{condition} dB"


def parse_snr(condition: str) -> float | None:
    """Return the SNR in dB that a condition names, None for "clean".

    Raises
    ------
    RequestError
        if it is neither "clean" nor a number.
    """
    if condition == CLEAN:
        return None
    try:
        snr_db = float(condition.removesuffix("dB").strip())
    except ValueError:
        snr_db = math.nan
    if not math.isfinite(snr_db):
        raise RequestError(f"SNR {condition!r}: give {CLEAN!r} or a number of dB, such as 5")
    return snr_db


def rows_of(measured: Measured, *, model: str, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Return the rows of a report: one for each keyword, condition, target and threshold.

    Where a part has no threshold frozen on dev there are no "dev" rows.
    """
    rows = []
    for (keyword, condition), parts in measured.items():
        head = {
            "keyword": keyword,
            "model": model,
            "condition": condition,
            "snr_db": parse_snr(condition),
        }
        frozen = all(part.threshold is not None for part in parts)
        for target in targets:
            for kind in [True, False] if frozen else [False]:
                rows.append(head | operating_point(parts, fa_per_hour=target, frozen=kind))
    return rows


def write_evaluation(
    out: Path,
    measured: Measured,
    rows: Sequence[dict[str, Any]],
    *,
    title: str,
    about: Mapping[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """Write scores.npz, det.png, snr.png, report.md and, last, report.json.

    Parameters
    ----------
    about
        what else report.json holds beside its rows: provenance, counts of rows, broken clips.
    notes
        lines that a reader of the figures must know.
    """
    out.mkdir(parents=True, exist_ok=True)
    save_scored(out / SCORES, measured)
    plot_det(out / "det.png", _det_lines(measured))
    plot_snr(out / "snr.png", _snr_lines(rows))
    markdown = "\n\n".join(
        [
            f"# {title}",
            _table(rows),
            "Intervals are 95 %: Wilson for FRR, Poisson for false alarms. `dev`: the one "
            "threshold that was frozen on dev data, the same whatever the target; what it gives "
            "here is under FA/h. `eval`: the lowest threshold that meets the target on these very "
            "negatives. `unresolved`: the target is less than one alarm in all the negatives.",
            "\n".join(f"- {note}" for note in notes),
            "![DET](det.png)\n\n![SNR sweep](snr.png)",
        ]
    )
    write_report(out, {"title": title, "rows": list(rows), "notes": list(notes), **about}, markdown)


def _table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["keyword", "condition", "FA/h target", "FRR", "95 %", "misses", "false alarms"]
    header += ["FA/h", "95 %", "threshold", "from", "latency p50, p95", "status"]
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: dict[str, Any]) -> list[object]:
    shown: list[object] = [row["keyword"], row["condition"], f"{row['fa_per_hour']:g}"]
    if row["frr"] is None:
        shown += [None, None, None, None, None, None]
    else:
        shown += [
            f"{row['frr']:.2%}",
            f"{row['frr_low']:.2%} to {row['frr_high']:.2%}",
            f"{row['misses']} of {row['positives']}",
            f"{row['false_alarms']} in {row['negative_hours']:.2f} h",
            f"{row['measured_fa_per_hour']:.2f}",
            f"{row['fa_per_hour_low']:.2f} to {row['fa_per_hour_high']:.2f}",
        ]
    latency = (
        None
        if row["latency_p50_s"] is None
        else f"{row['latency_p50_s']:.2f} s, {row['latency_p95_s']:.2f} s"
    )
    # all digits: what it must exclude may lie just below it
    threshold = None if row["threshold"] is None else repr(row["threshold"])
    return [*shown, threshold, row["threshold_from"], latency, row["status"]]


def save_scored(path: Path, measured: Measured) -> None:
    """Write measurements, as far as they decide about events, to a compressed npz file."""
    arrays: dict[str, NDArray[Any]] = {}
    for (keyword, condition), parts in measured.items():
        for fold, part in enumerate(parts):
            prefix = f"{keyword}|{condition}|{fold}|"
            occurrences = [o.onsets for o in part.occurrences]
            arrays |= {
                prefix + "ids": np.array([o.id for o in part.occurrences], dtype=str),
                prefix + "hours": np.array(part.negative_hours),
                prefix + "threshold": np.array(
                    math.nan if part.threshold is None else part.threshold
                ),
                prefix + "sizes": np.array([len(o.score) for o in occurrences], dtype=np.int64),
                prefix + "delays": _joined([o.delays_s for o in part.occurrences]),
                prefix + "floors": _joined([o.floor for o in occurrences]),
                prefix + "scores": _joined([o.score for o in occurrences]),
            }
            alarms = [_live(onset) for onset in part.negatives]
            arrays[prefix + "alarm_floors"] = _joined([a.floor for a in alarms])
            arrays[prefix + "alarm_scores"] = _joined([a.score for a in alarms])
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def load_scored(path: Path) -> Measured:
    """Read what `save_scored` wrote.

    Raises
    ------
    RequestError
        if it is something else, cut off, or of an earlier version.
    """
    try:
        return _read(path)
    except _DAMAGED as error:
        raise RequestError(f"{path}: cannot be read as scores ({error}); measure again") from error


def _read(path: Path) -> Measured:
    measured: Measured = {}
    with np.load(path, allow_pickle=False) as arrays:
        for prefix in [name.removesuffix("ids") for name in arrays if name.endswith("|ids")]:
            keyword, condition, _, _ = prefix.rsplit("|", 3)
            ends = np.cumsum(arrays[prefix + "sizes"])
            # split leaves an empty part behind the last end
            columns = (
                np.split(arrays[prefix + n], ends)[:-1] for n in ("floors", "scores", "delays")
            )
            occurrences = [
                Occurrence(str(id_), Onsets(floor, score), delays)
                for id_, floor, score, delays in zip(arrays[prefix + "ids"], *columns, strict=True)
            ]
            alarms = Onsets(arrays[prefix + "alarm_floors"], arrays[prefix + "alarm_scores"])
            hours, stored = (float(arrays[prefix + name]) for name in ("hours", "threshold"))
            threshold = None if math.isnan(stored) else stored
            part = Scored(occurrences, [alarms], hours, threshold)
            measured.setdefault((keyword, condition), []).append(part)
    return measured


def _joined(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *arrays])


def _live(onset: Onsets) -> Onsets:
    """Drop windows that start no event at any threshold."""
    live = onset.floor < onset.score
    return Onsets(onset.floor[live], onset.score[live])


def _det_lines(measured: Measured) -> dict[str, DetLine]:
    """Return a line for each keyword and condition."""
    lines: dict[str, DetLine] = {}
    for (keyword, condition), parts in measured.items():
        pooled = sum(parts, Scored())
        if not pooled.occurrences or not pooled.negative_hours:
            continue
        alarms, frr = pooled.curve().trade_off()
        # below the threshold with most alarms, events merge: no one would work there
        usable = slice(int(np.argmax(alarms)), None)
        # a rate under one event cannot be drawn on a logarithmic axis; it stands at half an event
        shown = np.maximum(alarms[usable], 0.5 / pooled.negative_hours)
        label = f"{keyword}, {in_words(condition)}"
        lines[label] = shown, frr[usable]
    return lines


def _snr_lines(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return a line for each keyword and target."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["threshold_from"] == "eval":
            label = f"{row['keyword']}, {row['fa_per_hour']:g} FA/h"
            lines.setdefault(label, []).append(row)
    return lines
