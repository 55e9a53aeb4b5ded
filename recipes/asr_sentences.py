r"""A recogniser of sentences from any transcribed manifests, measured on each of them.

    python recipes/asr_sentences.py --cuts set1.jsonl set2.jsonl --out out/sentences

A portion of each set is held out for test, another for dev: speakers, or else sentences, so that
clips of equal text stay together, and what is held out so in one set is taken out of the training
in all. The model is in OUT/model, the report on all test clips in OUT/report.md, that on each set
in OUT/sets/NAME. Training clips are joined to longer recordings as well, so that long audio is
nothing new.
"""

import sys
from pathlib import Path
from typing import Literal

from lhotse.cut import Cut

from speechkit import joining, manifests
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.evaluate import evaluate_with
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.batching import BatchConfig
from speechkit.cli import run_recipe
from speechkit.errors import RequestError
from speechkit.joining import JoinConfig
from speechkit.splits import hold_out_portions

SMALL = TrainConfig(
    sparse=SparseConfig(
        subsampling=SubsamplingConfig(kind="2d", channels=32),
        layers=6,
        width=144,
        patterns=("Local(64)",),
        dropout=0.15,
    ),
    batches=BatchConfig(max_s=90.0),
    fit=FitConfig(epochs=60, max_minutes=60.0, learning_rate=2e-3, warmup_steps=400),
)


def asr_sentences(
    *,
    cuts: list[Path],
    out: Path,
    folds: int = 10,
    by: Literal["auto", "speaker", "sentence"] = "auto",
    joined_s: float = 60.0,
    config: TrainConfig = SMALL,
) -> None:
    """Train on all sets, report WER and CER of each on clips that were held out.

    Parameters
    ----------
    cuts
        manifests of transcribed clips, each a set.
    out
        gets model/, report.json, report.md, sets/ (a report a set), test.jsonl.gz and joined/.
    folds
        one in so many is for test, one of what is left for dev, and at least one sentence of each
        set; those of one sentence are all for training.
    by
        what is held out; auto: speakers, in sets with as many of them as folds, else sentences.
    joined_s
        training clips are joined to recordings of up to so many seconds too; 0: they are not.
    """
    manifests.read_all(cuts)  # refuses ids that are in two sets
    sets = {
        name_of(path): [c for c in manifests.read(path) if manifests.text_of(c)] for path in cuts
    }
    if len(sets) < len(cuts):
        raise RequestError(f"sets {', '.join(map(name_of, cuts))}: give each a name of its own")
    test, rest = hold_out_portions(sets, folds, by=by, seed=config.seed)
    dev, rest = hold_out_portions(rest, folds, by=by, seed=config.seed + 1)
    training = everything(rest)
    if joined_s:
        long = JoinConfig(clips=None, length_s=(joined_s / 4, joined_s), seed=config.seed)
        short = [cut for cut in training if cut.duration < joined_s]
        training += list(joining.join(short, out / "joined", long))
    manifests.write(everything(test), out / "test.jsonl.gz")
    recogniser = train_recogniser(training, everything(dev), out=out, config=config)
    transcriber = Transcriber(recogniser, DecodingConfig(own_lm=False))
    portions = {f"sets/{name}": clips for name, clips in test.items() if clips}
    for folder, clips in (portions | {".": everything(test)}).items():
        scored = evaluate_with(transcriber, clips, out=out / folder, model=str(out / "model"))
        rates = f"WER {scored.words.rate:.2%}, CER {scored.characters.rate:.2%}"
        print(f"{out / folder}: {rates}, {len(clips)} clips")


def name_of(path: Path) -> str:
    """Return the name of a set: its folder's, or that of a manifest of another name."""
    stem = path.name.partition(".")[0]
    return path.absolute().parent.name if stem in ("manifest", "cuts") else stem


def everything(sets: dict[str, list[Cut]]) -> list[Cut]:
    """Return the clips of all sets."""
    return [cut for clips in sets.values() for cut in clips]


if __name__ == "__main__":
    sys.exit(run_recipe(asr_sentences))
