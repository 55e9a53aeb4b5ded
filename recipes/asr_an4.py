r"""CMU AN4: spelled names, numbers and dates, from published features or from the audio corpus.

    python recipes/asr_an4.py --root FOLDER --out out/an4

FOLDER holds manifest.jsonl and feats.npz, or a manifest of the audio corpus. Eight speakers are
held out, named in OUT/dev_speakers.txt. The model is in OUT/model. A bigram language model of the
training texts is in OUT/lm.arpa, and in the model's folder, where it is used unless --no-own-lm is
given. OUT/report.json scores the held-out speakers greedily, OUT/lm/report.json with the language
model, whose weights were chosen on them. Another portion of the same form is scored by

    speechkit data prepare an4_features --root OTHER --out out/other
    speechkit asr evaluate --model out/an4/model --cuts out/other --out out/other-report
"""

import sys
from pathlib import Path

from speechkit import an4
from speechkit.asr import kneser_ney
from speechkit.asr.decoding import DecodingConfig, attach_language_model
from speechkit.asr.encoders import SparseConfig
from speechkit.asr.evaluate import evaluate_with
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.subsampling import SubsamplingConfig
from speechkit.asr.train import TrainConfig, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.asr.tune_lm import choose_weights
from speechkit.asr.utterances import AugmentConfig
from speechkit.batching import BatchConfig
from speechkit.cli import run_recipe
from speechkit.features import InputConfig
from speechkit.files import write_text
from speechkit.specaugment import SpecAugmentConfig
from speechkit.splits import hold_out_speakers

DEV_SPEAKERS = 8
SMALL_DATA = TrainConfig(
    sparse=SparseConfig(
        subsampling=SubsamplingConfig(kind="1d", channels=144),
        layers=4,
        width=144,
        patterns=("Local(64)",),
        dropout=0.2,
    ),
    inputs=InputConfig(deltas=2, normalisation="speaker"),
    spec_augment=SpecAugmentConfig(time_masks=3, time_width=25, frequency_share=0.3),
    batches=BatchConfig(max_s=60.0),
    augment=AugmentConfig(speeds=(0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.15), vocal_tract=0.1),
    fit=FitConfig(
        epochs=150,
        max_minutes=36.0,
        learning_rate=2e-3,
        warmup_steps=300,
        spec_augment_after=600,
        # against learning 844 utterances by heart: two masked views of each must agree
        consistency=0.2,
    ),
)


def asr_an4(*, root: Path, out: Path, config: TrainConfig = SMALL_DATA) -> None:
    """Train on AN4, evaluate on held-out speakers with and without a language model.

    Parameters
    ----------
    root
        the folder with manifest.jsonl and feats.npz, or a manifest of the audio corpus.
    out
        gets model/, lm.arpa, dev_speakers.txt, report.json, lm/report.json and cuts/.
    """
    cuts = an4.read(root, out / "cuts")
    training, dev, speakers = hold_out_speakers(cuts, DEV_SPEAKERS, seed=config.seed)
    write_text(out / "dev_speakers.txt", "".join(f"{name}\n" for name in speakers))
    recogniser = train_recogniser(list(training), list(dev), out=out, config=config)
    lm = kneser_ney.train([recogniser.reference(cut) or "" for cut in training], order=2)
    lm.save(out / "lm.arpa")
    chosen = choose_weights(recogniser, list(dev), out / "lm.arpa")
    weights = {"lm_weight": chosen.lm_weight or 0.0, "word_bonus": chosen.word_bonus or 0.0}
    attach_language_model(out / "model", lm, **weights)
    for folder, decoding in ((out, DecodingConfig(own_lm=False)), (out / "lm", chosen)):
        transcriber = Transcriber(recogniser, decoding)
        scored = evaluate_with(transcriber, list(dev), out=folder, model=str(out / "model"))
        print(f"{folder}: WER {scored.words.rate:.2%}, CER {scored.characters.rate:.2%}")


if __name__ == "__main__":
    sys.exit(run_recipe(asr_an4))
