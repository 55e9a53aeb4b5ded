r"""Does active learning pay for a spotter of commands? Clips of one word, divided by speaker.

    python recipes/al_commands.py --root FOLDER --noise NOISE --out out/al_commands
    speechkit al compare out/al_commands/runs --out out/al_commands/report

FOLDER holds a manifest of clips with label and speaker, such as Speech Commands: ten of its words
are the commands, all others are "unknown". The speakers to measure on are set aside; the clips of
the others are dealt to base and pool. The error is the share of clips that get the wrong one of
twelve classes. The spotter is a small CRNN (78,620 parameters), in scenes plain enough to learn
from in minutes, so that labels and not steps limit it; the last epoch is measured, since a choice
by the few misses on a dev set would be a draw that differs from cell to cell.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit import manifests
from speechkit.active_learning.simulate import SHARES, SimulationConfig, simulate
from speechkit.active_learning.study import divide
from speechkit.cli import run_recipe
from speechkit.kws.fit import FitConfig
from speechkit.kws.learner import SPOTTER
from speechkit.kws.scenes import SceneConfig
from speechkit.kws.train import TrainConfig

QUERIES = ("random", "egl", "egl:parameters=logits", "entropy", "margin")
FOLDS, TEST_FOLDS, BASE_SHARE = 10, (0, 1, 2), 0.05
PLAIN = SceneConfig(
    scenes=8,
    windows=8,
    positive_share=0.7,
    neighbour_probability=0.2,
    snr_db=(0.0, 30.0),
    noise_probability=0.7,
    second_noise_probability=0.0,
    noise_change_probability=0.0,
    rir_probability=0.0,
    speed_probability=0.5,
)
SMALL = TrainConfig(
    network={"type": "crnn", "filters": 16, "recurrent_units": 16},
    classes="unknown-silence",
    scenes=PLAIN,
    fit=FitConfig(
        epochs=5, steps=300, learning_rate=4e-3, hard_windows=0, averaging=0.98, workers=0
    ),
)
FURTHER = dataclasses.replace(SMALL.fit, epochs=4, steps=300, learning_rate=3e-3, drops=1)


def al_commands(
    *,
    root: Path,
    out: Path,
    noise: list[Path] | None = None,
    seeds: int = 6,
    first_seed: int = 0,
    queries: list[str] | None = None,
    shares: tuple[float, ...] = SHARES,
    config: TrainConfig = SMALL,
    further: FitConfig = FURTHER,
    cells: Path | None = None,
) -> None:
    """Simulate active learning on keyword clips; run again to go on.

    Parameters
    ----------
    root
        a manifest of clips of one word, or a folder with one.
    out
        gets runs/results.jsonl.
    noise
        manifests of noise to train in; white noise without any.
    seeds, first_seed, queries, shares
        how many seeds, from which on; strategies, and shares of the pool.
    config, further
        of a base model, and the optimisation of those that go on from it.
    cells
        a file of rows that were measured elsewhere; gets the new ones.
    """
    clips = list(manifests.read(root))
    spoken = [cut for cut in clips if manifests.speaker_of(cut)]
    silent = [cut for cut in clips if not manifests.speaker_of(cut)]
    of = manifests.folds(spoken, FOLDS, by="speaker").of
    of |= manifests.folds(silent, FOLDS, by="clip").of if silent else {}
    training = [cut for cut in clips if of[cut.id] not in TEST_FOLDS]
    test = [cut for cut in clips if of[cut.id] in TEST_FOLDS]
    learner = dataclasses.replace(
        SPOTTER,
        train=config,
        further=further,
        noises=tuple(manifests.read_all(noise)) if noise else (),
        keep="last",
    )
    simulate(
        lambda seed: divide(training, test, base_share=BASE_SHARE, seed=seed),
        queries=queries or QUERIES,
        seeds=range(first_seed, first_seed + seeds),
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=out / "runs",
        config=SimulationConfig(shares=shares),
        carried=cells,
        settings={
            "train": dataclasses.asdict(config),
            "further": dataclasses.asdict(further),
            "data": [manifests.fingerprint(part) for part in (training, test)],
            "noise": manifests.fingerprint(learner.noises),
        },
    )
    print(f"next: speechkit al compare {out / 'runs'} --out {out / 'report'}")


if __name__ == "__main__":
    sys.exit(run_recipe(al_commands))
