r"""A round of active learning with people: a recogniser asks for the transcripts it needs.

    python recipes/al_asr.py --model MODEL --labelled CUTS --pool CUTS --test CUTS \
        --budget 30min --out out/round-1

It stops after the export and says what to do. When the labels are there:

    python recipes/al_asr.py ... --labels export.json

With --oracle the texts in the pool's manifest stand for people. OUT/errors.json has the errors
before and after, and names the retrained model; further labels make another one.
"""

import sys
from pathlib import Path

from speechkit import manifests
from speechkit.active_learning.cycle import run_round
from speechkit.asr.learner import RecogniserLearner
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.train import TrainConfig
from speechkit.cli import run_recipe


def al_asr(
    *,
    model: Path,
    labelled: list[Path],
    pool: Path,
    test: list[Path],
    out: Path,
    budget: str = "30min",
    strategy: str = "egl",
    labels: Path | None = None,
    oracle: bool = False,
    dev: list[Path] | None = None,
    seed: int = 0,
    train: TrainConfig = TrainConfig(),
) -> None:
    """Score, select, export; import, retrain, evaluate.

    Parameters
    ----------
    model
        the recogniser that asks.
    labelled, pool, test
        manifests: what it was trained on (those of earlier rounds, OUT/labels, among them), what to
        choose from, what to measure on.
    out
        gets scores/, selection/, to_label/, labels/, retrained/ and errors.json.
    budget
        clips (500), audio (1800s, 30min, 2h) or annotation cost (cost:120).
    strategy
        such as egl, egl/per_second, cascade.
    labels
        what the annotation tool exported.
    oracle
        take the texts of the pool in place of people's.
    dev
        manifests to choose the epoch on; without any a tenth of the labelled clips is set aside.
    seed
        of the retraining.
    train
        how the model is retrained; inputs, encoder and tokens are its own.
    """
    learner = RecogniserLearner(train=train, dev=tuple(manifests.read_all(dev)) if dev else ())
    told = run_round(
        learner,
        Recogniser.load(model),
        model=model,
        labelled=labelled,
        pool=pool,
        test=test,
        out=out,
        strategy=strategy,
        budget=budget,
        labels=labels,
        oracle=manifests.text_of if oracle else None,
        seed=seed,
    )
    print(told)


if __name__ == "__main__":
    sys.exit(run_recipe(al_asr))
