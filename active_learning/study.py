"""What a study of strategies needs besides `simulate`: splits by seed, and forms fixed in time."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lhotse.cut import Cut

from speechkit.active_learning.jsonl import read_rows
from speechkit.active_learning.results import results_path
from speechkit.active_learning.simulate import Split
from speechkit.errors import RequestError
from speechkit.files import write_json
from speechkit.seeds import seed_of


def divide(training: Sequence[Cut], test: Sequence[Cut], *, base_share: float, seed: int) -> Split:
    """Deal clips to base and pool by a hash of seed and id."""
    order = sorted(training, key=lambda cut: seed_of("base", seed, cut.id))
    count = round(base_share * len(order))
    if not 0 < count < len(order):
        raise RequestError(
            f"{len(order)} clips, base share {base_share:g}: leaves no base or no pool"
        )
    return Split(base=order[:count], pool=order[count:], test=test)


def fixed_best(
    path: Path,
    *,
    results: Path,
    among: Sequence[str],
    count: int,
    metrics: Sequence[str] = ("wer", "loss"),
) -> list[str]:
    """Return the strategies with the lowest mean error in a trial, or those that ``path`` names.

    The first call writes the choice to ``path``, so that nothing seen later can change it.

    Parameters
    ----------
    results
        the folder of the trial.
    metrics
        the first decides, the next where strategies are equal in it.

    Raises
    ------
    RequestError
        if there is no trial, or it did not try all of them alike: it may still be running, and the
        choice could not be taken back.
    """
    if not path.is_file():
        rows = read_rows(results_path(results))
        of = {name: [row for row in rows if row["strategy"] == name] for name in among}
        cells = {name: {(row["seed"], row["share"]) for row in own} for name, own in of.items()}
        every = set().union(*cells.values())
        if lacking := [name for name, own in cells.items() if not own or own < every]:
            raise RequestError(
                f"{results}: lacks some of {', '.join(lacking)} to choose {count} forms by; let it "
                "end first"
            )
        means = {
            # rounded, lest the order of a sum tell equal ones apart
            name: [round(float(np.mean([row[metric] for row in own])), 9) for metric in metrics]
            for name, own in of.items()
        }
        write_json(path, sorted(means, key=lambda name: means[name])[:count])
    chosen: list[str] = json.loads(path.read_text(encoding="utf-8"))
    return chosen
