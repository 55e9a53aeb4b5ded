"""A recogniser asks for labels: digits spoken by the machine itself, in a few minutes.

    python recipes/al_demo.py --out out/al            # about 6 minutes on 2 cores
    python recipes/al_demo.py --out out/al --smoke    # seconds, learns nothing

It synthesises digits, joins them to strings, trains a small recogniser on a quarter of them, takes
the others for an unlabelled pool, and trains on with what random choice and expected gradient
length (EGL) select under a budget of seconds of audio. One seed: it shows how the parts
work together, and proves nothing about the strategies. recipes/al_digits.py is a study.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit import joining, manifests, synthetic
from speechkit.active_learning.blocks import scores_folder
from speechkit.active_learning.compare import compare
from speechkit.active_learning.score import config_digest, score
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.select import select
from speechkit.active_learning.simulate import SimulationConfig, Split, simulate
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.evaluate import evaluate
from speechkit.asr.learner import RecogniserLearner
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig
from speechkit.batching import BatchConfig
from speechkit.checkpoint import model_digest
from speechkit.cli import run_recipe
from speechkit.joining import JoinConfig
from speechkit.specaugment import SpecAugmentConfig

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
QUERIES = ("random", "egl")
SCORERS = ("egl", "entropy", "confidence", "longest", "random")
SHARES = (0.0, 0.2, 1.0)
BASE_SHARE, BUDGET = 0.25, "120s"
CORPUS = synthetic.SyntheticConfig(
    keywords=DIGITS, clips_per_keyword=150, confusables_per_keyword=0, negative_hours=0, workers=2
)
STRINGS = {"train": 480, "dev": 40, "test": 120}
SMOKE_STRINGS = {"train": 80, "dev": 5, "test": 5}
SUBSAMPLING = SubsamplingConfig(kind="1d", channels=64)
MODEL = TrainConfig(
    sparse=SparseConfig(subsampling=SUBSAMPLING, layers=2, width=64, patterns=("Local(32)",)),
    frontend={"type": "logmel", "mels": 40},
    batches=BatchConfig(max_s=12.0),
    # so short a training has no time to learn from what is masked
    spec_augment=SpecAugmentConfig(frequency_masks=0, time_masks=0),
    fit=FitConfig(learning_rate=3e-3, warmup_steps=100, averaging=0.99, dev_every=3),
)
FURTHER = FitConfig(learning_rate=2e-3, warmup_steps=30, averaging=0.99, dev_every=3)
HEARD_H = 2.0


def al_demo(*, out: Path, smoke: bool = False) -> None:
    """Train, choose under a budget, train on, compare.

    Parameters
    ----------
    out
        gets corpus/, strings/, runs/ (models and results), report/ (the learning curve), before/
        (transcripts of the first model), scores/ and selection/.
    smoke
        a tiny corpus and trainings that learn nothing, to see that everything runs.
    """
    corpus = dataclasses.replace(CORPUS, clips_per_keyword=20) if smoke else CORPUS
    synthetic.prepare(out / "corpus", corpus)
    strings = {
        name: joined(out / "corpus" / name, out / "strings" / name, count)
        for name, count in (SMOKE_STRINGS if smoke else STRINGS).items()
    }
    count = round(BASE_SHARE * len(strings["train"]))
    split = Split(strings["train"][:count], strings["train"][count:], strings["test"])
    learner = RecogniserLearner(
        train=MODEL,
        further=FURTHER,
        heard_h=0.01 if smoke else HEARD_H,
        dev=tuple(strings["dev"]),
    )
    rows = simulate(
        lambda seed: split,
        queries=QUERIES,
        seeds=[0],
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=out / "runs",
        config=SimulationConfig(shares=SHARES, budget="seconds"),
        settings=learner.settings(),
    )
    compare([out / "runs"], out=out / "report")

    # the same again by hand, as with a pool whose transcripts nobody knows
    model, pool = out / "runs" / "seed-0" / "base" / "model", out / "pool.jsonl.gz"
    manifests.write(split.pool, pool)
    evaluate(model=model, cuts=[out / "strings" / "test"], out=out / "before")
    score(pool, model=model, strategy=list(SCORERS), out=out / "scores")
    scores = scores_folder(
        out / "scores",
        model_sha=model_digest(model),
        config_sha=config_digest(list(SCORERS), ScoringConfig()),
    )
    select(scores, cuts=pool, budget=BUDGET, out=out / "selection")
    print("word error rate on unheard voices, training equally long (the whole pool, fewer times):")
    for row in rows:
        print(f"{row['strategy']:>8}, {row['seconds']:5.0f} s of labels added: {row['wer']:6.1%}")


def joined(clips: Path, out: Path, count: int) -> list[manifests.Cut]:
    """Return strings of one to four digits, made once."""
    if (out / manifests.CUTS_NAME).is_file():
        return list(manifests.read(out))
    config = JoinConfig(clips=(1, 4), gap_s=(0.0, 0.2), recordings=count)
    return list(joining.join(manifests.read(clips), out, config))


if __name__ == "__main__":
    sys.exit(run_recipe(al_demo))
