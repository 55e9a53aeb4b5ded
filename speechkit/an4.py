"""CMU AN4 as published features: a folder with manifest.jsonl and feats.npz becomes cuts.

A row of the manifest names the frames ``offset : offset + frames`` of the array ``mfc`` (all
frames, 13) in feats.npz: cepstra at 100 frames a second. Any portion of that form is taken.
"""

import json
import logging
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet, Features, MonoCut, NumpyFilesWriter, SupervisionSegment
from numpy.typing import NDArray

from speechkit import manifests
from speechkit.audio import SAMPLE_RATE
from speechkit.errors import JobError, RequestError
from speechkit.files import file_digest

logger = logging.getLogger(__name__)

CEPSTRA = 13
FRAME_S = 0.01

_ARRAY = "mfc"
_SOURCE_NAME = "source.json"
# these keys have fields of their own in a cut; all others go to the supervision's `custom`
_FIELDS = ("utt", "offset", "frames", "duration", "text", "speaker")

Row = dict[str, Any]
Matrix = NDArray[np.float32]


def prepare(root: Path, out: Path) -> None:
    """Write OUT/cuts.jsonl.gz, and each utterance's features (frames, 13), float32, beside it.

    Parameters
    ----------
    root
        the folder with manifest.jsonl and feats.npz.

    Raises
    ------
    RequestError
        if a file is missing, or a row lacks a key or names frames that are not there, or OUT holds
        another set.
    JobError
        if feats.npz cannot be read or holds NaN or infinity.
    """
    rows = list(_rows(root / "manifest.jsonl"))
    cepstra = _cepstra(root / "feats.npz")
    spans = [_span(row, where, len(cepstra)) for where, row in rows]
    for (where, row), span in zip(rows, spans, strict=True):
        if not np.isfinite(cepstra[span]).all():
            raise JobError(f"{where}: the features of {row['utt']!r} hold NaN or infinity")
    _refuse_repeated([row["utt"] for _, row in rows], root)
    manifests.claim_set(out, _source(root), file=_SOURCE_NAME)
    (out / manifests.CUTS_NAME).unlink(missing_ok=True)  # it says that all features are there
    cuts = []
    with NumpyFilesWriter(out / "features") as storage:
        for number, ((_, row), span) in enumerate(zip(rows, spans, strict=True)):
            cuts.append(_cut(row, cepstra[span].astype(np.float32), storage, number))
    manifests.write(cuts, out / manifests.CUTS_NAME)
    speakers = {cut.supervisions[0].speaker for cut in cuts} - {None}
    hours = sum(cut.duration for cut in cuts) / 3600
    logger.info("%s: %d clips, %.2f h, %d speakers", out, len(cuts), hours, len(speakers))


def read(source: Path, out: Path) -> CutSet:
    """Return the cuts of a folder of the published form, prepared once in ``out``, or a manifest's.

    Raises
    ------
    RequestError, JobError
        as `prepare` and `manifests.read` do, and if ``out`` holds another folder's cuts.
    """
    if not (source / "feats.npz").is_file():
        return manifests.read(source)
    manifests.claim_set(out, _source(source), file=_SOURCE_NAME)
    if not (out / manifests.CUTS_NAME).is_file():
        prepare(source, out)
    return manifests.read(out)


def _source(folder: Path) -> dict[str, str]:
    paths = [folder / name for name in ("manifest.jsonl", "feats.npz")]
    return {path.name: file_digest(path) for path in paths if path.is_file()}


def _rows(manifest: Path) -> Iterator[tuple[str, Row]]:
    """Yield (place for messages, row)."""
    if not manifest.is_file():
        raise RequestError(
            f"root {manifest.parent}: has no {manifest.name}; give a folder with it and feats.npz"
        )
    try:
        lines = manifest.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise RequestError(f"{manifest}: is no UTF-8 text ({error})") from error
    found = False
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{manifest}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise RequestError(f"{where}: is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise RequestError(f"{where}: is no JSON object")
        found = True
        yield where, row
    if not found:
        raise RequestError(f"{manifest}: the manifest is empty; give one with at least one row")


def _cepstra(path: Path) -> NDArray[np.floating[Any]]:
    """Read the array (all frames, 13)."""
    if not path.is_file():
        raise RequestError(f"root {path.parent}: has no {path.name}, which holds the features")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[_ARRAY]
    except KeyError as error:
        raise RequestError(f"{path}: has no array {_ARRAY!r}") from error
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        # numpy's types for an archive cut short, another format, or a lone array
        raise JobError(f"{path}: cannot be read as .npz ({error})") from error
    if array.ndim != 2 or array.shape[1] != CEPSTRA or not np.issubdtype(array.dtype, np.floating):
        raise RequestError(
            f"{path}: {_ARRAY!r} has shape {array.shape} and type {array.dtype}; it must be "
            f"floats of shape (frames, {CEPSTRA})"
        )
    return array


def _span(row: Row, where: str, total: int) -> slice:
    """Check a row; return its frames."""
    if not isinstance(row.get("utt"), str) or not row["utt"]:
        raise RequestError(f"{where}: utt {row.get('utt')!r} must be the utterance's name")
    for key in ("offset", "frames"):
        if type(row.get(key)) is not int:
            raise RequestError(f"{where}: {key} {row.get(key)!r} must be a whole number")
    for key in ("text", "text_norm"):
        if not isinstance(row.get(key), str | None):
            raise RequestError(f"{where}: {key} {row[key]!r} must be a string or null")
    start, end = row["offset"], row["offset"] + row["frames"]
    if not 0 <= start < end <= total:
        raise RequestError(
            f"{where}: frames {start} to {end} must be at least one and lie within the {total} of "
            "feats.npz"
        )
    return slice(start, end)


def _refuse_repeated(names: list[str], root: Path) -> None:
    repeated = [name for name, times in Counter(names).items() if times > 1]
    if repeated:
        raise RequestError(
            f"{root}: {len(repeated)} utterances occur more than once "
            f"({', '.join(repeated[:3])}); give each once"
        )


def _cut(row: Row, matrix: Matrix, storage: NumpyFilesWriter, number: int) -> MonoCut:
    # numbered, since an utterance's name may hold what a file's name must not
    key = storage.write(f"{number:06d}", matrix)
    name, duration_s = row["utt"], round(len(matrix) * FRAME_S, 6)
    features = Features(
        type="mfcc",
        num_frames=len(matrix),
        num_features=CEPSTRA,
        frame_shift=FRAME_S,
        sampling_rate=SAMPLE_RATE,
        start=0.0,
        duration=duration_s,
        storage_type=storage.name,
        storage_path=str(storage.storage_path),
        storage_key=key,
        recording_id=name,
        channels=0,
    )
    speaker = row.get("speaker")
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=duration_s,
        text=row.get("text"),
        speaker=None if speaker is None else str(speaker),
        custom={key: value for key, value in row.items() if key not in _FIELDS},
    )
    return MonoCut(
        id=name,
        start=0.0,
        duration=duration_s,
        channel=0,
        features=features,
        supervisions=[supervision],
    )
