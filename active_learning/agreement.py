"""How forms of expected gradient length rank clips: against each other, and against confidence.

Huang et al. 2016 found that expected gradient length ranks clips unlike confidence does. How far
that is so depends on the weights of the hypotheses and on their number K, because the mass that a
beam misses grows as a clip does: hence a table over both.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lhotse.cut import Cut
from numpy.typing import NDArray

from speechkit.active_learning.blocks import OK, digest, read_scores
from speechkit.active_learning.models import Model
from speechkit.active_learning.score import score_pool
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.statistics import spearman_matrix
from speechkit.errors import RequestError
from speechkit.reports import markdown_table

# of the hypotheses' weights and number; what all of them are compared with comes last
GRID = (
    *(f"weights={weights},k={k}" for weights in ("raw", "renorm", "sample") for k in (1, 4, 16)),
    "weights=raw,k=100",
    "weights=renorm,k=100",
    "weights=sample,k=64",
    "weights=stratified,k=16",
)
_REFERENCE = "weights=stratified,k=64,tail=32"
OTHERS = ("entropy", "entropy_sum", "pctc", "confidence", "confidence_per_token", "longest")

_SCORING = ScoringConfig(nbest=0, quality=False)
Column = NDArray[np.float64]


def agreement(
    cuts: Sequence[Cut],
    model: Model,
    *,
    parameters: str,
    folder: Path,
    grid: Sequence[str] = GRID,
    reference: str = _REFERENCE,
) -> dict[str, Any]:
    """Score clips by every form; return rank correlations: a row a form, and the whole matrix.

    Parameters
    ----------
    parameters
        of the gradient, as of `egl.Egl`.
    folder
        for the scores, from which an interrupted run goes on; of this model and these clips alone.
    grid
        weights and K of the forms.
    reference
        an unbiased form of little noise.

    Raises
    ------
    RequestError
        if fewer than three clips can be scored.
    """
    columns = {
        name: _column(cuts, model, name, folder=folder, key=name)
        for name in (*OTHERS, "true_gradient")
    }
    forms, masses = {}, {}
    for form in [*grid, reference]:
        name = f"egl:parameters={parameters},{form}"
        forms[form] = _column(cuts, model, name, folder=folder, key=name)
        masses[form] = _column(cuts, model, name, folder=folder, key=f"{name}_beam_mass")
    if np.isfinite(forms[reference]).sum() < 3:
        raise RequestError(f"{len(cuts)} clips: fewer than three have a score to rank by")
    matrix = spearman_matrix({**forms, **columns})
    names = [*forms, *columns]
    of = {name: matrix[:, place] for place, name in enumerate(names)}
    return {
        "columns": names,
        "spearman": [[_number(value) for value in row] for row in matrix],
        "parameters": parameters,
        "clips": int(np.isfinite(forms[reference]).sum()),
        "reference": reference,
        "rows": [
            {
                "form": form,
                "beam_mass": _mean(masses[form]),
                "ratio": _mean(values / np.nanmean(forms[reference])),
                "reference": _number(of[reference][place]),
                **{name: _number(of[name][place]) for name in columns},
            }
            for place, (form, values) in enumerate(forms.items())
        ],
    }


def markdown(found: dict[str, Any]) -> str:
    """Return the table of an `agreement`."""
    names = ("reference", *OTHERS, "true_gradient")
    rows = [
        (row["form"], *(_cell(row[name]) for name in ("beam_mass", "ratio", *names)))
        for row in found["rows"]
    ]
    head = (
        f"Spearman over {found['clips']} clips, gradients of {found['parameters']}; the reference "
        f"is {found['reference']}, ratio the mean score over the reference's."
    )
    return f"{head}\n\n{markdown_table(('form', 'beam mass', 'ratio', *names), rows)}"


def _column(cuts: Sequence[Cut], model: Model, strategy: str, *, folder: Path, key: str) -> Column:
    """Return a column of the clips in the order of their ids, NaN where there is none."""
    own = folder / digest([strategy])
    score_pool(cuts, model, [strategy], folder=own, config=_SCORING)
    table = read_scores(own)
    if key not in table.column_names:  # every clip failed
        return np.full(table.num_rows, np.nan)
    good = pa.compute.equal(table["status"], OK)
    values = table[key].cast(pa.float64())
    found: Column = pa.compute.if_else(good, values, None).to_numpy(zero_copy_only=False)
    return found


def _mean(values: Column) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _cell(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"
