r"""LibriSpeech: 100 hours on one GPU, or 960 hours on several.

    python recipes/asr_librispeech.py --root LibriSpeech --out out/ls100
    python recipes/asr_librispeech.py --root LibriSpeech --out out/ls960 --hours 960 --devices 8
    python recipes/asr_librispeech.py --root LibriSpeech --out out/try --dry-run

ROOT is the folder that the archives of OpenSLR 12 unpack to, with train-clean-100, dev-clean and so
on. The model is in OUT/model; OUT/PART/report.json scores each of the dev and test parts. A dry run
goes all the way with a tiny encoder and a few clips of each part.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Literal

from lhotse import CutSet
from lhotse.recipes.librispeech import prepare_librispeech

from speechkit import manifests
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.evaluate import evaluate_with
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.batching import BatchConfig
from speechkit.claims import claim
from speechkit.cli import run_recipe
from speechkit.errors import RequestError

DEV = ("dev-clean", "dev-other")
TEST = ("test-clean", "test-other")
ALL = ("train-clean-100", "train-clean-360", "train-other-500")
TRAINING = {100: ALL[:1], 960: ALL}
HUNDRED = TrainConfig(
    sparse=SparseConfig(
        subsampling=SubsamplingConfig(channels=128),
        layers=12,
        width=256,
        patterns=("Local(64)", "Local(64)", "Local(256)"),
        convolution=31,
    ),
    tokens="sentencepiece",
    token_count=300,
    batches=BatchConfig(max_s=900.0),
    fit=FitConfig(epochs=120, warmup_steps=5_000, precision="bf16", average_epochs=10, workers=8),
)
WHOLE = dataclasses.replace(
    HUNDRED,
    sparse=dataclasses.replace(HUNDRED.sparse, layers=18, width=512, heads=8),
    token_count=1000,
    fit=dataclasses.replace(HUNDRED.fit, epochs=50, warmup_steps=15_000),
)
DRY = TrainConfig(
    sparse=SparseConfig(subsampling=SubsamplingConfig(channels=4), layers=1, width=16, heads=2),
    fit=FitConfig(epochs=1),
)


def asr_librispeech(
    *,
    root: Path,
    out: Path,
    hours: Literal[100, 960] = 100,
    devices: int = 1,
    nodes: int = 1,
    dry_run: bool = False,
    jobs: int = 8,
) -> None:
    """Prepare LibriSpeech, train, and score its dev and test parts.

    Parameters
    ----------
    root
        the folder with the parts.
    out
        gets cuts/ (a manifest a part), model/, and a report for each part.
    hours
        of training material; sizes go with it.
    devices, nodes
        GPUs of each machine, and machines; a step holds 15 minutes of speech on each.
    dry_run
        a tiny encoder, a few clips, one epoch: to see that everything runs.
    jobs
        threads that read the corpus.
    """
    config = DRY if dry_run else {100: HUNDRED, 960: WHOLE}[hours]
    fit = dataclasses.replace(config.fit, devices=devices, nodes=nodes)
    cuts = {
        part: list(prepared(root, part, out / "cuts", jobs))[: 20 if dry_run else None]
        for part in (*TRAINING[hours], *DEV, *TEST)
    }
    recogniser = train_recogniser(
        [cut for part in TRAINING[hours] for cut in cuts[part]],
        [cut for part in DEV for cut in cuts[part]],
        out=out,
        config=dataclasses.replace(config, fit=fit),
    )
    transcriber = Transcriber(recogniser, DecodingConfig(own_lm=False))
    for part in (*DEV, *TEST):
        scored = evaluate_with(transcriber, cuts[part], out=out / part, model=str(out / "model"))
        print(f"{part}: WER {scored.words.rate:.2%}, CER {scored.characters.rate:.2%}")


def prepared(root: Path, part: str, out: Path, jobs: int) -> CutSet:
    """Return the cuts of a part; lhotse reads the corpus when it is asked for first."""
    path = out / part / manifests.CUTS_NAME
    if not (path.is_file() or (root / part).is_dir()):
        raise RequestError(f"{root}: has no {part}; unpack {part}.tar.gz of OpenSLR 12 there")
    claim(path.parent, {"root": str(root.resolve())}, file="corpus.json")
    if not path.is_file():
        found = prepare_librispeech(root, dataset_parts=part, num_jobs=jobs)[part]
        manifests.write(CutSet.from_manifests(**found), path)
    return manifests.read(path)


if __name__ == "__main__":
    sys.exit(run_recipe(asr_librispeech))
