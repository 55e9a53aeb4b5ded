"""Label Studio: tasks out, and its raw JSON export back in.

A clip is known by our own id in ``data.id``: file names change on the way. Its open-source queue
takes, of equally often answered clusters, the lowest prediction score first, so a score is the
clip's rank.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechkit.active_learning.annotations import Annotation
from speechkit.errors import RequestError

Json = dict[str, Any]

# the field that the transcript is written into
_FIELD = "transcription"
LABELLING_CONFIG = f"""\
<View>
  <Audio name="audio" value="$audio" zoom="true" hotkey="ctrl+enter"/>
  <TextArea name="{_FIELD}" toName="audio" rows="4" editable="true" maxSubmissions="1"/>
</View>
"""

_SHOWN = ("strategy", "utility", "rank", "cluster", "speaker", "nbest")


def task(row: Mapping[str, Any], *, audio: str, count: int, model_version: str) -> Json:
    """Return the task of a selected clip.

    Parameters
    ----------
    row
        its row of selection.jsonl: id, rank, duration_s, and where known hypothesis and cluster.
    audio
        the address at which Label Studio finds the audio.
    count
        how many clips were selected.
    model_version
        the queue takes predictions only if the project names their model version.
    """
    data = {"audio": audio, "id": row["id"], "duration": row["duration_s"]}
    data |= {name: row[name] for name in _SHOWN if name in row}
    prediction: Json = {
        "model_version": model_version,
        "score": row["rank"] / count,
        "result": [_text_area(row["hypothesis"])] if row.get("hypothesis") is not None else [],
    }
    if "cluster" in row:
        prediction["cluster"] = row["cluster"]
    return {"data": data, "predictions": [prediction]}


def read_export(path: Path) -> list[tuple[str | None, list[Annotation]]]:
    """Read a raw JSON export: for each task our id (None if it has none) and its annotations.

    The annotations of a task come newest first.

    Raises
    ------
    RequestError
        if the file is no JSON, for instance cut in the middle, or not such an export.
    """
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(
            f"{path}: cannot be read as JSON ({error}); export again, in the format JSON"
        ) from error
    if not isinstance(tasks, list) or not all(_is_task(task) for task in tasks):
        raise RequestError(
            f"{path}: is no raw export of Label Studio (tasks with data and annotations); export "
            "in the format JSON, not JSON-MIN, CSV or ASR_MANIFEST"
        )
    return [(_id_of(task), _annotations(task)) for task in tasks]


def _text_area(text: str) -> Json:
    return {
        "from_name": _FIELD,
        "to_name": "audio",
        "type": "textarea",
        "value": {"text": [text]},
    }


def _is_task(task: Any) -> bool:
    return (
        isinstance(task, dict)
        and isinstance(task.get("data"), dict)
        and isinstance(task.get("annotations"), list)
        and all(isinstance(annotation, dict) for annotation in task["annotations"])
    )


def _id_of(task: Json) -> str | None:
    id_ = task["data"].get("id")
    return None if id_ is None else str(id_)


def _annotations(task: Json) -> list[Annotation]:
    id_ = _id_of(task) or ""
    newest_first = sorted(task["annotations"], key=_age, reverse=True)
    return [_annotation(id_, annotation) for annotation in newest_first]


def _age(annotation: Json) -> tuple[str, int]:
    number = annotation.get("id")
    return _when(annotation) or "", number if isinstance(number, int) else 0


def _when(annotation: Json) -> str | None:
    when = annotation.get("updated_at") or annotation.get("created_at")
    return None if when is None else str(when)


def _annotation(id_: str, given: Json) -> Annotation:
    skipped = bool(given.get("was_cancelled"))
    seconds, who = given.get("lead_time"), given.get("completed_by")
    who = who.get("email") or who.get("id") if isinstance(who, dict) else who
    regions = given.get("result")
    regions = regions if isinstance(regions, list) else []
    text, fault = (None, None) if skipped else _transcript(regions)
    return Annotation(
        id=id_,
        status="ignored" if skipped else "labelled" if fault is None else "rejected",
        text=text,
        annotator=None if who is None else str(who),
        seconds=_number(seconds),
        updated=_when(given),
        detail=fault,
    )


def _number(value: Any) -> float | None:
    """Return a finite number, or None of what is none: not a number, too large, or a truth."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except OverflowError:  # of a huge whole number
        return None
    return number if math.isfinite(number) else None


def _transcript(result: Iterable[Any]) -> tuple[str, str | None]:
    """Return the text of the field for it, and what is wrong if that cannot be told.

    A team may have added fields, for comments say, or given its only one another name.
    """
    values: dict[str, list[Json]] = {}
    for region in result:
        if isinstance(region, dict) and region.get("type") == "textarea":
            value = region.get("value")
            if isinstance(value, dict):
                values.setdefault(str(region.get("from_name")), []).append(value)
    if len(values) > 1 and _FIELD not in values:
        return "", f"texts in the fields {', '.join(sorted(values))}; name one {_FIELD}"
    only = next(iter(values.values()), [])
    chosen = values.get(_FIELD, only)
    if not all(_is_text(value.get("text")) for value in chosen):
        return "", "its text is neither a string nor a list of strings"
    return _joined(chosen), None


def _is_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(line, str) for line in value)
    return value is None or isinstance(value, str)


def _joined(values: list[Json]) -> str:
    """Join the texts of all regions, in the order of their starts."""
    values.sort(key=lambda value: _number(value.get("start")) or 0.0)
    texts = (value.get("text") or [] for value in values)
    lines = (line for text in texts for line in ([text] if isinstance(text, str) else text))
    return " ".join(" ".join(str(line).split()) for line in lines).strip()
