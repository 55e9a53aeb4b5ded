"""Tables of scores on disk: fixed blocks of clips, each of them one Parquet part.

Clip ids are sorted by a hash and cut into blocks, so what a block holds depends on the pool and the
block size alone. A block is committed whole, by a rename, or done again: whoever scores it, in one
process, in a shard of many or after a kill, the parts have the same bytes.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from speechkit.active_learning.keyed import hash_of
from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path, write_json

logger = logging.getLogger(__name__)

OK = "ok"
FAILED = "failed"
SUCCESS_NAME = "_SUCCESS"

_FIXED = {
    "id": pa.string(),
    "duration_s": pa.float64(),
    "status": pa.string(),
    "error": pa.string(),
}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Block:
    """A block of clips: its number, which names its part, and its ids in the order of the hash."""

    number: int
    ids: tuple[str, ...]

    @property
    def part(self) -> str:
        """Name of the file with its rows."""
        return f"part-{self.number:06d}.parquet"


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a folder of scores holds, compared with a pool; ids are sorted.

    Attributes
    ----------
    clips
        distinct ids of the pool that have a row.
    missing, duplicated, unknown, failed
        ids without a row, with several, that the pool lacks, and whose scoring failed.
    corrupt
        names of parts that cannot be read.
    finished
        whether the scoring has written its counts.
    """

    clips: int
    missing: tuple[str, ...]
    duplicated: tuple[str, ...]
    unknown: tuple[str, ...]
    failed: tuple[str, ...]
    corrupt: tuple[str, ...]
    finished: bool

    @property
    def whole(self) -> bool:
        """Whether every clip of the pool has exactly one row, and nothing else is there."""
        wrong = (self.missing, self.duplicated, self.unknown, self.corrupt)
        return self.finished and not any(wrong)

    def __str__(self) -> str:
        kinds = ("missing", "duplicated", "unknown", "failed", "corrupt")
        found = [(kind, getattr(self, kind)) for kind in kinds]
        notes = [f"{len(names)} {kind} ({_some(names)})" for kind, names in found if names]
        if not self.finished:
            notes.append("not finished")
        return f"{self.clips} clips scored; {', '.join(notes) or 'nothing missing, nothing twice'}"


def digest(value: Any) -> str:
    """Return 16 hex digits over a value that JSON can hold, such as a configuration's fields."""
    text = json.dumps(value, sort_keys=True, allow_nan=False, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def scores_folder(out: Path, *, model_sha: str, config_sha: str) -> Path:
    """Return the folder that keeps the scores of one model under one configuration apart."""
    return out / f"model={model_sha}" / f"config={config_sha}"


def find_scores(path: Path) -> Path:
    """Return the folder with parts: ``path``, or the only one that `scores_folder` made in it.

    Raises
    ------
    RequestError
        if there is none, or several to choose from.
    """
    folders = sorted({part.parent for part in path.glob("model=*/config=*/part-*.parquet")})
    if any(path.glob("part-*.parquet")):
        return path
    if not folders:
        raise RequestError(f"{path}: holds no scores; give the folder that `al score --out` wrote")
    if len(folders) > 1:
        names = ", ".join(str(folder.relative_to(path)) for folder in folders)
        raise RequestError(f"{path}: holds scores of several models or settings; give one: {names}")
    return folders[0]


def cut_blocks(ids: Iterable[str], *, size: int) -> list[Block]:
    """Cut a pool into blocks of ``size`` clips (the last one may hold fewer).

    Raises
    ------
    RequestError
        if the size is not positive, or ids repeat.
    """
    if size < 1:
        raise RequestError(f"block size {size}: must be at least 1")
    ids = list(ids)
    require_unique(ids, "the pool")
    ids.sort(key=lambda id_: (hash_of(id_), id_))
    return [
        Block(number, tuple(ids[start : start + size]))
        for number, start in enumerate(range(0, len(ids), size))
    ]


def pending(blocks: Iterable[Block], folder: Path) -> list[Block]:
    """Return the blocks that have no sound part yet; a part that cannot be read is redone.

    Raises
    ------
    RequestError
        if a part holds other clips than its block: those of another pool or block size.
    """
    left = [block for block in blocks if not _is_done(block, folder)]
    if left:
        (folder / SUCCESS_NAME).unlink(missing_ok=True)
    return left


def reopen(folder: Path, *, failed: bool) -> int:
    """Remove parts, to be scored again; return how many.

    Parameters
    ----------
    failed
        those alone that hold a failed row: it may be the machine's fault, a disk that was not there
        or memory that ran out.
    """
    chosen = [path for path in _parts(folder) if not failed or FAILED in _states(path)]
    for path in chosen:
        (folder / SUCCESS_NAME).unlink(missing_ok=True)
        path.unlink()
    return len(chosen)


def commit(block: Block, rows: Iterable[Mapping[str, Any]], folder: Path) -> None:
    """Write the rows of a block as its part, whole or not at all; equal rows give equal bytes.

    Parameters
    ----------
    rows
        one for each clip, in any order: id, duration_s, status ("ok" or "failed"), error (None if
        ok), and whatever was measured. Numbers, texts and lists of them become columns of their
        type; what a row lacks is null.

    Raises
    ------
    JobError
        if the rows are not exactly those of the block, or a status is unknown.
    """
    ordered = sorted(rows, key=lambda row: row["id"])
    if [row["id"] for row in ordered] != sorted(block.ids):
        raise JobError(
            f"{block.part}: {len(ordered)} rows for {len(block.ids)} clips, or other ids; "
            "each clip of a block needs one row, also where it failed"
        )
    unknown = {str(row["status"]) for row in ordered} - {OK, FAILED}
    if unknown:
        raise JobError(f"{block.part}: status {min(unknown)!r}; allowed are {OK!r} and {FAILED!r}")
    write_table(_table(ordered), folder / block.part)


def finish(blocks: Sequence[Block], folder: Path) -> dict[str, int]:
    """Write ``_SUCCESS`` with counts once every block of the pool has its part; return the counts.

    Raises
    ------
    JobError
        if blocks are missing, or the folder holds parts of another pool.
    """
    left = pending(blocks, folder)
    if left:
        raise JobError(f"{folder}: {len(left)} of {len(blocks)} blocks are not scored; score again")
    strange = {path.name for path in _parts(folder)} - {block.part for block in blocks}
    if strange:
        raise JobError(
            f"{folder}: {_some(sorted(strange))} belong to another pool; use a new --out"
        )
    counts = Counter(status for path in _parts(folder) for status in _states(path))
    for leftover in folder.glob(".tmp-*"):  # of processes that were killed while they wrote
        leftover.unlink(missing_ok=True)
    totals = {
        "clips": counts.total(),
        OK: counts[OK],
        FAILED: counts[FAILED],
        "blocks": len(blocks),
    }
    write_json(folder / SUCCESS_NAME, totals)
    return totals


def read_scores(folder: Path) -> pa.Table:
    """Read all rows, sorted by id: equal bytes whoever scored them, in whatever order.

    Raises
    ------
    RequestError
        if there are no scores, or the scoring has not ended.
    JobError
        if a part cannot be read, or an id occurs twice.
    """
    folder = find_scores(folder)
    if not (folder / SUCCESS_NAME).is_file():
        raise RequestError(f"{folder}: the scoring has not ended; run `al score` again to go on")
    tables = []
    for path in _parts(folder):
        try:
            tables.append(pq.read_table(path))
        except (pa.ArrowException, OSError) as error:
            raise JobError(f"{path}: cannot be read ({error}); run `al score` again") from error
    table = pa.concat_tables(tables, promote_options="permissive").sort_by("id").combine_chunks()
    require_unique(table["id"].to_pylist(), str(folder))
    names = [*_FIXED, *sorted(set(table.column_names) - set(_FIXED))]
    return table.select(names)


def verify(folder: Path, pool_ids: Iterable[str]) -> Verification:
    """Compare a folder of scores with the ids of its pool."""
    rows: Counter[str] = Counter()
    failed, corrupt = [], []
    for path in _parts(folder):
        try:
            part = pq.read_table(path, columns=["id", "status"])
        except (pa.ArrowException, OSError):
            corrupt.append(path.name)
            continue
        ids = part["id"].to_pylist()
        rows.update(ids)
        states = part["status"].to_pylist()
        failed += [id_ for id_, status in zip(ids, states, strict=True) if status == FAILED]
    pool = set(pool_ids)
    return Verification(
        clips=len(pool & rows.keys()),
        missing=tuple(sorted(pool - rows.keys())),
        duplicated=tuple(sorted(id_ for id_, times in rows.items() if times > 1)),
        unknown=tuple(sorted(rows.keys() - pool)),
        failed=tuple(sorted(failed)),
        corrupt=tuple(corrupt),
        finished=(folder / SUCCESS_NAME).is_file(),
    )


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file, whole or not at all; equal tables give equal bytes."""
    with atomic_path(path) as temporary:
        pq.write_table(table.replace_schema_metadata(None), temporary, compression="zstd")


def require_unique(ids: Sequence[str], source: str) -> None:
    """Raise `RequestError`, naming some, if ids repeat."""
    repeated = [id_ for id_, times in Counter(ids).items() if times > 1]
    if repeated:
        raise RequestError(
            f"{source}: {len(repeated)} ids occur more than once ({_some(repeated)}); "
            "give each clip once"
        )


def _is_done(block: Block, folder: Path) -> bool:
    path = folder / block.part
    if not path.exists():
        return False
    try:
        # all columns, because a damaged page shows only when it is read
        ids = pq.read_table(path)["id"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        logger.warning("%s: is damaged (%s); scoring the block again", path, error)
        return False
    if ids != sorted(block.ids):
        raise RequestError(
            f"{path}: holds scores of another pool or block size; give another --out"
        )
    return True


def _states(part: Path) -> list[str]:
    """Return the states of a part's rows; one that is damaged has failed."""
    try:
        return list(pq.read_table(part, columns=["status"])["status"].to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        return [FAILED]


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    names = [*_FIXED, *sorted({name for row in rows for name in row} - set(_FIXED))]
    columns = [pa.array([row.get(name) for row in rows], type=_FIXED.get(name)) for name in names]
    return pa.table(columns, names=names)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
