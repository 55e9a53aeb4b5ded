r"""A round of active learning with people: a spotter asks for the labels it needs.

    python recipes/al_kws.py --model MODEL --labelled CUTS --pool CUTS --test CUTS \
        --budget 200 --out out/round-1

It stops after the export and says what to do. When the labels are there:

    python recipes/al_kws.py ... --labels export.json

With --oracle the labels in the pool's manifest stand for people. OUT/errors.json has the errors
before and after, and names the retrained model; further labels make another one.
"""

import sys
from pathlib import Path

from speechkit.active_learning.cycle import run_round
from speechkit.cli import run_recipe
from speechkit.kws.learner import SPOTTER, SpotterLearner
from speechkit.kws.spotter import Spotter


def al_kws(
    *,
    model: Path,
    labelled: list[Path],
    pool: Path,
    test: list[Path],
    out: Path,
    budget: str = "200",
    strategy: str = "egl",
    labels: Path | None = None,
    oracle: bool = False,
    seed: int = 0,
    learner: SpotterLearner = SPOTTER,
) -> None:
    """Score, select, export; import, retrain, evaluate.

    Parameters
    ----------
    model
        the spotter of the learner's classes that asks.
    labelled, pool, test
        manifests: what it was trained on (those of earlier rounds, OUT/labels, among them), what to
        choose from, what to measure on.
    out
        gets scores/, selection/, to_label/, labels/, retrained/ and errors.json.
    budget
        clips (500), audio (1800s, 30min, 2h) or annotation cost (cost:120).
    strategy
        such as egl, entropy, margin.
    labels
        what the annotation tool exported.
    oracle
        take the labels of the pool in place of people's.
    learner
        how the model is retrained.
    """
    told = run_round(
        learner,
        Spotter.load(model),
        model=model,
        labelled=labelled,
        pool=pool,
        test=test,
        out=out,
        strategy=strategy,
        budget=budget,
        labels=labels,
        oracle=learner.class_of if oracle else None,
        seed=seed,
    )
    print(told)


if __name__ == "__main__":
    sys.exit(run_recipe(al_kws))
