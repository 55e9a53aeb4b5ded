r"""Does active learning pay on connected digits under noise? Clips of digits are joined at random.

    python recipes/al_digits.py --root FOLDER --out out/al_digits
    speechkit al compare out/al_digits/runs --out out/al_digits/report

FOLDER holds a manifest of single digits with text and speaker, such as fsdd. Of ten folds by clip
two are joined to utterances to measure on, one to those that choose epochs, the rest to the pool.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from speechkit import manifests
from speechkit.active_learning.jsonl import write_rows
from speechkit.active_learning.simulate import SHARES, SimulationConfig, simulate
from speechkit.active_learning.study import divide
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.learner import RecogniserLearner
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig
from speechkit.asr.utterances import AugmentConfig
from speechkit.audio import SAMPLE_RATE, load_cut, write_audio
from speechkit.augment import add_noise
from speechkit.batching import BatchConfig
from speechkit.claims import claim
from speechkit.cli import run_recipe
from speechkit.seeds import seed_of

QUERIES = ("random", "longest", "entropy", "pctc", "true_gradient", "egl", "egl:parameters=output")
MOST_DIGITS, GAP_S, SNR_DB, BASE_SHARE = 7, (0.02, 0.25), (-5.0, 25.0), 0.1
FOLDS, TEST, DEV, LEARNT = 10, range(2), range(2, 3), range(3, 10)
SUBSAMPLING = SubsamplingConfig(kind="1d", channels=64)
SMALL = TrainConfig(
    sparse=SparseConfig(subsampling=SUBSAMPLING, layers=2, width=64, patterns=("Local(32)",)),
    frontend={"type": "logmel", "mels": 40},
    batches=BatchConfig(max_s=40.0),
    augment=AugmentConfig(noise_probability=0.0),
    fit=FitConfig(learning_rate=3e-3, warmup_steps=100, averaging=0.99, epochs=100, dev_every=5),
)
FURTHER = replace(SMALL.fit, learning_rate=1.5e-3, warmup_steps=30, spec_augment_after=0, epochs=20)


def al_digits(
    *,
    root: Path,
    out: Path,
    seeds: int = 10,
    first_seed: int = 0,
    utterances: int = 600,
    queries: list[str] | None = None,
    shares: tuple[float, ...] = SHARES,
    config: TrainConfig = SMALL,
    further: FitConfig = FURTHER,
    cells: Path | None = None,
) -> None:
    """Join digits, simulate active learning; run again to go on.

    Parameters
    ----------
    root
        a manifest of single digits, or a folder with one.
    out
        gets training/, dev/ and test/ (joined digits), and runs/results.jsonl.
    utterances
        joined for base and pool; a third as many to measure on, a tenth to choose epochs on.
    seeds, first_seed, queries, shares
        how many seeds, from which on; strategies, and shares of the pool.
    config, further, cells
        of a base model; of those that go on from it; a file of rows that were measured elsewhere.
    """
    digits = list(manifests.read(root))
    claim(out, {"digits": manifests.fingerprint(digits), "utterances": utterances}, file="of.json")
    of = manifests.folds(digits, FOLDS, by="clip").of
    test, dev, training = (
        join([c for c in digits if of[c.id] in folds], utterances // part, out / name)
        for name, folds, part in (("test", TEST, 3), ("dev", DEV, 10), ("training", LEARNT, 1))
    )
    train = replace(config, alphabet=manifests.alphabet(training))
    learner = RecogniserLearner(train=train, further=further, dev=tuple(dev))
    simulate(
        lambda seed: divide(training, test, base_share=BASE_SHARE, seed=seed),
        queries=queries or QUERIES,
        seeds=range(first_seed, first_seed + seeds),
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=out / "runs",
        config=SimulationConfig(shares=shares),
        carried=cells,
        settings=learner.settings() | {"utterances": utterances},
    )
    print(f"next: speechkit al compare {out / 'runs'} --out {out / 'report'}")


def join(digits: list[manifests.Cut], count: int, out: Path) -> list[manifests.Cut]:
    """Write utterances of 1 to 7 digits of one speaker, each under white noise of its own level."""
    if not (out / "manifest.jsonl").is_file():
        rows = []
        for number in range(count):
            rng = np.random.default_rng(seed_of("join", out.name, number))
            speaker = manifests.speaker_of(digits[int(rng.integers(len(digits)))])
            own = [cut for cut in digits if manifests.speaker_of(cut) == speaker]
            chosen = [own[i] for i in rng.integers(len(own), size=rng.integers(MOST_DIGITS) + 1)]
            gaps = [round(rng.uniform(*GAP_S) * SAMPLE_RATE) for _ in chosen]
            pairs = zip(gaps, chosen, strict=True)
            gapped = [x for gap, cut in pairs for x in (np.zeros(gap, np.float32), load_cut(cut))]
            speech = np.concatenate(gapped)
            noise, name = rng.standard_normal(len(speech), dtype=np.float32), f"{number:05d}.wav"
            write_audio(out / name, add_noise(speech, noise, snr_db=float(rng.uniform(*SNR_DB))))
            text = " ".join(manifests.text_of(cut) or "" for cut in chosen)
            rows.append({"audio_filepath": name, "text": text, "speaker": speaker})
        write_rows(out / "manifest.jsonl", rows)
    return list(manifests.read(out / "manifest.jsonl"))


if __name__ == "__main__":
    sys.exit(run_recipe(al_digits))
