"""Manifests: lhotse `CutSet`s, read from JSONL files of cuts or of NeMo rows.

In files, audio paths are absolute or relative to the manifest's folder; in memory they are
absolute, so a folder that holds a manifest and its audio can be moved as a whole.
"""

import gzip
import hashlib
import json
import logging
import math
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut
from lhotse.cut.data import DataCut

from speechkit import nemo
from speechkit.claims import claim
from speechkit.errors import RequestError
from speechkit.files import atomic_path

logger = logging.getLogger(__name__)

CUTS_NAME = "cuts.jsonl.gz"
_IMPORT_NAME = "import.json"
_NAMES_IN_FOLDER = (CUTS_NAME, "cuts.jsonl", "manifest.jsonl")
_CUT_TYPES = ("MonoCut", "MultiCut", "MixedCut", "PaddingCut")

Row = dict[str, Any]


@dataclass(frozen=True)
class Folds:
    """An assignment of clip ids to folds 0, 1, ..., and what the folds keep apart."""

    of: dict[str, int]
    by: Literal["speaker", "clip"]


def read(source: Path | str, *, allow_empty: bool = False) -> CutSet:
    """Read a manifest whole into memory, with absolute audio paths.

    Parameters
    ----------
    source
        a JSONL file (may be gzipped) of lhotse cuts or of NeMo rows, or a folder with
        cuts.jsonl.gz, cuts.jsonl or manifest.jsonl.
    allow_empty
        take a manifest without rows, as a search that found nothing leaves behind.

    Raises
    ------
    RequestError
        if there is no manifest, it is empty, a row is no JSON or names no audio, or ids repeat.
    """
    path = _manifest_path(source)
    rows = list(_rows(path))
    if not rows and allow_empty:
        return CutSet.from_cuts([])
    if not rows:
        raise RequestError(f"{path}: the manifest is empty; give one with at least one clip")
    cuts = _read_cuts(rows, path) if _is_cut(rows[0][1]) else nemo.to_cuts(rows, path)
    _refuse_duplicates(cuts, f"{path}")
    return CutSet.from_cuts(cuts)


def read_all(sources: Iterable[Path | str]) -> CutSet:
    """Read several manifests as one.

    Raises
    ------
    RequestError
        as for `read`, and if two of them hold the same id, or none is given.
    """
    sources = list(sources)
    if not sources:
        raise RequestError("no manifest given; give at least one")
    cuts = [cut for source in sources for cut in read(source)]
    _refuse_duplicates(cuts, ", ".join(str(source) for source in sources))
    return CutSet.from_cuts(cuts)


def write(cuts: Iterable[Cut], path: Path | str) -> None:
    """Write cuts as JSONL, gzipped if the name ends in .gz; equal cuts give equal bytes.

    Audio below the manifest's folder is named relative to it, other audio absolutely.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz")):
        raise RequestError(f"{path}: a manifest's name must end in .jsonl or .jsonl.gz")
    folder = _absolute(path).parent
    lines = (_line(cut, folder) for cut in cuts)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        if path.suffix == ".gz":
            # without a name and time in the header, which would differ between equal runs
            with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
                packed.writelines(lines)
        else:
            file.writelines(lines)


def import_manifest(manifest: Path, *, out: Path) -> None:
    """Turn a NeMo manifest into a folder that every other verb takes.

    Parameters
    ----------
    manifest
        JSONL with audio_filepath, and duration, text, label, speaker, offset where known.
    out
        the folder to write cuts.jsonl.gz to; the audio stays where it is.

    Raises
    ------
    RequestError
        if the folder holds clips of another manifest.
    """
    cuts = read(manifest)
    claim_set(out, {"manifest": fingerprint(cuts, speakers=True)}, file=_IMPORT_NAME)
    write(cuts, out / CUTS_NAME)
    logger.info("%s: %s", out / CUTS_NAME, summary(cuts))


def claim_set(out: Path, source: Mapping[str, Any], *, file: str) -> None:
    """Take a folder for the data set that is made of ``source``, as `claim` takes one for a run.

    Raises
    ------
    RequestError
        if the folder holds another one.
    """
    if (out / CUTS_NAME).is_file() and not (out / file).is_file():
        raise RequestError(f"{out / CUTS_NAME}: comes from elsewhere; give another folder to --out")
    claim(out, source, file=file)


def summary(cuts: CutSet) -> str:
    """Return one line: clips, hours, speakers and labels."""
    hours = sum(cut.duration for cut in cuts) / 3600
    speakers = {speaker_of(cut) for cut in cuts} - {None}
    labels = {label_of(cut) for cut in cuts} - {None}
    return f"{len(cuts)} clips, {hours:.2f} h, {len(speakers)} speakers, {len(labels)} labels"


def label_of(cut: Cut) -> str | None:
    """Return the clip's class, or None."""
    label = custom_of(cut).get("label")
    return None if label is None else str(label)


def text_of(cut: Cut) -> str | None:
    """Return the text to train on and compare with: normalised if there, else as given.

    Of a clip with several supervisions all texts, in the order of their starts; None if one lacks.
    """
    texts = [text_in(one) for one in sorted(cut.supervisions, key=lambda one: one.start)]
    known = [text for text in texts if text is not None]
    return " ".join(known) if texts and len(known) == len(texts) else None


def text_in(supervision: SupervisionSegment) -> str | None:
    """Return a supervision's text: normalised if there, else as given."""
    normalised = (supervision.custom or {}).get("text_norm")
    return supervision.text if normalised is None else str(normalised)


def alphabet(cuts: Iterable[Cut]) -> str:
    """Return every character of the texts to train on, sorted."""
    return "".join(sorted({character for cut in cuts for character in text_of(cut) or ""}))


def speaker_of(cut: Cut) -> str | None:
    """Return the first supervision's speaker, or None."""
    return cut.supervisions[0].speaker if cut.supervisions else None


def split_of(cut: Cut) -> str | None:
    """Return the split that the clip's corpus came with, or None."""
    split = custom_of(cut).get("split")
    return None if split is None else str(split)


def is_near_silent(cut: Cut) -> bool:
    """Say whether the manifest marks the clip as (nearly) silent."""
    return bool(custom_of(cut).get("near_silent", False))


def custom_of(cut: Cut) -> Row:
    """Return what the first supervision holds beside lhotse's own fields."""
    return (cut.supervisions[0].custom or {}) if cut.supervisions else {}


def fingerprint(cuts: Iterable[Cut], *, speakers: bool = False) -> str:
    """Return 16 hex digits over ids, durations, texts, labels (and speakers), in any order."""
    digest = hashlib.sha256()
    for key in sorted(
        json.dumps(
            [cut.id, round(cut.duration, 6), text_of(cut), label_of(cut)]
            + ([speaker_of(cut)] if speakers else [])
        )
        for cut in cuts
    ):
        digest.update(key.encode() + b"\n")
    return digest.hexdigest()[:16]


def folds(
    cuts: Iterable[Cut],
    count: int,
    *,
    by: Literal["auto", "speaker", "clip"] = "auto",
    seed: int = 0,
) -> Folds:
    """Assign clips to ``count`` folds: the same ones whatever the order of the manifest.

    Speakers (or clips) are taken in the order of a hash and dealt to the fold that holds the
    fewest clips, so fold sizes differ by no more than the largest speaker's clips.

    Parameters
    ----------
    by
        what must not be split: "speaker", "clip", or "auto": speaker if every clip has one and
        there are at least ``count`` of them, else clip.

    Raises
    ------
    RequestError
        if there are fewer speakers (or clips) than folds, or a speaker is missing.
    """
    if count < 2:
        raise RequestError(f"{count} folds: give at least 2")
    speakers = {cut.id: speaker_of(cut) for cut in cuts}
    rule = _fold_rule(speakers, count, by)
    groups: dict[str, list[str]] = {}
    for id_, speaker in speakers.items():
        groups.setdefault(str(speaker) if rule == "speaker" else id_, []).append(id_)
    if len(groups) < count:
        raise RequestError(f"{count} folds by {rule}: there are only {len(groups)}; ask for fewer")
    sizes = [0] * count
    of = {}
    for name in sorted(groups, key=lambda group: fold_order(seed, group)):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(groups[name])
        of.update(dict.fromkeys(groups[name], fold))
    return Folds(of=of, by=rule)


def require_apart(training: Iterable[Cut], dev: Iterable[Cut]) -> None:
    """Refuse a dev set that shares clips with what is trained on.

    Raises
    ------
    RequestError
        that counts them and names one.
    """
    training, dev = list(training), list(dev)
    learnt = {cut.id for cut in training}
    if shared := sorted({cut.id for cut in dev} & learnt):
        raise RequestError(
            f"{len(shared)} clips of dev are among those to train on ({shared[0]}): epochs would "
            "be chosen by what is learnt by heart; give other clips"
        )
    heard = {speaker_of(cut) for cut in training} - {None}
    if known := sorted({str(speaker_of(cut)) for cut in dev if speaker_of(cut) in heard}):
        logger.warning(
            "%d speakers of dev are among those to train on (%s): expect more errors with others",
            *(len(known), ", ".join(known[:3])),
        )


def fold_order(seed: int, name: str) -> str:
    """Return what speakers or clips are sorted by before they are dealt to folds."""
    return hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).hexdigest()


def _fold_rule(
    speakers: dict[str, str | None], count: int, by: Literal["auto", "speaker", "clip"]
) -> Literal["speaker", "clip"]:
    known = [speaker for speaker in speakers.values() if speaker is not None]
    complete = len(known) == len(speakers)
    if by == "speaker" and not complete:
        raise RequestError(
            f"folds by speaker: {len(speakers) - len(known)} of {len(speakers)} clips have no "
            "speaker; leave them out or fold by clip"
        )
    if by == "auto":
        return "speaker" if complete and len(set(known)) >= count else "clip"
    return by


def _absolute(path: Path | str) -> Path:
    return Path(os.path.abspath(path))  # unlike resolve(), keeps the names of links


def _manifest_path(source: Path | str) -> Path:
    path = _absolute(source)
    if path.is_dir():
        for name in _NAMES_IN_FOLDER:
            if (path / name).is_file():
                return path / name
        raise RequestError(f"{source}: holds none of {', '.join(_NAMES_IN_FOLDER)}")
    if not path.is_file():
        raise RequestError(f"{source}: no such manifest; give a JSONL file or a folder with one")
    return path


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number from 1, row) for each line that is not blank."""
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise RequestError(f"{path}, line {number}: is no JSON object")
                    yield number, row
    except RequestError:
        raise
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits among them
        raise RequestError(f"{path}, line {number}: is no JSON ({error})") from error
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path}: cannot be read ({error})") from error


def _is_cut(row: Row) -> bool:
    return row.get("type") in _CUT_TYPES


def _refuse_duplicates(cuts: list[Cut], source: str) -> None:
    repeated = [id_ for id_, times in Counter(cut.id for cut in cuts).items() if times > 1]
    if repeated:
        raise RequestError(
            f"{source}: {len(repeated)} ids occur more than once ({', '.join(repeated[:3])}); "
            "give each clip once, and folders of different names, of which ids are made"
        )


def _line(cut: Cut, folder: Path) -> bytes:
    row = _with_paths(cut.to_dict(), lambda path: _relative(path, folder))
    # half a character, which is no UTF-8, becomes an escape of JSON's
    return (json.dumps(row, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def _relative(path: str, folder: Path) -> str:
    absolute = _absolute(path)
    return (
        absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute
    ).as_posix()


def _with_paths(value: Any, change: Callable[[str], str]) -> Any:
    """Return a cut's JSON with the paths of audio files and stored features changed."""
    if isinstance(value, list):
        return [_with_paths(item, change) for item in value]
    if not isinstance(value, dict):
        return value
    changed = {key: _with_paths(item, change) for key, item in value.items()}
    if changed.get("type") == "file" and isinstance(changed.get("source"), str):
        changed["source"] = change(changed["source"])
    if isinstance(changed.get("storage_path"), str):
        changed["storage_path"] = change(changed["storage_path"])
    return changed


def _refuse_odd(cut: Cut) -> None:
    """Refuse values that lhotse takes, and that break whoever computes with them."""
    rate = cut.sampling_rate if cut.has_recording else 1
    for name, value in (("duration", cut.duration), ("sampling_rate", rate)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} {value!r}")
    if not 0 <= cut.start < math.inf:
        raise ValueError(f"start {cut.start!r}")
    if not isinstance(cut.id, str):
        raise ValueError(f"id {cut.id!r}")
    for one in cut.supervisions:
        for name in ("speaker", "text"):
            if not isinstance(value := getattr(one, name), str | None):
                raise ValueError(f"{name} {value!r}")
        # a supervision may begin before its cut
        if not (math.isfinite(one.start) and math.isfinite(one.duration)):
            raise ValueError(f"supervision from {one.start!r} on for {one.duration!r} s")
    recording = cut.recording if isinstance(cut, DataCut) else None
    for source in recording.sources if recording is not None else ():
        if source.type == "file" and not isinstance(source.source, str):
            raise ValueError(f"source {source.source!r}")


def _read_cuts(rows: list[tuple[int, Row]], path: Path) -> list[Cut]:
    cuts: list[Cut] = []
    for number, row in rows:
        try:
            resolved = _with_paths(row, lambda name: str(path.parent / name))
            cut = next(iter(CutSet.from_dicts([resolved])))
            _refuse_odd(cut)
            cuts.append(cut)
        except Exception as error:
            # lhotse raises many unrelated types here, all of which mean the same to a caller
            raise RequestError(f"{path}, line {number}: is no lhotse cut ({error})") from error
    return cuts
