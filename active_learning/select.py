"""`speechkit al select`: from a folder of scores to a folder with the clips to label."""

import logging
import math
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from lhotse import CutSet
from lhotse.cut import Cut

from speechkit import manifests
from speechkit.active_learning.annotations import settled
from speechkit.active_learning.blocks import read_scores
from speechkit.active_learning.budget import AnnotationCost, Budget
from speechkit.active_learning.composition import composition
from speechkit.active_learning.jsonl import Row, read_rows, write_rows
from speechkit.active_learning.quality import QualityLimits
from speechkit.active_learning.selection import Picked, Selection, SelectionConfig, choose
from speechkit.errors import JobError, RequestError
from speechkit.reports import markdown_table, provenance, write_report

logger = logging.getLogger(__name__)

SELECTION_NAME = "selection.jsonl"
SKIPPED_NAME = "skipped.jsonl"


def select(
    scores: Path,
    *,
    cuts: Path,
    budget: str,
    out: Path,
    labelled: list[Path] | None = None,
    config: SelectionConfig = SelectionConfig(),
    cost: AnnotationCost = AnnotationCost(),
    quality: QualityLimits = QualityLimits(),
) -> None:
    """Select the clips to label.

    Parameters
    ----------
    scores
        the folder that `al score` wrote.
    cuts
        the pool: a manifest, or a folder with one.
    budget
        clips (500), audio (1800s, 30min, 2h) or annotation cost (cost:120).
    out
        a folder for selection.jsonl, cuts.jsonl.gz (both in rank order), skipped.jsonl and reports.
    labelled
        manifests of clips that have their labels already and are not selected again; of a folder
        that `al import` or `al label` wrote, neither are those that annotators skipped.
    cost
        of annotating a clip, for a budget of cost.
    quality
        clips beyond these limits are not worth labelling.
    """
    table = read_scores(scores)
    amount = Budget.parse(budget, annotation=cost)
    pool = manifests.read(cuts)
    known = {id_ for path in labelled or [] for id_ in settled(path)}
    selection = choose(
        table, amount, config=config, labelled=known, unfit=unfit_clips(table, quality)
    )
    if not selection.picks:
        reasons = ", ".join(f"{count} {reason}" for reason, count in selection.reasons().items())
        raise JobError(f"{scores}: nothing can be selected for {amount} ({reasons or 'no clips'})")
    write_selection(out, selection, scores=table, pool=pool)
    report = {
        **provenance(seed=config.seed, data={str(cuts): manifests.fingerprint(pool)}),
        "selection": asdict(config),
        "quality": asdict(quality),
        **_summary(selection),
        "composition": composition(table, selection.ids),
    }
    write_report(out, report, _markdown(report))
    logger.info("%s: %d clips, %.1f s", out, len(selection.picks), selection.seconds)


def unfit_clips(table: pa.Table, limits: QualityLimits) -> dict[str, str]:
    """Return id -> why a clip is not worth labelling, from the columns that were stored."""
    names = [
        name
        for name in ("id", "duration_s", "level_dbfs", "clipped_share")
        if name in table.column_names
    ]
    faults = ((row["id"], limits.fault(row)) for row in table.select(names).to_pylist())
    return {id_: fault for id_, fault in faults if fault is not None}


def write_selection(
    out: Path, selection: Selection, *, scores: pa.Table, pool: Iterable[Cut]
) -> None:
    """Write selection.jsonl with the columns of the scores, cuts.jsonl.gz and skipped.jsonl.

    Raises
    ------
    RequestError
        if the pool lacks a selected clip.
    """
    cuts = {cut.id: cut for cut in pool}
    absent = [id_ for id_ in selection.ids if id_ not in cuts]
    if absent:
        raise RequestError(
            f"{len(absent)} of the selected clips are not in the pool ({absent[0]}); give the cuts "
            "that were scored"
        )
    columns = _columns_of(scores, selection.ids)
    rows = [_row(pick, columns[pick.id]) for pick in selection.picks]
    manifests.write((cuts[id_] for id_ in selection.ids), out / manifests.CUTS_NAME)
    skipped = sorted(selection.skipped.items())
    write_rows(out / SKIPPED_NAME, ({"id": id_, "reason": reason} for id_, reason in skipped))
    write_rows(out / SELECTION_NAME, rows)


def read_selection(folder: Path) -> tuple[list[Row], CutSet]:
    """Read the rows and cuts of a selection, both in rank order.

    Raises
    ------
    RequestError
        if the folder holds none, or rows and cuts are not the same clips.
    """
    if not (folder / SELECTION_NAME).is_file():
        raise RequestError(
            f"{folder}: holds no {SELECTION_NAME}; give what `al select --out` wrote"
        )
    rows = read_rows(folder / SELECTION_NAME)
    cuts = manifests.read(folder)
    if [row.get("id") for row in rows] != [cut.id for cut in cuts]:
        raise RequestError(f"{folder}: {SELECTION_NAME} and cuts name other clips; select again")
    return rows, cuts


def _columns_of(scores: pa.Table, ids: list[str]) -> dict[str, Row]:
    """Return id -> what was stored of the clip, but for embeddings, which no reader wants."""
    names = [
        name
        for name, kind in zip(scores.column_names, scores.schema.types, strict=True)
        if not (pa.types.is_list(kind) and not pa.types.is_string(kind.value_type))
    ]
    wanted = set(ids)
    mask = pa.array([id_ in wanted for id_ in scores["id"].to_pylist()])
    return {row["id"]: row for row in scores.select(names).filter(mask).to_pylist()}


def _row(pick: Picked, columns: Row) -> Row:
    stored = {
        name: value
        for name, value in columns.items()
        if name not in ("status", "error") and value is not None and not _is_endless(value)
    }
    return stored | {name: value for name, value in asdict(pick).items() if value is not None}


def _is_endless(value: Any) -> bool:
    """Whether a value is NaN or infinite, for which JSON has no number."""
    return isinstance(value, float) and not math.isfinite(value)


def _summary(selection: Selection) -> Row:
    return {
        "budget": {"kind": selection.budget.kind, "amount": selection.budget.amount},
        "clips": len(selection.picks),
        "seconds": selection.seconds,
        "unused": selection.unused,
        "skipped": selection.reasons(),
    }


def _markdown(report: dict[str, Any]) -> str:
    budget, config = report["budget"], report["selection"]
    skipped = markdown_table(("skipped because", "clips"), list(report["skipped"].items()))
    made_of = [(name, *values.values()) for name, values in report["composition"].items()]
    per_second = " per second" if config["per_second"] else ""
    return f"""# Selection

{report["clips"]} clips, {report["seconds"]:.1f} s, by {config["column"]}{per_second} \
({config["method"]}, seed {config["seed"]}); of a budget of {budget["amount"]:g} {budget["kind"]}, \
{report["unused"]:g} unused.

{markdown_table(("", "selected", "pool"), made_of)}

{skipped}"""
