"""Train, measure and use a keyword spotter on speech that the machine makes itself.

    python recipes/kws_demo.py --out out/demo            # about 8 minutes on 2 cores
    python recipes/kws_demo.py --out out/smoke --smoke   # a quarter of a minute, learns nothing

It synthesises a corpus, trains the CRNN, measures the miss rate at 0.5 false alarms per hour with
noise at 5 dB, and lets the detector listen to a stream. (recipes/kws_wake_word.py also mines false
alarms; on so few voices, a second round with them makes voices that were never heard worse.)
"""

import dataclasses
import sys
from pathlib import Path

from speechkit import audio, manifests, synthetic
from speechkit.cli import run_recipe
from speechkit.files import write_json
from speechkit.kws.clips import load_clips
from speechkit.kws.detect import listen_to
from speechkit.kws.detector import Detector
from speechkit.kws.evaluate import evaluate
from speechkit.kws.fit import FitConfig
from speechkit.kws.streams import background_stream
from speechkit.kws.train import TrainConfig, train

KEYWORD = "bumblebee"
CORPUS = synthetic.SyntheticConfig(
    keywords=(KEYWORD,), negative_hours=6.0, dev_share=0.14, test_share=0.36, workers=2
)
# lower rates fit the voices at hand better, and those of dev worse
TRAINING = TrainConfig(fit=FitConfig(epochs=6, steps=300, drops=0, patience=6))
SMOKE_CORPUS = dataclasses.replace(
    CORPUS,
    clips_per_keyword=60,
    confusables_per_keyword=5,
    clips_per_confusable=5,
    negative_hours=0.1,
)
SMOKE_TRAINING = TrainConfig(fit=FitConfig(epochs=3, steps=5))


def kws_demo(*, out: Path, smoke: bool = False) -> None:
    """Train, measure and use a keyword spotter on synthetic speech.

    Parameters
    ----------
    out
        the folder for corpus, models and reports.
    smoke
        a tiny corpus and a short training, to see that everything runs.
    """
    corpus = out / ("smoke-corpus" if smoke else "corpus")
    synthetic.prepare(corpus, SMOKE_CORPUS if smoke else CORPUS)
    split = {name: [corpus / name] for name in ("train", "dev", "test", "rir")}
    noise = {name: [corpus / "noise" / f"{name}.jsonl.gz"] for name in ("train", "dev", "test")}
    train(
        keywords=[KEYWORD],
        positives=split["train"],
        negatives=split["train"],
        noise=noise["train"],
        rir=split["rir"],
        dev_positives=split["dev"],
        dev_negatives=split["dev"],
        dev_noise=noise["dev"],
        out=out,
        config=SMOKE_TRAINING if smoke else TRAINING,
    )
    evaluate(
        model=out / "model",
        positives=split["test"],
        negatives=split["test"],
        noise=noise["test"],
        snr=["clean", "5"],
        fa_per_hour=[0.5, 1.0],
        out=out / "report",
    )
    listen(out / "model", corpus, out / "stream.wav")
    print(f"report and DET curve: {out / 'report'}")


def listen(model: Path, corpus: Path, wav: Path) -> None:
    """Print what the detector hears in a minute of speech with the keyword at known times."""
    cuts = list(manifests.read(corpus / "test"))
    keyword = [cut for cut in cuts if manifests.label_of(cut) == KEYWORD]
    others = [cut for cut in cuts if manifests.label_of(cut) is None]
    noises = load_clips(manifests.read(corpus / "noise" / "test.jsonl.gz"), what="noise").clips
    stream = background_stream(
        load_clips(keyword[:: max(1, len(keyword) // 6)][:6], what="keywords").clips,
        load_clips(others[:: max(1, len(others) // 40)], what="sentences").clips,
        noises,
        hours=1 / 60,
        snr_db=10,
        speech_share=1.0,
    )
    audio.write_audio(wav, stream.audio)
    ends_s = [piece.span.end / audio.SAMPLE_RATE for piece in stream.pieces]
    print(f"{KEYWORD!r} ends in {wav} at {', '.join(f'{end_s:.2f}' for end_s in ends_s)} s; heard:")
    heard = list(listen_to(Detector.load(model), audio.chunks(wav, chunk_s=0.1)))
    for detection in heard:
        print(f"{detection.time_s:7.2f} s  {detection.keyword}  score {detection.score:.3f}")
    detections = [dataclasses.asdict(detection) for detection in heard]
    write_json(wav.with_suffix(".json"), {"ends_s": ends_s, "detections": detections})


if __name__ == "__main__":
    sys.exit(run_recipe(kws_demo))
