r"""Ten commands of Speech Commands: 12-class accuracy, and misses at false alarms per hour.

    speechkit data prepare speech_commands --root speech_commands_v0.02 --out data/commands
    python recipes/kws_speech_commands.py --commands data/commands --sentences speech.jsonl \
        --negatives talk.jsonl --noise data/commands/noise --out out/commands

Train, valid and test are those of the corpus; where it has none, clips are divided by speaker.
False alarms are counted on --sentences, as far as they are free of the ten words; training hears
other speech only where --negatives gives some. The reports are OUT/report.md (on the other words,
and the tested part of --negatives) and OUT/sentences/report.md. OUT/accuracy.json also has the
mean over the classes: the official test has six times as many other words as clips of a command.
"""

import dataclasses
import sys
from pathlib import Path

from speechkit import manifests
from speechkit.cli import run_recipe
from speechkit.corpora import NOISE
from speechkit.files import write_json
from speechkit.kws.classify import accuracy
from speechkit.kws.clips import load_clip
from speechkit.kws.evaluate import evaluate
from speechkit.kws.fit import FitConfig
from speechkit.kws.learner import COMMANDS, SPOTTER
from speechkit.kws.pipeline import PipelineConfig, run
from speechkit.kws.spotter import Spotter

TWELVE_CLASSES = PipelineConfig(
    rounds=1, conditions=("clean", "5"), fa_per_hour=(0.5, 2.0), train=SPOTTER.train
)


def kws_speech_commands(
    *,
    commands: list[Path],
    out: Path,
    sentences: list[Path] | None = None,
    negatives: list[Path] | None = None,
    noise: list[Path] | None = None,
    rir: list[Path] | None = None,
    fit: FitConfig = FitConfig(),
) -> None:
    """Train the CRNN on ten commands; report accuracy over 12 classes and per-word miss rates.

    Parameters
    ----------
    commands
        manifests of Speech Commands, or any with the ten words as labels.
    out
        gets model/, accuracy.json, the report on other words, and sentences/ with that on speech.
    sentences
        manifests of transcribed speech to count false alarms on.
    negatives
        manifests of speech to train with besides, none of it in sentences.
    noise, rir
        manifests of background noise and of room impulse responses.
    fit
        optimisation; it stops early on dev.
    """
    words = list(manifests.read_all(commands))
    official = {"train", "valid", "test"} <= {manifests.split_of(cut) for cut in words}
    config = dataclasses.replace(
        TWELVE_CLASSES,
        split_by="corpus" if official else "speaker",
        train=dataclasses.replace(TWELVE_CLASSES.train, fit=fit),
    )
    run(
        COMMANDS,
        positives=commands,
        negatives=negatives or [],
        noise=noise or (),
        rir=rir or (),
        out=out,
        config=config,
    )
    tests = [out / "test-positives.jsonl.gz", out / "test-negatives.jsonl.gz"]
    # minutes of noise are no clips of a class
    known = {cut.id for cut in words if manifests.label_of(cut) != NOISE}
    tested = [cut for cut in manifests.read_all(tests) if cut.id in known]
    clips = [(load_clip(cut), SPOTTER.class_of(cut)) for cut in tested]
    result = accuracy(Spotter.load(out / "model"), clips)
    interval = result.interval
    figures = {"accuracy": result.share, "low": interval.low, "high": interval.high}
    figures |= {"balanced": result.balanced, "clips": len(clips)}
    write_json(out / "accuracy.json", figures)
    print(
        f"12-class accuracy {result.share:.2%} ({result.right} of {len(clips)} clips; "
        f"95 %: {interval.low:.2%} to {interval.high:.2%}); mean of classes {result.balanced:.2%}"
    )
    if sentences:
        evaluate(
            model=out / "model",
            positives=tests[:1],
            negatives=sentences,
            noise=[out / "test-noise.jsonl.gz"] if noise else None,
            snr=list(config.conditions),
            fa_per_hour=list(config.fa_per_hour),
            out=out / "sentences",
        )


if __name__ == "__main__":
    sys.exit(run_recipe(kws_speech_commands))
