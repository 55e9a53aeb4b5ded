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

from speechkit import manifests
from speechkit.asr.evaluate import transcribe_cuts
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.recogniser import Recogniser
from speechkit.asr.scoring import Transcript, score
from speechkit.asr.train import TrainConfig, set_aside, train_recogniser
from speechkit.asr.transcriber import Transcriber
from speechkit.errors import JobError, RequestError


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
    further_h
        the same of a model that goes on from another, which needs less; ``heard_h`` if not given.
    dev
        utterances to choose the best epoch on; a tenth of those to train on, if there are none.
    """

    train: TrainConfig = TrainConfig()
    further: FitConfig | None = None
    heard_h: float | None = None
    further_h: float | None = None
    dev: tuple[Cut, ...] = ()

    def settings(self) -> dict[str, Any]:
        """Return all that models must share to be compared, as plain values."""
        described = dataclasses.asdict(dataclasses.replace(self, dev=()))
        return described | {"dev": manifests.fingerprint(self.dev)}

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
        """Return wer and cer of cuts, transcribed greedily; the model is left as it is.

        Raises
        ------
        RequestError
            if no cut has a text.
        JobError
            if one cannot be read, so that models would be measured on other cuts.
        """
        listener = model.with_calibration(model.calibration)
        references = {cut.id: listener.reference(cut) for cut in cuts}
        spoken = [cut for cut in cuts if references[cut.id] is not None]
        if not spoken:
            raise RequestError(f"none of {len(cuts)} cuts has a text to compare with")
        listener.hear(spoken)
        found, broken = transcribe_cuts(Transcriber(listener), spoken)
        if broken:
            raise JobError(f"{len(broken)} cuts cannot be read: {next(iter(broken.values()))}")
        scored = score(
            Transcript(cut.id, references[cut.id] or "", found[cut.id].text) for cut in spoken
        )
        return {"wer": scored.words.rate, "cer": scored.characters.rate}

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
        optimisation, hours = self.train.fit, self.heard_h
        if start is not None:
            optimisation, hours = self.further or optimisation, self.further_h or hours
        if hours is not None:
            epochs = round(3600 * hours / sum(cut.duration for cut in training))
            optimisation = dataclasses.replace(optimisation, epochs=max(1, epochs))
        return dataclasses.replace(self.train, fit=optimisation, seed=seed)


RECOGNISER = RecogniserLearner()
