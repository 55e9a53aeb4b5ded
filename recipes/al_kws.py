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

from speechkit import manifests
from speechkit.active_learning.cycle import run_round
from speechkit.cli import run_recipe
from speechkit.kws.fit import FitConfig
from speechkit.kws.learner import SPOTTER, SpotterLearner
from speechkit.kws.scenes import SceneConfig
from speechkit.kws.spotter import Spotter
from speechkit.kws.train import TrainConfig


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
    dev: list[Path] | None = None,
    noise: list[Path] | None = None,
    seed: int = 0,
    scenes: SceneConfig = SPOTTER.train.scenes,
    fit: FitConfig = SPOTTER.train.fit,
) -> None:
    """Score, select, export; import, retrain, evaluate.

    Parameters
    ----------
    model
        the spotter that asks, of any keywords.
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
    dev
        manifests to choose the epoch on; without any a sixth of the labelled clips is set aside.
    noise
        manifests of noise to retrain in; white noise without any.
    seed
        of the retraining.
    scenes, fit
        what it hears, and its optimisation.
    """
    spotter = Spotter.load(model)
    learner = SpotterLearner(
        keywords=spotter.keywords,
        train=TrainConfig(classes=spotter.classes, scenes=scenes, fit=fit),
        dev=tuple(manifests.read_all(dev)) if dev else (),
        noises=tuple(manifests.read_all(noise)) if noise else (),
    )
    told = run_round(
        learner,
        spotter,
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
