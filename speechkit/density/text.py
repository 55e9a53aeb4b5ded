"""Readers of text: Enwik8, and any text file, as bytes."""

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from speechkit.density.corpus import Bytes, Corpus, Stream
from speechkit.errors import RequestError

_ENWIK8_BYTES = 100_000_000
_ENWIK8_TRAIN, _ENWIK8_VALID = 90_000_000, 95_000_000


def read_enwik8(path: Path) -> Corpus:
    """Read Enwik8: the first 90 million bytes train, then 5 million valid and 5 million test.

    Parameters
    ----------
    path
        the file enwik8 (mapped, not read), the archive enwik8.zip, or a folder with one of them.

    Raises
    ------
    RequestError
        if it is not there, is another file, or is a broken archive.
    """
    path = _enwik8_path(path)
    data = _unzip(path) if zipfile.is_zipfile(path) or path.suffix == ".zip" else _map(path)
    if len(data) != _ENWIK8_BYTES:
        raise RequestError(
            f"{path}: {len(data):,} bytes found; Enwik8 has {_ENWIK8_BYTES:,}: give that file, or "
            "read this one as plain text"
        )
    return Corpus(
        name="enwik8",
        kind="text",
        splits={
            "train": Stream(data[:_ENWIK8_TRAIN]),
            "valid": Stream(data[_ENWIK8_TRAIN:_ENWIK8_VALID]),
            "test": Stream(data[_ENWIK8_VALID:]),
        },
    )


def read_text(
    paths: Path | Sequence[Path], *, valid_fraction: float = 0.1, test_fraction: float = 0.0
) -> Corpus:
    """Read text files as one stream of bytes, in the order given.

    Parameters
    ----------
    paths
        one file, which is mapped, or several, which are joined in memory.
    valid_fraction, test_fraction
        the last part of the stream is the test split, and the part before it the validation split;
        a part of 0 is left out.

    Raises
    ------
    RequestError
        if a file is missing or empty, or the fractions leave nothing to train on.
    """
    paths = [paths] if isinstance(paths, Path) else list(paths)
    if not paths:
        raise RequestError("no text file given; give at least one")
    files = [_map(path) for path in paths]
    data = files[0] if len(files) == 1 else np.concatenate(files)
    return Corpus(
        name=" + ".join(path.name for path in paths),
        kind="text",
        splits=tail_splits(data, valid_fraction=valid_fraction, test_fraction=test_fraction),
    )


def tail_splits(
    data: Bytes, *, valid_fraction: float, test_fraction: float = 0.0
) -> dict[str, Stream]:
    """Cut a stream into train, valid and test, in this order; parts of size 0 are left out.

    Raises
    ------
    RequestError
        if a fraction is negative, or nothing is left to train on.
    """
    if min(valid_fraction, test_fraction) < 0 or valid_fraction + test_fraction >= 1:
        raise RequestError(
            f"fractions {valid_fraction} for valid and {test_fraction} for test: give 0 or more "
            "each, less than 1 together"
        )
    valid, test = (round(len(data) * part) for part in (valid_fraction, test_fraction))
    stop = len(data) - valid - test
    parts = {"train": data[:stop], "valid": data[stop : stop + valid], "test": data[stop + valid :]}
    if stop < 1:
        raise RequestError(f"{len(data)} bytes leave nothing to train on; give more data")
    return {name: Stream(part) for name, part in parts.items() if len(part)}


def _enwik8_path(path: Path) -> Path:
    if path.is_dir():
        for name in ("enwik8", "enwik8.zip"):
            if (path / name).is_file():
                return path / name
        raise RequestError(f"{path}: holds neither enwik8 nor enwik8.zip; give one of them")
    if not path.is_file():
        raise RequestError(f"{path}: no such file; give enwik8 or enwik8.zip")
    return path


def _unzip(path: Path) -> Bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "enwik8" not in names:
                raise RequestError(
                    f"{path}: holds {', '.join(names[:5]) or 'nothing'}; Enwik8's archive holds "
                    "the file enwik8"
                )
            size = archive.getinfo("enwik8").file_size
            if size != _ENWIK8_BYTES:
                raise RequestError(
                    f"{path}: its member enwik8 has {size:,} bytes; Enwik8 has {_ENWIK8_BYTES:,}"
                )
            return np.frombuffer(archive.read("enwik8"), dtype=np.uint8)
    # zipfile raises the last one for a compression that it does not know
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise RequestError(f"{path}: a broken archive ({error}); fetch it again") from error


def _map(path: Path) -> Bytes:
    if not path.is_file():
        raise RequestError(f"{path}: no such file; give a text file")
    try:
        if path.stat().st_size == 0:
            raise RequestError(f"{path}: is empty; give a file with text")
        return np.memmap(path, dtype=np.uint8, mode="r")
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror})") from error
