r"""Does active learning pay on AN4? A fifth of the utterances is the base, the rest the pool.

    python recipes/al_an4.py --root FOLDER --out out/al_an4
    speechkit al compare out/al_an4/stage-2 --out out/al_an4/stage-2/report

Stage 1 tries every scorer at one share of the pool. Stage 2 compares a few, on fresh seeds, over
all shares; its two forms of EGL are the best of stage 1, fixed in OUT/stage-2/forms.json before it
starts. Eight speakers are held out to measure on, four more to choose epochs on; --test FOLDER adds
test_wer and test_cer, which choose nothing. A seed of stage 2 takes one to two hours of a core:
processes may share a stage, each with its own --first-seed, and --cells FILE carries it on.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

from speechkit import an4, manifests
from speechkit.active_learning.simulate import SHARES, SimulationConfig, simulate
from speechkit.active_learning.study import divide, fixed_best
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.learner import RecogniserLearner
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig
from speechkit.asr.utterances import AugmentConfig
from speechkit.batching import BatchConfig
from speechkit.cli import run_recipe
from speechkit.features import InputConfig
from speechkit.specaugment import SpecAugmentConfig
from speechkit.splits import hold_out_speakers

TEST_SPEAKERS, DEV_SPEAKERS, BASE_SHARE = 8, 4, 0.2
STAGES = {1: (0, 2, (0.0, 0.2)), 2: (100, 8, SHARES)}
EGL_FORMS = (
    "egl", "egl:weights=raw,k=100", "egl:weights=sample", "egl:weights=stratified",
    "egl:power=1", "egl:normalise=frames", "egl:normalise=tokens", "egl:parameters=output",
    "egl:parameters=logits", "egl/per_second", "egl/proportional", "egl/kmeans++",
)  # fmt: skip
BASELINES = ("random", "longest", "entropy", "margin", "pctc", "true_gradient")
# the cascade is no other form of EGL, but the same at less cost
OTHERS = ("cascade", "shortest", "confidence", "confidence_per_token", "entropy_sum", "dropout")
SUBSAMPLING = SubsamplingConfig(kind="1d", channels=96)
SMALL = TrainConfig(
    sparse=SparseConfig(subsampling=SUBSAMPLING, layers=3, width=96, patterns=("Local(64)",)),
    inputs=InputConfig(deltas=2, normalisation="speaker"),
    spec_augment=SpecAugmentConfig(time_masks=2, time_width=20, frequency_share=0.2),
    batches=BatchConfig(max_s=16.0),
    augment=AugmentConfig(speeds=(0.9, 0.95, 1.0, 1.05, 1.1), vocal_tract=0.1),
    fit=FitConfig(
        learning_rate=3e-3, warmup_steps=60, spec_augment_after=250, averaging=0.98, epochs=60
    ),
)
FURTHER = replace(SMALL.fit, learning_rate=2e-3, warmup_steps=30, spec_augment_after=0, epochs=20)


def al_an4(
    *,
    root: Path,
    out: Path,
    stage: Literal[1, 2] | None = None,
    seeds: int | None = None,
    first_seed: int | None = None,
    test: Path | None = None,
    queries: list[str] | None = None,
    config: TrainConfig = SMALL,
    further: FitConfig = FURTHER,
    cells: Path | None = None,
) -> None:
    """Simulate active learning on AN4; run again to go on.

    Parameters
    ----------
    root
        the folder with manifest.jsonl and feats.npz, or a manifest of the audio corpus.
    out
        gets stage-1/ and stage-2/ with results.jsonl.
    stage
        1: every scorer, 2 seeds, one share; 2: the chosen ones on fresh seeds, all shares; or both.
    seeds, first_seed, queries
        how many seeds of the (last) stage, from which on, and strategies in place of its own.
    test
        what else to measure on, of ``root``'s form; give another ``out`` then.
    config, further, cells
        of a base model; of those that go on from it; rows of the (last) stage, see `simulate`.
    """
    if stage is None:
        al_an4(root=root, out=out, stage=1, test=test, config=config, further=further)
        stage = 2
    rest, held, _ = hold_out_speakers(an4.read(root, out / "cuts"), TEST_SPEAKERS)
    training, dev, _ = hold_out_speakers(rest, DEV_SPEAKERS)
    also = tuple(an4.read(test, out / "test")) if test else ()
    train = replace(config, alphabet=manifests.alphabet(training))
    learner = RecogniserLearner(train=train, further=further, dev=tuple(dev), also=also)
    folder = out / f"stage-{stage}"
    first, count, shares = STAGES[stage]
    first = first if first_seed is None else first_seed
    simulate(
        lambda seed: divide(list(training), held, base_share=BASE_SHARE, seed=seed),
        queries=queries or _queries(stage, out),
        seeds=range(first, first + (seeds or count)),
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=folder,
        config=SimulationConfig(shares=shares),
        carried=cells,
        settings={**learner.settings(), "measured": manifests.fingerprint(held)},
    )
    print(f"next: speechkit al compare {folder} --out {folder / 'report'}")


def _queries(stage: int, out: Path) -> list[str]:
    if stage == 1:
        return [*BASELINES, *OTHERS, "true_errors", *EGL_FORMS]
    fixed = out / "stage-2" / "forms.json"
    return [*BASELINES, *fixed_best(fixed, results=out / "stage-1", among=EGL_FORMS, count=2)]


if __name__ == "__main__":
    sys.exit(run_recipe(al_an4))
