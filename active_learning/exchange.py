"""`speechkit al export` and `import`: selected clips to annotators, and their labels back."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from speechkit import manifests
from speechkit.active_learning import label_studio
from speechkit.active_learning.annotations import (
    Annotation,
    TextRules,
    check,
    counts,
    resolve,
    save,
    with_text,
)
from speechkit.active_learning.blocks import digest
from speechkit.active_learning.jsonl import Row, read_rows, write_rows
from speechkit.active_learning.select import read_selection
from speechkit.audio import SAMPLE_RATE, load_cut, write_audio
from speechkit.claims import claim
from speechkit.errors import AudioError, RequestError
from speechkit.files import write_json, write_text
from speechkit.reports import markdown_table, write_report

logger = logging.getLogger(__name__)

AUDIO_FOLDER = "audio"
TASKS_NAME = "tasks.json"
_MANIFEST_NAME = "manifest.jsonl"
_CLAIM = "export.json"
_NO_ID = "(none)"

Given = list[tuple[str | None, list[Annotation]]]


def export(
    selection: Path,
    *,
    to: Literal["label-studio", "nemo", "lhotse"],
    out: Path,
    model_version: str = "speechkit",
    address: str = "/data/local-files/?d=",
) -> int:
    """Hand the selected clips to annotators, with the model's hypotheses.

    Texts that the pool may hold stay behind. Each clip is written to OUT/audio as a file of its own
    (but for lhotse). A clip whose audio cannot be read is left out and named; the exit status is 1
    then. A folder is of one selection, since its audio is what open tasks play; a manifest that
    holds labels already is not written again.

    Parameters
    ----------
    selection
        the folder that `al select` wrote.
    to
        label-studio: tasks.json and labelling_config.xml; nemo: manifest.jsonl, whose rows take a
        "text", or "skip": true; lhotse: cuts.jsonl.gz.
    out
        the folder to write to.
    model_version
        for Label Studio, whose project must name the same.
    address
        for Label Studio: what its tasks put before "audio/00001.wav"; the default suits local files
        with OUT as LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT.
    """
    _keep_apart(selection, out)
    rows, cuts = read_selection(selection)
    claim(out, {"selection": digest([row["id"] for row in rows])}, file=_CLAIM)
    _require_unlabelled(out)
    clips = list(zip(rows, cuts, strict=True))
    if to == "lhotse":
        manifests.write(
            (_for_annotators(row, cut) for row, cut in clips), out / manifests.CUTS_NAME
        )
        return 0
    written = [(row, name) for row, cut in clips if (name := _write_audio(row, cut, out))]
    if to == "nemo":
        write_rows(out / _MANIFEST_NAME, (_nemo_row(row, name) for row, name in written))
    else:
        tasks = [
            label_studio.task(
                row, audio=address + quote(name), count=len(rows), model_version=model_version
            )
            for row, name in written
        ]
        write_text(out / "labelling_config.xml", label_studio.LABELLING_CONFIG)
        write_json(out / TASKS_NAME, tasks)
    logger.info("%s: %d of %d clips", out, len(written), len(rows))
    return 1 if len(written) < len(rows) else 0


def import_labels(
    file: Path, *, selection: Path, out: Path, config: TextRules = TextRules()
) -> int:
    """Take labels back; labels that OUT holds already are merged, never lost.

    Writes OUT/labels.jsonl (the state of every selected clip), OUT/cuts.jsonl.gz (the labelled
    clips with their texts) and reports. The exit status is 1 if some labels were unusable.

    Parameters
    ----------
    file
        the raw JSON export of Label Studio, or a manifest (NeMo rows with id and text, or cuts).
    selection
        the folder that `al select` wrote.
    out
        the folder of labels; the same one each time.
    """
    _keep_apart(selection, out)
    _, cuts = read_selection(selection)
    by_id = {cut.id: cut for cut in cuts}
    given = read_annotations(file)
    checked, unknown = _match(given, by_id, config)
    annotations = [resolve(id_, of_clip) for id_, of_clip in checked.items()]
    labelled = save(out, annotations, cuts)
    rejected = [a for of_clip in checked.values() for a in of_clip if a.status == "rejected"]
    states = counts(annotations)
    several = [a for a in annotations if a.disagreement is not None]
    report = {
        "file": str(file),
        "states": states,
        "labelled_in_all": len(labelled),
        "seconds_of_work": sum(a.seconds or 0.0 for of_clip in checked.values() for a in of_clip),
        "unknown_ids": unknown,
        "rejected": [{"id": a.id, "reason": a.detail} for a in rejected],
        "disagreements": {a.id: a.disagreement for a in several},
    }
    write_report(out, report, _markdown(report))
    for annotation in rejected:
        logger.warning("%s: rejected: %s", annotation.id, annotation.detail)
    if nameless := unknown.count(_NO_ID):
        logger.warning('%d rows have no id; keep the "id" that `al export` wrote', nameless)
    if strange := [id_ for id_ in unknown if id_ != _NO_ID]:
        logger.warning("%d ids are not in the selection (%r)", len(strange), strange[0])
    logger.info("%s: %s", out, ", ".join(f"{n} {state}" for state, n in states.items() if n))
    return 1 if rejected or unknown else 0


def read_annotations(file: Path) -> Given:
    """Read what annotators gave: ids and their annotations, the newest first."""
    if not file.is_file():
        raise RequestError(f"{file}: no such file; give what the annotation tool exported")
    if file.suffix == ".json":
        return label_studio.read_export(file)
    if file.name.endswith((".jsonl", ".jsonl.gz")):
        rows = read_rows(file)
        if any("audio_filepath" in row for row in rows):
            return [_from_nemo(row) for row in rows]
    return [(cut.id, [_from_cut(cut)]) for cut in manifests.read(file, allow_empty=True)]


def _keep_apart(selection: Path, out: Path) -> None:
    if out.resolve() == selection.resolve():
        raise RequestError(f"{out}: is the selection itself; give another folder to --out")


def _require_unlabelled(out: Path) -> None:
    """Refuse to write over a manifest that annotators have filled in."""
    for path in (out / _MANIFEST_NAME, out / manifests.CUTS_NAME):
        given = read_annotations(path) if path.is_file() else []
        if any(a.status != "unlabelled" for _, annotations in given for a in annotations):
            raise RequestError(
                f"{path}: holds labels; import them, or give another folder to --out"
            )


def _match(
    given: Given, cuts: dict[str, Cut], rules: TextRules
) -> tuple[dict[str, list[Annotation]], list[str]]:
    """Return the annotations of each selected clip, and the ids that are none of them."""
    found: dict[str, list[Annotation]] = {id_: [] for id_ in cuts}
    unknown = []
    for id_, annotations in given:
        if id_ in found:
            checked = (check(a, cuts[id_], rules) for a in annotations)
            # of rows without times, the later one counts as newer
            found[id_] = [a for a in checked if a.status != "unlabelled"] + found[id_]
        else:
            unknown.append(_NO_ID if id_ is None else id_)
    return found, unknown


def _write_audio(row: Row, cut: Cut, out: Path) -> str | None:
    """Write the clip as a file; return its name, or None if it cannot be read."""
    name = f"{AUDIO_FOLDER}/{row['rank']:05d}.wav"
    try:
        write_audio(out / name, load_cut(cut))
    except AudioError as error:
        logger.warning("%s: left out: %s", row["id"], error)
        return None
    return name


def _nemo_row(row: Row, name: str) -> Row:
    names = ("rank", "utility", "cluster", "speaker")
    shown: Row = {name: row[name] for name in names if name in row}
    return {
        "audio_filepath": name,
        "duration": row["duration_s"],
        "sample_rate": SAMPLE_RATE,
        "id": row["id"],
        "text": None,
        "pred_text": row.get("hypothesis"),
        **shown,
    }


def _for_annotators(row: Row, cut: Cut) -> Cut:
    blank = with_text(cut, None)
    shown = {key: row[key] for key in ("hypothesis", "rank", "utility", "cluster") if key in row}
    supervision = blank.supervisions[0]
    # texts stay behind, however a corpus calls them
    kept = {key: v for key, v in (supervision.custom or {}).items() if not _may_tell(key, v)}
    supervision.custom = {**kept, **shown}
    if isinstance(blank, DataCut):
        blank.custom = None
    return blank


def _may_tell(key: str, value: object) -> bool:
    """Say whether a field could be what is said: anything but a number."""
    return "text" in key or not isinstance(value, int | float)


def _from_nemo(row: Row) -> tuple[str | None, list[Annotation]]:
    id_ = row.get("id")
    if not isinstance(id_, str):
        return None, []
    if row.get("skip"):
        return id_, [Annotation(id=id_, status="ignored")]
    text = row.get("text")
    return id_, [_from_text(id_, None if text is None else str(text))]


def _from_cut(cut: Cut) -> Annotation:
    """Return the joined texts of a cut's segments; some without a text are a mistake."""
    texts = [manifests.text_in(one) for one in cut.supervisions]
    given = [text for text in texts if text is not None]
    if given and len(given) < len(texts):
        return Annotation(
            id=cut.id,
            status="rejected",
            text=" ".join(given),
            detail=f"{len(texts) - len(given)} of {len(texts)} segments have no text",
        )
    return _from_text(cut.id, manifests.text_of(cut))


def _from_text(id_: str, text: str | None) -> Annotation:
    return Annotation(id=id_, status="unlabelled" if text is None else "labelled", text=text)


def _markdown(report: Row) -> str:
    states = markdown_table(("state", "clips"), list(report["states"].items()))
    rejected = _listed(("rejected", "reason"), ((r["id"], r["reason"]) for r in report["rejected"]))
    unknown = _listed(("id that is not in the selection",), ((i,) for i in report["unknown_ids"]))
    several = _listed(
        ("several annotators", "WER between them"),
        ((id_, f"{wer:.1%}") for id_, wer in report["disagreements"].items()),
    )
    work = f"{report['seconds_of_work']:.0f} s of work, {report['labelled_in_all']} labels in all."
    return "\n\n".join(filter(None, ["# Labels", states, work, rejected, unknown, several]))


def _listed(header: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    rows = list(rows)
    return markdown_table(header, rows) if rows else ""
