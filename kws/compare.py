"""``speechkit kws compare``: whether one spotter misses less than another, or it is chance.

A system is one evaluation or several, of folds or of words. The same keywords are compared in
pairs, each system at thresholds that hold it to the same false alarms.
"""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from speechkit.errors import RequestError
from speechkit.kws.measure import Curve, Scored
from speechkit.kws.paired import Row, pooled_rows, rows_beside
from speechkit.kws.plots import DetLine, plot_det, plot_snr
from speechkit.kws.report import PIPELINE, SCORES, Measured, in_words, load_scored, parse_snr
from speechkit.reports import markdown_table, provenance, short_names, write_report

logger = logging.getLogger(__name__)

# false alarms per hour that a DET curve is drawn at, and the condition it is drawn in: the paper's
_DET_TARGETS = np.geomspace(0.05, 10, 80)
_DET_SNR = "5"
_NOTE = (
    "`eval`: at the lowest threshold of each keyword that meets the target on these negatives; "
    "`dev`: at the thresholds frozen on dev data, whose false alarms are as they come. `all` pools "
    "the keywords; mean: of their FRRs. Differences from the first system in percentage points, "
    "below 0 for fewer misses: keywords in pairs (Agresti and Min), p of McNemar's exact test, "
    "thresholds as given. Intervals are 95 %. `unresolved`: the target is less than one alarm in "
    "all the negatives, so that one clip of them moves an `eval` threshold by a lot."
)


def compare(
    *,
    systems: list[Path],
    out: Path | None = None,
    fa_per_hour: float = 0.5,
    snr: list[str] | None = None,
) -> None:
    """Set spotters beside each other that heard the same clips, each against the first.

    Parameters
    ----------
    systems
        two or more, each a folder that `speechkit kws evaluate` or a recipe wrote (OUT/round-0 of
        a recipe is the spotter before mining), or a folder of such folders, one a fold or a word,
        which are pooled.
    out
        gets report.json, report.md with a table by keyword, det.png and snr.png; the table of all
        keywords is printed in any case.
    fa_per_hour
        the target.
    snr
        conditions to compare in; all that the systems share by default.

    Raises
    ------
    RequestError
        if there is one system alone, a folder has no scores or those of an unfinished run, a
        condition was not measured in all, or systems heard other clips.
    """
    if not 0 < fa_per_hour < math.inf:
        raise RequestError(f"fa_per_hour {fa_per_hour}: give a positive number")
    if len(set(systems)) < 2:
        raise RequestError(f"{len(set(systems))} system: give two or more to compare")
    measured = {str(folder): _load(folder) for folder in systems}
    first = measured[str(systems[0])]
    shared = _shared(list(measured.values()), snr)
    for name, own in measured.items():
        _require_same_clips(own, first, shared, name=f"{name} and {systems[0]}")
    by_keyword, pooled = [], []
    for name, own in measured.items():
        rows = [
            {"system": name, **row}
            for key in shared
            for row in rows_beside(key, own[key], first[key], target=fa_per_hour)
        ]
        by_keyword += rows
        pooled += pooled_rows(rows)
    order = list(dict.fromkeys(condition for _, condition in shared))
    for rows in (by_keyword, pooled):  # systems beside each other; the sort is stable
        rows.sort(key=lambda row: (row["keyword"], row["threshold_from"]))
        rows.sort(key=lambda row: order.index(row["condition"]))
    headline = f"# Spotters at {fa_per_hour:g} false alarms an hour\n\n{_table(pooled)}\n\n{_NOTE}"
    Console().print(headline, markup=False, highlight=False, soft_wrap=True)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    condition = _DET_SNR if _DET_SNR in order else order[0]
    drawn = [key for key in shared if key[1] == condition]
    labels = short_names(list(measured))
    plot_det(
        out / "det.png",
        {labels[n]: _det_line([own[k] for k in drawn]) for n, own in measured.items()},
        title=f"Detection error trade-off, {in_words(condition)}, mean of {len(drawn)} keywords",
    )
    plot_snr(
        out / "snr.png",
        {
            labels[n]: [r for r in pooled if (r["system"], r["threshold_from"]) == (n, "eval")]
            for n in measured
        },
    )
    markdown = (
        f"{headline}\n\n## By keyword\n\n{_table(by_keyword)}\n\nThe DET curve is of condition "
        f"{condition}, a mean over keywords.\n\n![DET](det.png)\n\n![SNR sweep](snr.png)"
    )
    write_report(out, {"rows": pooled + by_keyword, **provenance(seed=None, data={})}, markdown)


def _load(folder: Path) -> Measured:
    """Return the measurements of a folder, or of all the folders in it, pooled."""
    inside = sorted(path.parent for path in folder.glob(f"*/{SCORES}"))
    found = [folder] if (folder / SCORES).is_file() else inside
    if found == inside and (folder / PIPELINE).is_file():
        raise RequestError(
            f"{folder}: its last round is not measured yet; run the recipe again, or give "
            f"{' or '.join(map(str, inside)) or 'another folder'}"
        )
    if not found:
        raise RequestError(
            f"{folder}: no {SCORES} in it, nor in a folder in it; give what `speechkit kws "
            "evaluate` or a recipe wrote"
        )
    pooled: Measured = {}
    for part in found:
        for key, parts in load_scored(part / SCORES).items():
            pooled.setdefault(key, []).extend(parts)
    for (keyword, condition), parts in pooled.items():
        counts = Counter(o.id for part in parts for o in part.occurrences)
        if twice := sorted(id_ for id_, count in counts.items() if count > 1):
            raise RequestError(f"{folder}: {keyword}, {condition}: {twice[0]} is measured twice")
    return pooled


def _shared(measured: Sequence[Measured], snr: list[str] | None) -> list[tuple[str, str]]:
    """Return the keywords and conditions, in the first one's order, that all have."""
    wanted = None if snr is None else {parse_snr(condition): condition for condition in snr}
    shared = [
        key
        for key in measured[0]
        if all(key in own for own in measured) and (wanted is None or parse_snr(key[1]) in wanted)
    ]
    if not shared:
        have = " and ".join(
            ", ".join(sorted({f"{keyword!r} at {condition}" for keyword, condition in own}))
            for own in measured
        )
        raise RequestError(f"no keyword and condition that all have: they have {have}")
    found = {parse_snr(condition) for _, condition in shared}
    if missing := [given for snr_db, given in (wanted or {}).items() if snr_db not in found]:
        raise RequestError(f"SNR {', '.join(missing)}: was not measured in all systems")
    kept = {keyword for keyword, _ in shared}
    if alone := sorted({keyword for own in measured for keyword, _ in own} - kept):
        logger.warning("%s: left out, as not all systems have it", ", ".join(alone))
    return shared


def _require_same_clips(
    own: Measured, first: Measured, keys: Sequence[tuple[str, str]], *, name: str
) -> None:
    for key in keys:
        ids, others = ({o.id for part in m[key] for o in part.occurrences} for m in (own, first))
        if apart := sorted(ids ^ others):
            raise RequestError(
                f"{name} heard other keywords of {key[0]!r} at {key[1]}: {len(apart)}, such as "
                f"{apart[0]}, stand in one alone"
            )
        hours = [sum(part.negative_hours for part in m[key]) for m in (own, first)]
        if not math.isclose(*hours, rel_tol=1e-6):
            raise RequestError(
                f"{name} heard other negatives for {key[0]!r} at {key[1]}: {hours[0]:.3f} and "
                f"{hours[1]:.3f} hours"
            )


def _det_line(keywords: Sequence[Sequence[Scored]]) -> DetLine:
    """Return the FRR, the mean of keywords, at all targets that each one's negatives can tell.

    From one alarm in all of them to the most that there are at any threshold.
    """
    curves = [sum(parts, Scored()).curve() for parts in keywords]
    if not all(curve.positives and curve.negative_hours for curve in curves):
        return np.zeros(0), np.zeros(0)
    least = max(1 / curve.negative_hours for curve in curves)
    most = min(int(curve.alarms.counts.max()) / curve.negative_hours for curve in curves)
    targets = _DET_TARGETS[(least <= _DET_TARGETS) & (most >= _DET_TARGETS)]
    return targets, np.array([[_frr(c, t) for t in targets] for c in curves]).mean(axis=0)


def _frr(curve: Curve, fa_per_hour: float) -> float:
    threshold = curve.threshold_for(fa_per_hour)
    return math.nan if threshold is None else curve.misses(threshold) / curve.positives


def _table(rows: Sequence[Row]) -> str:
    header = ["system", "keyword", "condition", "from", "FRR (95 %)", "misses", "mean FRR"]
    header += ["FA/h (95 %)", "difference (95 %)", "only it, only the first", "p", "status"]
    return markdown_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> list[object]:
    named = ("system", "keyword", "condition", "threshold_from")
    shown: list[object] = [row[name] for name in named]
    if row["frr"] is None:
        return [*shown, *[None] * 7, row["status"]]
    mean = row.get("mean_frr")
    shown += [
        f"{row['frr']:.2%} ({row['frr_low']:.2%} to {row['frr_high']:.2%})",
        f"{row['misses']} of {row['positives']}",
        None if mean is None else f"{mean:.2%}",
        f"{row['measured_fa_per_hour']:.2f} ({row['fa_per_hour_low']:.2f} to "
        f"{row['fa_per_hour_high']:.2f})",
    ]
    if row["difference"] is None:
        return [*shown, None, None, None, row["status"]]
    points = [100 * row[f"difference{end}"] for end in ("", "_low", "_high")]
    return [
        *shown,
        f"{points[0]:+.2f} ({points[1]:+.2f} to {points[2]:+.2f})",
        f"{row['only_this']}, {row['only_first']}",
        f"{row['p']:.3g}",
        row["status"],
    ]
