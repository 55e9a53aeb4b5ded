"""Training and measuring a spotter of many classes as active learning asks for it.

`SPOTTER` is the learner that `speechkit al simulate speechkit.kws.learner:SPOTTER` names.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lhotse.cut import Cut

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws.classify import accuracy
from speechkit.kws.clips import Clip, load_clips
from speechkit.kws.dealing import deal
from speechkit.kws.fit import FitConfig
from speechkit.kws.models import describe_network
from speechkit.kws.rows import is_silent, name_of, normalise
from speechkit.kws.scenes import SceneConfig
from speechkit.kws.splits import Split, decode
from speechkit.kws.spotter import BACKGROUND, SILENCE, UNKNOWN, Spotter
from speechkit.kws.train import TrainConfig, train_spotter

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")

_DEV_FOLDS = 6


@dataclass(frozen=True, kw_only=True)
class SpotterLearner:
    """Trains spotters that differ in their clips and seeds alone.

    A clip's class is its label, or the text that an annotator gave it: one of the keywords, silence
    (an empty text, or a label such as ``_silence_`` or ``_noise_``), or any other word. Where
    ``train.classes`` is "keywords", silence and other words are one class.

    Attributes
    ----------
    keywords
        the classes besides silence and other words.
    train
        settings; the epoch with the fewest misses on dev is kept.
    further
        optimisation of a spotter that goes on from another; as in ``train`` if not given.
    noises
        clips of noise for training; white noise without any.
    dev
        clips to choose the epoch on; a sixth of those to train on, if there are none.
    keep
        the epoch that is best on dev, or the last one, which needs no dev and freezes no threshold:
        for studies, whose models must not differ by their luck on dev.
    """

    keywords: tuple[str, ...] = COMMANDS
    train: TrainConfig = TrainConfig(
        classes="unknown-silence",
        scenes=SceneConfig(positive_share=0.7, neighbour_probability=0.2, snr_db=(0.0, 30.0)),
        fit=FitConfig(epochs=4, steps=100),
    )
    further: FitConfig | None = None
    noises: tuple[Cut, ...] = ()
    dev: tuple[Cut, ...] = ()
    keep: Literal["best", "last"] = "best"
    _decoded: dict[str, Clip] = field(default_factory=dict, init=False, repr=False, compare=False)

    def fit(self, cuts: Sequence[Cut], init: Spotter | None, *, seed: int, out: Path) -> Spotter:
        """Return a spotter trained on cuts, from ``init`` if there is one.

        ``OUT/trained`` marks the end of a training; without it, the run goes on where it was.

        Raises
        ------
        RequestError
            if there are too few clips to set some aside, or a class is not known.
        """
        done = out / "trained"
        if not done.is_file():
            self._train(cuts, init, seed=seed, out=out)
            done.touch()
        shutil.rmtree(out / "resume", ignore_errors=True)
        return Spotter.load(out / "model")

    def evaluate(self, model: Spotter, cuts: Sequence[Cut]) -> dict[str, float]:
        """Return the share of clips whose class is not found, ``error``, and the ``loss``, nats."""
        classes = {cut.id: self.class_of(cut) for cut in cuts}
        clips = load_clips(cuts, what="test", decoded=self._decoded).clips
        labelled = [(clip, classes[clip.id]) for clip in clips]
        found = accuracy(model, labelled)
        return {"error": 1 - found.share, "loss": found.loss}

    def settings(self) -> dict[str, Any]:
        """Return all that models must share to be compared, as plain values."""
        described = dataclasses.asdict(dataclasses.replace(self, dev=(), noises=()))
        del described["_decoded"]
        cuts = {"dev": self.dev, "noises": self.noises}
        return described | {name: manifests.fingerprint(part) for name, part in cuts.items()}

    def class_of(self, cut: Cut) -> str:
        """Return a keyword, or the class of silence, of other words or of both.

        Raises
        ------
        RequestError
            if the clip has neither label nor text.
        """
        name = name_of(cut)
        if name is None:
            raise RequestError(f"clip {cut.id}: has neither label nor text, so no class is known")
        word = normalise(name)
        if word in self.keywords and not is_silent(cut):
            return word
        if self.train.classes == "keywords":
            return BACKGROUND
        return SILENCE if is_silent(cut) else UNKNOWN

    def _train(self, cuts: Sequence[Cut], init: Spotter | None, *, seed: int, out: Path) -> None:
        training, dev = list(cuts), self.dev
        if self.keep == "best" and not dev:
            training, dev = self._set_aside(cuts, seed)
        start, config = None, dataclasses.replace(self.train, seed=seed)
        if init is not None:
            start = out / "init"
            init.save(start)
            config = dataclasses.replace(
                config,
                fit=self.further or config.fit,
                network=describe_network(init.network),
                frontend=init.frontend.describe(),
                detection=init.config.detection,
            )
        train_spotter(
            self._split(training, every_keyword=True),
            self._split(dev, every_keyword=False) if self.keep == "best" else None,
            out=out,
            config=config,
            init=start,
        )

    def _set_aside(self, cuts: Sequence[Cut], seed: int) -> tuple[list[Cut], tuple[Cut, ...]]:
        """Divide clips into training and dev, which gets its part of every class."""
        if len(cuts) < _DEV_FOLDS:
            raise RequestError(
                f"{len(cuts)} clips: too few to set a dev set aside; give {_DEV_FOLDS}, or dev"
            )
        kinds: dict[str, list[Cut]] = {}
        for cut in cuts:
            kinds.setdefault(self.class_of(cut), []).append(cut)
        of = deal(kinds, _DEV_FOLDS, by="clip", seed=seed)
        # the second fold, since of a single clip the first would leave none to train on
        training = [cut for cut in cuts if of[cut.id] != 1]
        return training, tuple(cut for cut in cuts if of[cut.id] == 1)

    def _split(self, cuts: Sequence[Cut], *, every_keyword: bool) -> Split:
        """Decode cuts by class; a keyword without clips still is a class of the network."""
        classes = {cut.id: self.class_of(cut) for cut in cuts}
        positives = {
            word: [cut for cut in cuts if classes[cut.id] == word] for word in self.keywords
        }
        if not every_keyword:
            positives = {word: clips for word, clips in positives.items() if clips}
        others = [cut for cut in cuts if classes[cut.id] not in self.keywords]
        return decode(positives, others, noises=self.noises, decoded=self._decoded)


SPOTTER = SpotterLearner()
