"""`speechkit al compare`: whether a strategy beats random, by how much, and what it chooses."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from speechkit.active_learning.blocks import OK
from speechkit.active_learning.comparison_report import comparison_markdown
from speechkit.active_learning.composition import composition, describe
from speechkit.active_learning.curves import Curve, areas_per_seed, label_saving, reduction
from speechkit.active_learning.joined_scores import read_joined
from speechkit.active_learning.jsonl import read_rows
from speechkit.active_learning.plots import plot_correlations, plot_curves, plot_differences
from speechkit.active_learning.results import Axis, Results, results_path
from speechkit.active_learning.select import SELECTION_NAME
from speechkit.active_learning.statistics import (
    Test,
    holm,
    paired_test,
    spearman_matrix,
    top_overlap,
)
from speechkit.errors import RequestError
from speechkit.files import file_digest
from speechkit.reports import provenance, write_report

Json = dict[str, Any]

_USUAL_METRICS = ("wer", "cer", "loss", "error", "test_wer", "test_cer")
_TOP_SHARE = 0.1
# of a row of a selection, what its make-up is told by
_DESCRIBED = pa.schema(
    [("duration_s", pa.float64()), ("speaker", pa.string()), ("snr_db", pa.float64())]
)
# what scoring notes beside a score, in columns of its name
_BESIDE = ("_k", "_distinct", "_beam_mass", "_stderr", "_refined")


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """How strategies are compared.

    Attributes
    ----------
    baseline
        the strategy that the others are compared with.
    axis
        what labels are counted in: the share of the pool's clips, or seconds of audio.
    at
        the share of the pool where strategies are compared.
    test
        sign-flip (permutation), t, or wilcoxon; Holm's correction goes over the strategies.
    draws, seed
        of the bootstrap over seeds that tells how sure a saving is.
    """

    baseline: str = "random"
    axis: Axis = "share"
    at: float = 0.2
    test: Test = "sign-flip"
    draws: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.draws < 1 or not 0 <= self.at <= 1:
            raise RequestError(
                f"draws {self.draws}, at {self.at:g}: give at least one draw, and a share of 0 to 1"
            )


def compare(
    runs: list[Path],
    *,
    out: Path,
    metrics: list[str] | None = None,
    scores: list[Path] | None = None,
    selections: list[Path] | None = None,
    config: ComparisonConfig = ComparisonConfig(),
) -> None:
    """Compare strategies over paired seeds: curves, areas, labels saved, tests, what was chosen.

    Parameters
    ----------
    runs
        JSONL files of results (strategy, seed, share, seconds, clips, and errors such as wer), or
        folders with results.jsonl.
    out
        a folder for report.json, report.md and plots.
    metrics
        errors to compare, lower is better; by default those of wer, cer, loss, error, test_wer and
        test_cer that are there.
    scores
        folders of scores of one pool, for the rank correlations between scorers; a simulation's are
        in OUT/seed-N/scores.
    selections
        folders that `al select` wrote, whose make-up is compared (with --scores, to the pool's); a
        simulation's are in OUT/seed-N/selections.
    """
    results = Results.read(runs)
    wanted = _metrics(results, metrics)
    if config.baseline not in results.strategies:
        known = ", ".join(results.strategies)
        raise RequestError(f"baseline {config.baseline!r}: not among the strategies ({known})")
    table = read_joined(scores) if scores else None
    report: Json = {
        **provenance(
            seed=config.seed, data={str(run): file_digest(results_path(run)) for run in runs}
        ),
        "comparison": asdict(config),
        "metrics": {metric: compare_metric(results, metric, config) for metric in wanted},
        "correlations": None if table is None else correlations(table),
        "selections": _compositions(selections or [], table),
    }
    out.mkdir(parents=True, exist_ok=True)
    for metric in wanted:
        found = report["metrics"][metric]
        plot_curves(out / f"{metric}.png", found["curves"], metric=metric, config=config)
        plot_differences(
            out / f"difference_{metric}.png",
            found["against_baseline"],
            metric=metric,
            config=config,
        )
    if report["correlations"] is not None:
        plot_correlations(out / "correlations.png", report["correlations"])
    write_report(out, report, comparison_markdown(report))


def compare_metric(results: Results, metric: str, config: ComparisonConfig) -> Json:
    """Return the curves of all strategies, the comparisons with the baseline, and what is left out.

    A strategy is compared over the seeds in which both it and the baseline have all their shares.
    """
    strategies = sorted(results.strategies, key=lambda name: (name != config.baseline, name))
    seeds = {name: results.seeds(name, metric=metric) for name in strategies}
    rows, notes = [], []
    for name in strategies[1:]:
        paired = sorted(set(seeds[name]) & set(seeds[config.baseline]))
        if len(paired) < 2:
            notes.append(
                f"{name}: {len(paired)} whole seeds shared with {config.baseline}; needs 2"
            )
            continue
        try:
            rows.append({"strategy": name, **_against(results, name, paired, metric, config)})
        except RequestError as error:
            notes.append(f"{name}: cannot be compared ({error})")
    for kind in ("error", "area"):
        adjusted = holm([row[f"{kind}_p"] for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row[f"{kind}_p_holm"] = p
    for name in strategies:
        if partial := sorted(set(results.cells[name]) - set(seeds[name])):
            notes.append(f"{name}: seeds {', '.join(map(str, partial))} lack some shares, left out")
    curves: dict[str, Json] = {}
    for name in strategies:
        try:
            if seeds[name]:
                curves[name] = _curve_json(results, name, seeds[name], metric, config)
        except RequestError as error:
            if name == config.baseline:
                raise
            notes.append(f"no curve of {error}")
    return {"curves": curves, "against_baseline": rows, "notes": notes}


def correlations(table: pa.Table) -> Json:
    """Return rank correlations and overlaps of the top tenth between scores, duration and SNR."""
    good = table.filter(pa.array([status == OK for status in table["status"].to_pylist()]))
    columns = {
        name: good[name].cast(pa.float64()).to_numpy(zero_copy_only=False)
        for name, kind in zip(good.column_names, good.schema.types, strict=True)
        if pa.types.is_floating(kind) or pa.types.is_integer(kind)
    }
    names = sorted(name for name in columns if not _is_beside_a_score(name, columns))
    columns = {name: columns[name] for name in names}
    return {
        "clips": good.num_rows,
        "top_share": _TOP_SHARE,
        "columns": names,
        "spearman": _json(spearman_matrix(columns).tolist()),
        "top_overlap": _json(
            [[top_overlap(columns[a], columns[b], share=_TOP_SHARE) for b in names] for a in names]
        ),
    }


def _is_beside_a_score(name: str, columns: Collection[str]) -> bool:
    return any(name.removesuffix(suffix) in columns for suffix in _BESIDE if name.endswith(suffix))


def _metrics(results: Results, wanted: Sequence[str] | None) -> list[str]:
    there = results.metrics
    chosen = [name for name in _USUAL_METRICS if name in there] if wanted is None else list(wanted)
    unknown = [name for name in chosen if name not in there]
    if unknown or not chosen:
        raise RequestError(
            f"metrics {', '.join(unknown) or '(none)'}: the results hold {', '.join(there)}"
        )
    return chosen


def _against(
    results: Results, name: str, seeds: Sequence[int], metric: str, config: ComparisonConfig
) -> Json:
    """Compare a strategy with the baseline over paired seeds."""

    def curve(strategy: str, shares: Sequence[float]) -> Curve:
        return results.curve(strategy, seeds=seeds, shares=shares, metric=metric, axis=config.axis)

    own_shares = results.shares(name, metric=metric)
    all_shares = results.shares(config.baseline, metric=metric)
    common = sorted(set(own_shares) & set(all_shares))
    ours, theirs = curve(name, own_shares), curve(config.baseline, all_shares)
    if not own_shares[0] <= config.at <= own_shares[-1]:
        raise RequestError(f"share {config.at:g}: it has {own_shares}")
    x = float(np.interp(config.at, own_shares, ours.x))
    there = [ours.at(x), theirs.at(x)]
    error = paired_test(*there, test=config.test)
    areas = _overlapping(curve(name, common), curve(config.baseline, common))
    area = paired_test(*map(areas_per_seed, areas), test=config.test)
    # in seconds, a strategy begins and ends elsewhere than the baseline
    points = {share: float(np.interp(share, own_shares, ours.x)) for share in common}
    inner = [s for s, point in points.items() if 0 < s < 1 and theirs.x[0] <= point <= theirs.x[-1]]
    return {
        "seeds": len(seeds),
        "share": inner,
        "reductions": [_json(reduction(ours, theirs, x=points[share])) for share in inner],
        "x": x,
        "error": float(there[0].mean()),
        "baseline_error": float(there[1].mean()),
        "reduction": _json(reduction(ours, theirs, x=x)),
        "error_effect": error.effect,
        "error_p": error.p,
        "saving": _json(label_saving(ours, theirs, x=x, draws=config.draws, seed=config.seed)),
        "area": _json(areas[0].area()),
        "baseline_area": _json(areas[1].area()),
        "area_effect": area.effect,
        "area_p": area.p,
    }


def _overlapping(one: Curve, other: Curve) -> list[Curve]:
    """Return both curves over the points that both reach; mean errors compare over those alone."""
    low, high = max(one.x[0], other.x[0]), min(one.x[-1], other.x[-1])
    return [curve.within(low, high) for curve in (one, other)]


def _curve_json(
    results: Results, name: str, seeds: Sequence[int], metric: str, config: ComparisonConfig
) -> Json:
    shares = results.shares(name, metric=metric)
    curve = results.curve(name, seeds=seeds, shares=shares, metric=metric, axis=config.axis)
    band = curve.band()
    return {
        "seeds": list(seeds),
        "share": shares,
        "x": curve.x.tolist(),
        "mean": curve.mean.tolist(),
        "low": _json([interval.low for interval in band]),
        "high": _json([interval.high for interval in band]),
    }


def _compositions(folders: Sequence[Path], table: pa.Table | None) -> dict[str, Json]:
    """Return, for each selection, what it is made of, and for the pool if its scores are given."""
    found: dict[str, Json] = {} if table is None else {"pool": describe(table)}
    for folder in folders:
        rows = read_rows(folder / SELECTION_NAME)
        if table is None:
            found[str(folder)] = describe(pa.Table.from_pylist(rows, schema=_DESCRIBED))
        else:
            ids = [row["id"] for row in rows]
            if strange := set(ids) - set(table["id"].to_pylist()):
                raise RequestError(
                    f"{folder}: {len(strange)} of {len(ids)} clips have no row in the scores "
                    f"({min(strange)}); give scores of the pool that they were selected from"
                )
            made_of = composition(table, ids)
            found[str(folder)] = {name: row["selected"] for name, row in made_of.items()}
    return found


def _json(value: Any) -> Any:
    """Return results as JSON, where what is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _json(asdict(value))
    if isinstance(value, dict):
        return {name: _json(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
