"""``speechkit asr train``: from manifests to a model folder."""

import dataclasses
import json
import logging
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lhotse.cut import Cut

from speechkit import frontend as frontends
from speechkit import manifests
from speechkit.asr import confidence
from speechkit.asr.confidence import Calibration
from speechkit.asr.dev import overfit
from speechkit.asr.encoders import Network, SparseConfig
from speechkit.asr.evaluate import confidences, transcribe_cuts
from speechkit.asr.fit import fit
from speechkit.asr.normaliser import Normaliser
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.recogniser import Recogniser, reference_of
from speechkit.asr.recurrent import RecurrentConfig
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.tokenizer import Bytes, Characters, SentencePieces, Tokenizer
from speechkit.asr.transcriber import Transcriber
from speechkit.asr.utterances import AugmentConfig, Checked, Material, Utterances, check
from speechkit.batching import BatchConfig, CutBatch
from speechkit.checkpoint import model_digest
from speechkit.claims import claim
from speechkit.errors import RequestError
from speechkit.features import InputConfig, Inputs
from speechkit.files import write_json
from speechkit.reports import provenance
from speechkit.seeds import seed_of
from speechkit.specaugment import SpecAugmentConfig
from speechkit.stored_features import stored_form

logger = logging.getLogger(__name__)

_DEV_FOLDS = 10
_FEWEST_SPEAKERS = 4
_CALIBRATION_CUTS = 500
_OVERFIT_CUTS = 8
_OVERFIT_STEPS = 400
_OVERFIT_WER = 0.02


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that a training run depends on, but for the data.

    Parameters
    ----------
    encoder
        "sparse": attention, configured by `sparse`; "recurrent": configured by `recurrent`.
    tokens, token_count
        characters, bytes, or so many SentencePiece pieces.
    alphabet
        characters to know beside those of the training texts: later labels may hold them.
    frontend
        type and settings of the front-end (logmel, mfcc or pcen) for cuts without features of their
        own, such as {"type": "logmel", "mels": 80}.
    seed
        of weights, batches, augmentation and dropout.
    max_unknown
        share of characters outside the tokenizer that is borne (with `init`, or on dev).
    """

    encoder: Literal["sparse", "recurrent"] = "sparse"
    sparse: SparseConfig = SparseConfig()
    recurrent: RecurrentConfig = RecurrentConfig()
    tokens: Literal["characters", "bytes", "sentencepiece"] = "characters"
    token_count: int = 500
    alphabet: str = ""
    normaliser: Normaliser = Normaliser()
    frontend: dict[str, Any] = field(default_factory=lambda: {"type": "logmel", "mels": 80})
    inputs: InputConfig = InputConfig()
    augment: AugmentConfig = AugmentConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    batches: BatchConfig = BatchConfig()
    fit: FitConfig = FitConfig()
    max_unknown: float = 0.01
    seed: int = 0


def train(
    *,
    cuts: list[Path],
    out: Path,
    dev: list[Path] | None = None,
    noise: list[Path] | None = None,
    init: Path | None = None,
    overfit_batch: bool = False,
    config: TrainConfig = TrainConfig(),
) -> int:
    """Train a recogniser by CTC.

    Run again after an interruption, the same command goes on where it stopped.

    Parameters
    ----------
    cuts
        manifests of transcribed cuts, with audio, or with features already computed.
    out
        gets model/ (best on dev), log.jsonl (a line an epoch), tensorboard/ where that is
        installed, resume/ (the state of the run) and train.json (what was trained on, what was left
        out).
    dev
        manifests to choose the best epoch on; without any about a tenth is set aside, whole
        speakers where four or more are known, and all of them.
    noise
        manifests of background noise for audio; white noise without any.
    init
        a model folder to go on from; inputs, encoder and tokens are then its own.
    overfit_batch
        instead of training, learn a batch by heart, to see that all parts work together; the exit
        status is 1 if it cannot be learnt.
    """
    training = list(manifests.read_all(cuts))
    if overfit_batch:
        return _overfit(training, config, init)
    if dev:
        held = list(manifests.read_all(dev))
        manifests.require_apart(training, held)
    else:
        training, held = set_aside(training, seed=config.seed)
    noises = list(manifests.read_all(noise)) if noise else []
    train_recogniser(training, held, out=out, config=config, noises=noises, init=init)
    logger.info("the model is in %s", out / "model")
    return 0


def train_recogniser(
    training: Sequence[Cut],
    dev: Sequence[Cut],
    *,
    out: Path,
    config: TrainConfig,
    noises: Sequence[Cut] = (),
    init: Path | None = None,
) -> Recogniser:
    """Train on cuts; return the recogniser that is best on ``dev``, which stands in OUT/model."""
    recogniser = new_recogniser(training, config, init)
    if noises and recogniser.inputs.frontend is None:
        raise RequestError("noise: cannot be mixed into features that are stored; leave it out")
    material = _material(recogniser, training, dev, config, noises)
    claim(out, _run(config, material, init))
    best = fit(recogniser, material, config=config.fit, out=out, progress=sys.stderr.isatty())
    epochs = _epochs_of(out / "log.jsonl")
    if _epochs_reported(out / "train.json") == epochs:
        # nothing was left to do, and a language model may have been put into the folder since
        return Recogniser.load(out / "model")
    calibrated = calibrate(best, material.dev.cuts[:_CALIBRATION_CUTS])
    calibrated.save(out / "model")
    report = _report(material, training, dev, config)
    write_json(out / "train.json", {"epochs": epochs, **report})
    return calibrated


def _epochs_of(log: Path) -> int:
    return len(log.read_text(encoding="utf-8").splitlines())


def _epochs_reported(path: Path) -> int | None:
    if not path.is_file():
        return None
    found: int | None = json.loads(path.read_text(encoding="utf-8")).get("epochs")
    return found


def calibrate(recogniser: Recogniser, cuts: Sequence[Cut]) -> Recogniser:
    """Return the recogniser with word confidences that are right as often as they say, on cuts.

    Where all words are right, or all are wrong, there is nothing to learn, and confidences stay.
    """
    plain = recogniser.with_calibration(Calibration())
    plain.hear(cuts)
    found, _ = transcribe_cuts(Transcriber(plain), cuts)
    scored = score(
        Transcript(cut.id, plain.reference(cut) or "", found[cut.id].text)
        for cut in cuts
        if cut.id in found
    )
    try:
        return recogniser.with_calibration(confidence.fit(*confidences(scored, found)))
    except RequestError as error:
        logger.info("confidences are not calibrated: %s", error)
        return recogniser


def new_recogniser(
    training: Sequence[Cut], config: TrainConfig, init: Path | None = None
) -> Recogniser:
    """Return an untrained recogniser for the texts and features of cuts, or the one in ``init``."""
    if init is not None:
        return Recogniser.load(init).train()
    found = (reference_of(cut, config.normaliser) for cut in training)
    tokenizer = _tokenizer([text for text in [*found, config.alphabet] if text], config)
    inputs = Inputs(stored_form(training) or frontends.build(config.frontend), config.inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of("weights", config.seed))
        network = Network(
            config.sparse if config.encoder == "sparse" else config.recurrent,
            inputs.dimensions,
            tokenizer.size,
            blank_bias=config.fit.blank_bias,
        )
    return Recogniser(inputs, network, tokenizer=tokenizer, normaliser=config.normaliser)


def set_aside(cuts: Sequence[Cut], *, seed: int) -> tuple[list[Cut], list[Cut]]:
    """Divide cuts into training and dev: about a tenth, of speakers of its own if there are four.

    Of ten folds the one nearest to a tenth is taken: another may be one speaker with half of all.
    Of fewer than ten speakers each is a fold.
    """
    if len(cuts) < _DEV_FOLDS:
        raise RequestError(
            f"{len(cuts)} cuts: too few to set a dev set aside; give {_DEV_FOLDS} or more, or --dev"
        )
    speakers = {manifests.speaker_of(cut) for cut in cuts}
    few = None not in speakers and _FEWEST_SPEAKERS <= len(speakers) < _DEV_FOLDS
    folds = manifests.folds(cuts, len(speakers) if few else _DEV_FOLDS, seed=seed)
    if folds.by == "clip" and speakers != {None}:
        logger.warning("dev shares speakers with the training part: too few of them are known")
    sizes = Counter(folds.of.values())
    dev = min(sizes, key=lambda fold: (abs(sizes[fold] * _DEV_FOLDS - len(cuts)), fold))
    return [c for c in cuts if folds.of[c.id] != dev], [c for c in cuts if folds.of[c.id] == dev]


def _tokenizer(texts: Sequence[str], config: TrainConfig) -> Tokenizer:
    if config.tokens == "characters":
        return Characters.fit(texts)
    if config.tokens == "bytes":
        return Bytes.fit(texts)
    return SentencePieces.fit(texts, size=config.token_count)


def _material(
    recogniser: Recogniser,
    training: Sequence[Cut],
    dev: Sequence[Cut],
    config: TrainConfig,
    noises: Sequence[Cut],
) -> Material:
    return Material(
        training=check(
            training,
            recogniser,
            fastest=max(config.augment.speeds),
            max_unknown=config.max_unknown,
        ),
        dev=check(dev, recogniser, max_unknown=config.max_unknown, what="dev"),
        statistics=recogniser.inputs.measure_speakers([*training, *dev]),
        noises=tuple(noises),
        batches=config.batches,
        augment=config.augment,
        spec_augment=config.spec_augment,
        seed=config.seed,
    )


def _overfit(training: Sequence[Cut], config: TrainConfig, init: Path | None) -> int:
    recogniser = new_recogniser(training, config, init)
    checked = check(training, recogniser, max_unknown=config.max_unknown)
    some = checked.cuts[:: max(1, len(checked.cuts) // _OVERFIT_CUTS)][:_OVERFIT_CUTS]
    batch = Utterances(recogniser.inputs, checked.tokens)[CutBatch(0, 0, tuple(some))]
    wer = overfit(recogniser, batch, steps=_OVERFIT_STEPS, learning_rate=config.fit.learning_rate)
    learnt = wer <= _OVERFIT_WER
    logger.info(
        "%d utterances %s: WER %.2f %%", len(some), "learnt" if learnt else "NOT learnt", 100 * wer
    )
    return 0 if learnt else 1


def _run(config: TrainConfig, material: Material, init: Path | None) -> dict[str, Any]:
    """Return all that a run depends on."""
    # these change nothing in what a step computes
    fit_config = dataclasses.replace(config.fit, workers=0, max_minutes=None)
    return {
        "config": dataclasses.asdict(dataclasses.replace(config, fit=fit_config)),
        "training": manifests.fingerprint(material.training.cuts, speakers=True),
        "dev": manifests.fingerprint(material.dev.cuts, speakers=True),
        "noises": manifests.fingerprint(material.noises),
        "init": None if init is None else model_digest(init),
    }


def _report(
    material: Material, training: Sequence[Cut], dev: Sequence[Cut], config: TrainConfig
) -> dict[str, Any]:
    parts: dict[str, Checked] = {"training": material.training, "dev": material.dev}
    return {
        "utterances": {name: len(part.utterances) for name, part in parts.items()},
        "hours": {name: sum(c.duration for c in part.cuts) / 3600 for name, part in parts.items()},
        "left_out": {name: part.dropped for name, part in parts.items()},
        "config": dataclasses.asdict(config),
        **provenance(
            seed=config.seed,
            data={"training": manifests.fingerprint(training), "dev": manifests.fingerprint(dev)},
        ),
    }
