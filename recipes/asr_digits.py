r"""Connected digits from clips of single ones: joined by speaker, trained, measured.

    python recipes/asr_digits.py --clips CLIPS --out out/digits

CLIPS is a manifest whose clips have a digit as text or label, or a folder with a folder for each
word ("seven" or "7"). Clips of other words are left out. Speakers are held out for dev and for
test, and named in OUT/dev_speakers.txt and OUT/test_speakers.txt; all digits of a recording are of
one speaker. The model is in OUT/model, the report on test in OUT/report.md.
"""

import dataclasses
import sys
from pathlib import Path

from lhotse import CutSet

from speechkit import corpora, joining, manifests
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.evaluate import evaluate_with
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.cli import run_recipe
from speechkit.errors import RequestError
from speechkit.files import write_text
from speechkit.joining import JoinConfig
from speechkit.splits import hold_out_speakers

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DIGITS = {**{word: word for word in (*WORDS, "oh")}, **dict(zip("0123456789", WORDS, strict=True))}
SMALL = TrainConfig(
    sparse=SparseConfig(
        subsampling=SubsamplingConfig(kind="2d", channels=32),
        layers=4,
        width=128,
        patterns=("Local(32)",),
    ),
    fit=FitConfig(epochs=30, max_minutes=20.0, learning_rate=2e-3, warmup_steps=200),
)


def asr_digits(
    *,
    clips: list[Path],
    out: Path,
    held_out: int = 1,
    recordings: int = 2000,
    joining_config: JoinConfig = JoinConfig(clips=(3, 7), same_speaker=True),
    config: TrainConfig = SMALL,
) -> None:
    """Train a recogniser of digit strings, measure it on speakers that it never heard.

    Parameters
    ----------
    clips
        manifests, or folders with a folder for each word.
    out
        gets model/, report.json, report.md, the joined recordings and the speakers held out.
    held_out
        how many speakers are for dev, and how many for test.
    recordings
        how many are made for training; clips come again in them, in other company. A tenth as many
        are made for dev and for test.
    joining_config
        how many digits a recording holds, and the gaps between them.
    """
    digits = digits_of(clips)
    parts = {}
    for part in ("test", "dev"):
        digits, held, speakers = hold_out_speakers(digits, held_out, seed=config.seed)
        write_text(out / f"{part}_speakers.txt", "".join(f"{name}\n" for name in speakers))
        parts[part] = joined(held, out / part, max(1, recordings // 10), joining_config)
    training = joined(digits, out / "train", recordings, joining_config)
    recogniser = train_recogniser(list(training), list(parts["dev"]), out=out, config=config)
    transcriber = Transcriber(recogniser, DecodingConfig(own_lm=False))
    scored = evaluate_with(transcriber, list(parts["test"]), out=out, model=str(out / "model"))
    strings = 1 - scored.wrong_utterances / len(scored.utterances)
    print(f"WER {scored.words.rate:.2%}, {strings:.2%} of strings right; report: {out}/report.md")


def digits_of(sources: list[Path]) -> CutSet:
    """Return the clips of digits in manifests or folders of words, with the digit as text."""
    folders = [path for path in sources if path.is_dir() and not list(path.glob("*.jsonl*"))]
    read = [corpora.prepare_keyword_folders(path)["all"] for path in folders]
    read += [manifests.read(path) for path in sources if path not in folders]
    digits = []
    for cut in (cut for cuts in read for cut in cuts):
        said = manifests.label_of(cut) or manifests.text_of(cut) or ""
        if said.lower() in DIGITS and cut.supervisions:
            spoken = cut.supervisions[0]
            spoken.text = DIGITS[said.lower()]
            (spoken.custom or {}).pop("text_norm", None)  # it would be read in place of the text
            digits.append(cut)
    if not digits:
        raise RequestError("no clip has a digit as text or label, such as seven or 7")
    return CutSet.from_cuts(digits)


def joined(clips: CutSet, out: Path, count: int, config: JoinConfig) -> CutSet:
    """Write so many recordings made of clips, each of one speaker or as the settings say."""
    return joining.join(clips, out, dataclasses.replace(config, recordings=count))


if __name__ == "__main__":
    sys.exit(run_recipe(asr_digits))
