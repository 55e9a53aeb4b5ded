"""Cells of a study: each one a model that was trained and measured, kept as one row.

A study takes longer than a sitting at a machine lasts, so its cells may be carried: a file of rows,
one JSON object a line, is read before the work and written after each cell. What stands in it is
not trained again; rows of other settings are refused, since they would not be comparable.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from speechkit.active_learning.blocks import digest
from speechkit.active_learning.jsonl import Row, read_rows, write_rows
from speechkit.active_learning.results import RESULTS_NAME
from speechkit.claims import claim
from speechkit.errors import RequestError
from speechkit.files import locked, write_json
from speechkit.reports import commit

_FOLDER = "cells"
_SETTINGS_NAME = "simulation.json"


@dataclass(frozen=True)
class Cells:
    """The cells in a folder, which several processes may fill if each has its own.

    Parameters
    ----------
    out
        gets a file for each cell, and all rows in results.jsonl.
    settings
        all that must be the same for rows to be compared.
    carried
        a file with rows from other folders, which gets those of this one.
    """

    out: Path
    settings: Mapping[str, Any] = field(default_factory=dict)
    carried: Path | None = None

    @cached_property
    def digest(self) -> str:
        """Say in a few digits which settings a row has."""
        return digest(self.settings)

    def claim(self) -> None:
        """Take the folder for these settings, and over what was carried here.

        Raises
        ------
        RequestError
            if the folder or the carried file holds rows of other settings, or no rows.
        """
        commit()  # asked for now, and remembered: the checkout may move on while the study runs
        claim(self.out, self.settings, file=_SETTINGS_NAME)
        for row in self._rows_carried():
            if row["cell"] not in self:
                write_json(self._path(row["cell"]), row)
        self.collect()

    def __contains__(self, name: str) -> bool:
        return self._path(name).is_file()

    def add(self, name: str, row: Mapping[str, Any]) -> Row:
        """Keep the row of a cell, with where it came from; return it."""
        whole: Row = {**row, "cell": name, "settings": self.digest, "commit": commit()}
        write_json(self._path(name), whole)
        self.collect()
        return whole

    def collect(self) -> list[Row]:
        """Write and return the rows of all cells, sorted by what they are of."""
        # alone: of two that read before either has written, the second would lose a row
        with locked(self.out):
            # but for what others are writing, or were when they were killed
            rows = [_read(path) for path in (self.out / _FOLDER).glob("[!.]*.json")]
            rows.sort(key=_order)
            write_rows(self.out / RESULTS_NAME, rows)
        if self.carried is not None and rows:
            with locked(self.carried.parent):
                every: dict[str, Row] = {row["cell"]: row for row in [*self._rows_carried(), *rows]}
                write_rows(self.carried, sorted(every.values(), key=_order))
        return rows

    def _rows_carried(self) -> list[Row]:
        if self.carried is None or not self.carried.exists():
            return []
        rows = read_rows(self.carried)
        for number, row in enumerate(rows, start=1):
            where = f"{self.carried}, row {number}"
            if not {"cell", "strategy", "seed", "share"} <= row.keys():
                raise RequestError(f"{where}: is no cell of a study; give what a study wrote")
            if row.get("settings") != self.digest:
                raise RequestError(
                    f"{where}: is of other settings ({row.get('settings')}, here {self.digest}); "
                    "give another file"
                )
        return rows

    def _path(self, name: str) -> Path:
        return self.out / _FOLDER / f"{name}.json"


def _order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["seed"], row["strategy"], row["share"]


def _read(path: Path) -> Row:
    row: Row = json.loads(path.read_text(encoding="utf-8"))
    return row
