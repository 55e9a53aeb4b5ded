"""Training and measuring a recogniser as active learning asks for it.

`RECOGNISER` is the learner that `speechkit al simulate speechkit.asr.learner:RECOGNISER` names.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from speechkit import ctc, manifests
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.train import TrainConfig, set_aside, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class RecogniserLearner:
    """Trains recognisers that differ in their utterances and seeds alone.

    Attributes
    ----------
    train
        settings of a model that starts anew.
    further
        optimisation of a model that goes on from another; as in ``train`` if not given.
    heard_h
        hours of audio that training hears, repetitions counted, from which the epochs follow: so
        models of few utterances and of many cost the same. None: ``epochs`` as they are.
    dev
        utterances to choose the best epoch on; a tenth of those to train on, if there are none.
    also
        utterances on which models are measured besides, as test_wer, test_cer and test_loss.
    """

    train: TrainConfig = TrainConfig()
    further: FitConfig | None = None
    heard_h: float | None = None
    dev: tuple[Cut, ...] = ()
    also: tuple[Cut, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return all that models must share to be compared, as plain values."""
        described = dataclasses.asdict(dataclasses.replace(self, dev=(), also=()))
        cuts = {"dev": self.dev, "also": self.also}
        return described | {name: manifests.fingerprint(part) for name, part in cuts.items()}

    def fit(
        self, cuts: Sequence[Cut], init: Recogniser | None, *, seed: int, out: Path
    ) -> Recogniser:
        """Return a recogniser trained on cuts, from ``init`` if there is one.

        ``OUT/train.json`` marks the end of a training; without it, the run goes on where it was.
        """
        if not (out / "train.json").is_file():
            self._train(cuts, init, seed=seed, out=out)
        shutil.rmtree(out / "resume", ignore_errors=True)
        recogniser = Recogniser.load(out / "model")
        recogniser.hear(cuts)
        return recogniser

    def evaluate(self, model: Recogniser, cuts: Sequence[Cut]) -> dict[str, float]:
        """Return wer, cer and loss of cuts, and of ``also``; the model is left as it is.

        They are transcribed greedily; the loss is that of CTC, in nats a token. It is finer than
        errors, of which a small test has few.

        Raises
        ------
        RequestError
            if no cut has a text.
        JobError
            if one cannot be read: models would be measured on different cuts.
        """
        device = model.device
        try:
            own = _errors(model, cuts)
            besides = _errors(model, self.also) if self.also else {}
        finally:
            model.to(device)  # a transcriber takes it to the GPU, and what scores next has it here
        return own | {f"test_{name}": error for name, error in besides.items()}

    def _train(
        self, cuts: Sequence[Cut], init: Recogniser | None, seed: int, out: Path
    ) -> Recogniser:
        training, dev = (list(cuts), self.dev) if self.dev else set_aside(cuts, seed=seed)
        start = None
        if init is not None:
            start = out / "init"
            init.save(start)
        return train_recogniser(
            training, dev, out=out, config=self._config(training, seed, start), init=start
        )

    def _config(self, training: Sequence[Cut], seed: int, start: Path | None) -> TrainConfig:
        optimisation = self.train.fit
        if start is not None:
            optimisation = self.further or optimisation
        if self.heard_h is not None:
            epochs = round(3600 * self.heard_h / sum(cut.duration for cut in training))
            optimisation = dataclasses.replace(optimisation, epochs=max(1, epochs))
        return dataclasses.replace(self.train, fit=optimisation, seed=seed)


def _errors(model: Recogniser, cuts: Sequence[Cut]) -> dict[str, float]:
    listener = model.with_calibration(model.calibration)
    references = {cut.id: listener.reference(cut) for cut in cuts}
    spoken = [cut for cut in cuts if references[cut.id] is not None]
    if not spoken:
        raise RequestError(f"none of {len(cuts)} cuts has a text to compare with")
    listener.hear(spoken)
    transcriber = Transcriber(listener)
    transcripts, nats, tokens = [], 0.0, 0
    for cut in spoken:
        reference = references[cut.id] or ""
        log_probs = transcriber.log_probs(cut)
        transcripts.append(Transcript(cut.id, reference, transcriber.decode(log_probs).text))
        target = tuple(listener.tokenizer.encode(reference))
        if ctc.feasible(len(log_probs), target):
            nats -= float(ctc.log_likelihood(log_probs[None], [target])[0])
            tokens += max(1, len(target))
    scored = score(transcripts)
    rates = {"wer": scored.words.rate, "cer": scored.characters.rate}
    return rates | {"loss": nats / max(1, tokens)}


RECOGNISER = RecogniserLearner()
