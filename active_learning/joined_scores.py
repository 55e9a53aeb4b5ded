"""Scores of one pool that were written apart, as one table: what rank correlations are taken of."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from speechkit.active_learning.blocks import OK, find_scores, read_scores
from speechkit.errors import RequestError


def read_joined(paths: Sequence[Path]) -> pa.Table:
    """Read folders of scores as one table, sorted by id.

    A clip is in order if it is so in all of them; a column that several have is the first's.

    Parameters
    ----------
    paths
        folders that `al score` wrote, or ``OUT/seed-N/scores`` of a simulation, which holds one
        for each strategy.

    Raises
    ------
    RequestError
        if there are no scores, or they are of different pools.
    """
    folders = [folder for path in paths for folder in _folders(path)]
    if not folders:
        raise RequestError("no folder of scores is given; give at least one")
    joined, *others = map(read_scores, folders)
    for folder, table in zip(folders[1:], others, strict=True):
        if table["id"] != joined["id"]:
            raise RequestError(
                f"{folder}: are scores of other clips than those in {folders[0]}; give one pool's"
            )
        statuses = zip(joined["status"].to_pylist(), table["status"].to_pylist(), strict=True)
        both = pa.array([other if one == OK else one for one, other in statuses])
        joined = joined.set_column(joined.column_names.index("status"), "status", both)
        for name in table.column_names:
            if name not in joined.column_names:
                joined = joined.append_column(name, table[name])
    return joined


def _folders(path: Path) -> list[Path]:
    """Return a simulation's folders of scores, or the one of a pool."""
    of_strategies = sorted({part.parent for part in path.glob("*/part-*.parquet")})
    return of_strategies or [find_scores(path)]
