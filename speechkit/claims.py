"""Folders of runs: each belongs to one set of settings and data, so that going on is safe."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speechkit.errors import RequestError
from speechkit.files import write_json

_SHOWN = 4
_ABSENT = object()


def claim(out: Path, run: Mapping[str, Any], *, file: str = "resume/run.json") -> None:
    """Take the folder ``out`` for a run; refuse it if it holds another one.

    A run that is started anew with the same command goes on in its folder. With other settings or
    other data it would mix two runs, or give the old one's results for its own.

    Parameters
    ----------
    run
        all that the results depend on, as JSON knows it: settings, fingerprints of the data.
    file
        where in ``out`` that is kept.

    Raises
    ------
    RequestError
        if ``out`` was begun with another ``run``: the message names what differs.
    """
    path = out / file
    wanted = json.loads(json.dumps(run))
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RequestError(
                f"{path}: cannot be read ({error}); give another folder, or delete this one"
            ) from error
        if differing := list(_differences(found, wanted)):
            more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            raise RequestError(
                f"{out}: holds a run with other settings or data: "
                f"{'; '.join(differing[:_SHOWN])}{more} (see {path}); give another folder, or "
                "delete this one"
            )
        return
    write_json(path, wanted)


def _differences(found: Any, wanted: Any, name: str = "") -> Iterator[str]:
    """Say what differs, by dotted names of settings."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        for key in sorted(found.keys() | wanted.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(found.get(key, _ABSENT), wanted.get(key, _ABSENT), inner)
    elif found != wanted:
        yield f"{name} {_shown(found)} there, {_shown(wanted)} given"


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)
