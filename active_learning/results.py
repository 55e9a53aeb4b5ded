"""Results of simulated rounds, one row a trained model, as curves over paired seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from speechkit.active_learning.curves import Curve
from speechkit.active_learning.jsonl import Row, read_rows
from speechkit.errors import RequestError

RESULTS_NAME = "results.jsonl"
Axis = Literal["share", "seconds"]

# shares at which there is nothing to choose, so that all strategies have the same model
_COMMON = (0.0, 1.0)


@dataclass
class Results:
    """Cells of an experiment.

    Attributes
    ----------
    cells
        strategy -> seed -> share of the pool -> row.
    """

    cells: dict[str, dict[int, dict[float, Row]]] = field(default_factory=dict)

    @classmethod
    def read(cls, runs: Sequence[Path]) -> "Results":
        """Read the rows of runs: JSONL files, or folders with results.jsonl.

        A row holds strategy, seed, share, and where known clips, seconds, cell and errors (wer,
        cer, ...). A row that is repeated counts once.

        Raises
        ------
        RequestError
            if there are no rows, a row lacks a key, or two rows of a cell differ.
        """
        results = cls()
        for run in runs:
            path = results_path(run)
            for number, row in enumerate(read_rows(path), start=1):
                results.add(row, where=f"{path}, row {number}")
        if not results.cells:
            names = ", ".join(map(str, runs)) or "nothing given"
            raise RequestError(f"{names}: no results; give what `al simulate` wrote")
        results._require_one_study()
        return results

    def add(self, row: Row, *, where: str) -> None:
        """Take a row."""
        try:
            strategy, seed, share = str(row["strategy"]), int(row["seed"]), float(row["share"])
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{where}: needs strategy, seed and share ({error!r})") from error
        if not 0 <= share <= 1:
            raise RequestError(f"{where}: share {share:g} of the pool: must be 0 to 1")
        kept = self.cells.setdefault(strategy, {}).setdefault(seed, {}).setdefault(share, row)
        if kept != row:
            raise RequestError(
                f"{where}: {strategy}, seed {seed}, share {share:g} is there with other values; "
                "compare runs of one experiment"
            )

    def _require_one_study(self) -> None:
        """Refuse rows that were measured with different settings."""
        found: dict[str, str] = {}
        for strategy, seeds in self.cells.items():
            for seed, shares in seeds.items():
                for share, row in shares.items():
                    if "settings" in row:
                        where = f"{strategy}, seed {seed}, share {share:g}"
                        found.setdefault(str(row["settings"]), where)
        if len(found) > 1:
            places = "; ".join(f"{digest} ({where})" for digest, where in found.items())
            raise RequestError(f"rows of different settings: {places}; compare those of one study")

    @property
    def strategies(self) -> list[str]:
        """Names of what had something to choose, in the order of their first rows."""
        return [
            name
            for name, seeds in self.cells.items()
            if any(share not in _COMMON for shares in seeds.values() for share in shares)
        ]

    @property
    def metrics(self) -> list[str]:
        """Names of the numbers that rows hold beside those that say which row it is."""
        known = {"strategy", "seed", "share", "clips", "seconds", "speakers", "cell"}
        return sorted(
            {
                name
                for seeds in self.cells.values()
                for shares in seeds.values()
                for row in shares.values()
                for name, value in row.items()
                if name not in known and _is_number(value)
            }
        )

    def shares(self, strategy: str, *, metric: str) -> list[float]:
        """Return the shares that a strategy has in any seed, ascending."""
        seeds = self.cells.get(strategy, {})
        return sorted({share for seed in seeds for share in self._shares(strategy, seed, metric)})

    def seeds(self, strategy: str, *, metric: str) -> list[int]:
        """Return the seeds in which a strategy has all its shares, ascending."""
        wanted = set(self.shares(strategy, metric=metric))
        return [
            seed
            for seed in sorted(self.cells.get(strategy, {}))
            if wanted and wanted == self._shares(strategy, seed, metric)
        ]

    def curve(
        self,
        strategy: str,
        *,
        seeds: Sequence[int],
        shares: Sequence[float],
        metric: str,
        axis: Axis,
    ) -> Curve:
        """Return the curve of a strategy over seeds and shares that it has.

        Raises
        ------
        RequestError
            if seconds are the axis, and rows lack them or do not ascend in them.
        """
        rows = [[self._row(strategy, seed, share, metric) for share in shares] for seed in seeds]
        errors = np.array([[row[metric] for row in line] for line in rows], dtype=np.float64)
        if axis == "share":
            return Curve(np.array(shares, dtype=np.float64), errors)
        if not all(_is_number(row.get("seconds")) for line in rows for row in line):
            raise RequestError(f"{strategy}: rows lack seconds; compare over shares")
        seconds = np.array([[row["seconds"] for row in line] for line in rows], dtype=np.float64)
        x = seconds.mean(axis=0)
        if len(same := np.flatnonzero(np.diff(x) <= 0)):
            raise RequestError(
                f"{strategy}: shares {shares[same[0]]:g} and {shares[same[0] + 1]:g} hold the same "
                "seconds; compare over shares"
            )
        return Curve(x, errors)

    def _shares(self, strategy: str, seed: int, metric: str) -> set[float]:
        own = self.cells[strategy].get(seed, {})
        shares = {share for share, row in own.items() if _is_number(row.get(metric))}
        return shares | {s for s in _COMMON if self._borrowed(seed, s, metric) is not None}

    def _row(self, strategy: str, seed: int, share: float, metric: str) -> Row:
        own = self.cells[strategy][seed].get(share)
        if own is not None and _is_number(own.get(metric)):
            return own
        borrowed = self._borrowed(seed, share, metric)
        assert borrowed is not None
        return borrowed

    def _borrowed(self, seed: int, share: float, metric: str) -> Row | None:
        rows = (seeds.get(seed, {}).get(share) for seeds in self.cells.values())
        return next((row for row in rows if row and _is_number(row.get(metric))), None)


def results_path(run: Path) -> Path:
    """Return the file with a run's results."""
    return run / RESULTS_NAME if run.is_dir() else run


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
