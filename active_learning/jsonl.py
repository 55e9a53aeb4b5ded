"""Files of one JSON object a line, as results, selections and labels are kept."""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from speechkit.errors import RequestError
from speechkit.files import write_text

Row = dict[str, Any]


def read_rows(path: Path | str) -> list[Row]:
    """Read all rows of a file, which may be gzipped; blank lines do not count.

    Raises
    ------
    RequestError
        if the file is missing, or a line is no JSON object, such as the last one of a file that
        was cut in the middle.
    """
    path = Path(path)
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
            # not splitlines, which also splits at separators that a text may hold
            lines = file.read().decode("utf-8").split("\n")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); give a JSONL file") from error
    return [
        _row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()
    ]


def write_rows(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as a whole; NaN and infinity, which JSON lacks, are refused."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    write_text(path, "".join(lines))


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise RequestError(
            f"{where}: is no JSON ({error}); if the file was cut, write it again"
        ) from error
    if not isinstance(row, dict):
        raise RequestError(f"{where}: is no JSON object; give one a line")
    return row
