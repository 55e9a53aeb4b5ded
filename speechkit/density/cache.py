"""Decoded data as one file of bytes, made once, mapped afterwards.

A folder holds `data.u8`, the bytes of all sources one after the other, and `index.jsonl`, a line
for each source. Both grow under other names until all is there, so that a job which was stopped
goes on where it was; the index gets its name last and is the mark of a whole folder.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from speechkit.density.corpus import Bytes
from speechkit.errors import JobError, RequestError

logger = logging.getLogger(__name__)

_DATA, _INDEX, _PART = "data.u8", "index.jsonl", ".part"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the bytes of a source lie; ``problem`` says why there are none of it."""

    name: str
    start: int
    size: int
    problem: str = ""

    @property
    def stop(self) -> int:
        """End of the bytes."""
        return self.start + self.size


@dataclass(frozen=True, slots=True, eq=False)
class Cached:
    """All bytes, and the entries of the sources that could be read."""

    data: Bytes
    entries: tuple[Entry, ...]


def default_folder() -> Path:
    """Return speechkit/density below the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "speechkit" / "density"


def stamps(paths: Iterable[Path]) -> list[list[Any]]:
    """Return name, size and time of files: what tells that one was changed."""
    found = ((path, path.stat()) for path in paths)
    return [[str(path.absolute()), stat.st_size, stat.st_mtime_ns] for path, stat in found]


def cached(
    folder: Path | None,
    key: dict[str, Any],
    *,
    names: Sequence[str],
    read: Callable[[str], Iterator[Bytes]],
) -> Cached:
    """Return the bytes of all sources, reading those that are not in the cache yet.

    A second process that asks for the same bytes waits for the first.

    Parameters
    ----------
    folder
        the folder of caches; `default_folder` if None.
    key
        all that the bytes depend on, as JSON; it chooses the folder within.
    names
        the sources, in the order of their bytes.
    read
        yields the bytes of a source. A JobError or OSError leaves the source out, with a warning;
        other errors end the job, and what was read before stays for the next one.

    Raises
    ------
    RequestError
        if no source can be read.
    JobError
        if the cache cannot be written.
    """
    digest = hashlib.sha256(json.dumps([key, list(names)]).encode()).hexdigest()[:16]
    home = (folder or default_folder()) / digest
    try:
        home.mkdir(parents=True, exist_ok=True)
        with _locked(home):
            if not _is_whole(home):
                _build(home, names, read)
    except OSError as error:
        raise JobError(
            f"{home}: the cache cannot be written ({error.strerror or error}); what is there stays "
            "and the next run goes on from it"
        ) from error
    entries = tuple(entry for entry in _entries(home / _INDEX) if not entry.problem)
    return Cached(np.memmap(home / _DATA, dtype=np.uint8, mode="r"), entries)


def _build(home: Path, names: Sequence[str], read: Callable[[str], Iterator[Bytes]]) -> None:
    index, data = home / (_INDEX + _PART), home / (_DATA + _PART)
    done = _resumable(index, data, names)
    end = done[-1].stop if done else 0
    with data.open("ab") as data_file, index.open("ab") as index_file:
        data_file.truncate(end)
        index_file.truncate(sum(len(_line(entry)) for entry in done))
        for name in names[len(done) :]:
            entry = _append(data_file, name, end, read)
            data_file.flush()
            index_file.write(_line(entry))
            index_file.flush()
            end = entry.stop
            done.append(entry)
    if end == 0:
        why = done[0].problem if done else ""
        raise RequestError(
            f"none of {len(names)} sources can be used, as {why or 'they are empty'}"
        )
    os.replace(data, home / _DATA)
    os.replace(index, home / _INDEX)


def _append(file: Any, name: str, start: int, read: Callable[[str], Iterator[Bytes]]) -> Entry:
    size = 0
    try:
        for block in _blocks_of(name, read):
            file.write(block.tobytes())
            size += block.size
    except JobError as error:
        logger.warning("left out: %s", error)
        file.flush()
        file.truncate(start)
        return Entry(name, start, 0, str(error))
    return Entry(name, start, size)


def _blocks_of(name: str, read: Callable[[str], Iterator[Bytes]]) -> Iterator[Bytes]:
    """Yield the bytes of a source; what fails of it is not taken for a fault of the cache."""
    try:
        yield from read(name)
    except OSError as error:
        raise JobError(f"{name}: cannot be read ({error.strerror or error})") from error


def _resumable(index: Path, data: Path, names: Sequence[str]) -> list[Entry]:
    """Return the entries of an earlier run, up to the first that is not whole."""
    if not index.is_file() or not data.is_file():
        return []
    size = data.stat().st_size
    good = []
    for entry, name in zip(_entries(index), names, strict=False):
        if entry.name != name or entry.stop > size:
            break
        good.append(entry)
    if good:
        logger.info("%s: going on after %d of %d sources", index.parent, len(good), len(names))
    return good


def _entries(index: Path) -> list[Entry]:
    """Return the lines of an index; a last one that is not whole is left out."""
    lines = index.read_bytes().split(b"\n")[:-1]
    return [Entry(**json.loads(line)) for line in lines]


def _line(entry: Entry) -> bytes:
    fields = {"name": entry.name, "start": entry.start, "size": entry.size}
    problem = {"problem": entry.problem} if entry.problem else {}
    return (json.dumps({**fields, **problem}) + "\n").encode()


def _is_whole(home: Path) -> bool:
    if not (home / _INDEX).is_file() or not (home / _DATA).is_file():
        return False
    return _entries(home / _INDEX)[-1].stop == (home / _DATA).stat().st_size


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    with (home / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
