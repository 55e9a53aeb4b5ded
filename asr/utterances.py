"""What a training step reads: cuts with their tokens, and batches of them, augmented.

What is drawn for an utterance depends on (seed, epoch, cut id) alone: not on the batch, the worker
or whether the run was interrupted. Shapes: B utterances, N samples or T frames.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor
from torch.utils.data import Dataset

from speechkit import augment, ctc, features, manifests, specaugment
from speechkit.asr.recogniser import Recogniser, reference_of
from speechkit.asr.tokenizer import out_of_vocabulary
from speechkit.asr.vocal_tract import change_vocal_tract
from speechkit.audio import Audio
from speechkit.batching import BatchConfig, CutBatch
from speechkit.errors import RequestError
from speechkit.features import Inputs, Statistics
from speechkit.ranges import require, require_ascending
from speechkit.seeds import seed_of
from speechkit.specaugment import SpecAugmentConfig

logger = logging.getLogger(__name__)

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to utterances in training, before SpecAugment.

    Parameters
    ----------
    speeds
        factors, one of which is drawn for each utterance: of audio, pitch changes too; of stored
        features, rhythm alone.
    noise_probability, snr_db
        how often noise is mixed into audio, and between which signal-to-noise ratios.
    gain_db
        audio is made louder or softer by up to so much.
    vocal_tract
        resonances are moved by up to this share, in stored features that are cepstra, C0 first; 0
        for other features.
    """

    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    noise_probability: float = 0.5
    snr_db: tuple[float, float] = (5.0, 30.0)
    gain_db: float = 6.0
    vocal_tract: float = 0.0

    def __post_init__(self) -> None:
        if not self.speeds or not all(0.25 <= speed <= 4 for speed in self.speeds):
            raise RequestError(f"speeds {self.speeds}: give at least one factor of 0.25 to 4")
        require(self, "vocal_tract", at_least=0, below=0.5)
        require(self, "noise_probability", at_least=0, at_most=1)
        require(self, "gain_db", at_least=0)
        require_ascending(self, "snr_db")


@dataclass(frozen=True, slots=True)
class Utterance:
    """A cut that can be trained on."""

    cut: Cut
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Checked:
    """Utterances to train on or to measure, and why others are not among them (id -> reason)."""

    utterances: tuple[Utterance, ...]
    dropped: dict[str, str]

    @property
    def cuts(self) -> list[Cut]:
        """The cuts of the utterances."""
        return [utterance.cut for utterance in self.utterances]

    @property
    def tokens(self) -> dict[str, tuple[int, ...]]:
        """Id -> tokens."""
        return {utterance.cut.id: utterance.tokens for utterance in self.utterances}


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run reads, and how.

    Parameters
    ----------
    training, dev
        checked utterances.
    statistics
        of the speakers of both, where the inputs are normalised by speaker.
    noises
        cuts to mix in.
    """

    training: Checked
    dev: Checked
    statistics: Statistics = Statistics()
    noises: tuple[Cut, ...] = ()
    batches: BatchConfig = BatchConfig()
    augment: AugmentConfig = AugmentConfig()
    spec_augment: SpecAugmentConfig = SpecAugmentConfig()
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Padded inputs (B, N) or (B, T, F), lengths (B,), and all else that a step needs."""

    x: Tensor
    lengths: Tensor
    tokens: tuple[tuple[int, ...], ...]
    ids: tuple[str, ...]
    speakers: tuple[str | None, ...]
    epoch: int = 0

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        moved = self.x.to(device), self.lengths.to(device)
        return Batch(*moved, self.tokens, self.ids, self.speakers, self.epoch)


def check(
    cuts: Iterable[Cut],
    recogniser: Recogniser,
    *,
    fastest: float = 1.0,
    max_unknown: float = 0.0,
    what: str = "training",
) -> Checked:
    """Sort out what CTC cannot learn: utterances without text, or with too little time for it.

    Parameters
    ----------
    fastest
        the highest speed that the utterances will be played at.
    max_unknown
        share of characters outside the tokenizer that is borne.

    Raises
    ------
    RequestError
        if more characters are unknown, ids repeat, a cut lacks the features that the recogniser
        reads, or no utterance is left.
    """
    cuts = list(cuts)
    recogniser.inputs.require(cuts)
    texts = {cut.id: (cut, reference_of(cut, recogniser.normaliser)) for cut in cuts}
    if len(texts) < len(cuts):
        raise RequestError(f"{what}: {len(cuts) - len(texts)} ids occur twice; give each cut once")
    spoken = [text for _, text in texts.values() if text]
    out_of_vocabulary(recogniser.tokenizer, spoken).require(at_most=max_unknown)
    kept, dropped = [], {}
    for id_, (cut, text) in texts.items():
        tokens = tuple(recogniser.tokenizer.encode(text or ""))
        heard = recogniser.inputs.frame_count(cut, speed=fastest)
        frames = recogniser.network.output_lengths(torch.tensor([heard]))
        needed = ctc.frames_needed(tokens)
        if text is None:
            dropped[id_] = "no text"
        elif int(frames) < needed:
            dropped[id_] = f"{len(tokens)} tokens need {needed} frames, there are {int(frames)}"
        else:
            kept.append(Utterance(cut, text, tokens))
    if dropped:
        some = [f"{id_} ({reason})" for id_, reason in dropped.items()][:_SHOWN]
        logger.warning("%s: %d utterances left out: %s", what, len(dropped), "; ".join(some))
    if not kept:
        raise RequestError(f"no utterance is left for {what}: give cuts with text of their length")
    return Checked(tuple(kept), dropped)


class Utterances(Dataset[Batch]):
    """Batches, made from `CutBatch`es: read, augmented, padded.

    Parameters
    ----------
    noises
        cuts of noise to mix into audio; white noise without any.
    config
        None leaves utterances as they are.
    """

    def __init__(
        self,
        inputs: Inputs,
        tokens: dict[str, tuple[int, ...]],
        *,
        config: AugmentConfig | None = None,
        noises: Sequence[Cut] = (),
        seed: int = 0,
    ) -> None:
        self.inputs = inputs
        self.tokens = tokens
        self.config = config
        self.noises = list(noises)
        self.seed = seed

    def __getitem__(self, batch: CutBatch) -> Batch:
        x, lengths = features.pad([self._load(cut, batch.epoch) for cut in batch.cuts])
        return Batch(
            x,
            lengths,
            tuple(self.tokens[cut.id] for cut in batch.cuts),
            tuple(cut.id for cut in batch.cuts),
            tuple(manifests.speaker_of(cut) for cut in batch.cuts),
            batch.epoch,
        )

    def _load(self, cut: Cut, epoch: int) -> Tensor:
        x = self.inputs.load(cut)
        if self.config is None:
            return x
        rng = np.random.default_rng(seed_of("utterance", self.seed, epoch, cut.id))
        speed = float(rng.choice(self.config.speeds))
        if self.inputs.frontend is None:
            factor = 1 + float(rng.uniform(-1, 1)) * self.config.vocal_tract
            x = change_vocal_tract(x, factor) if self.config.vocal_tract else x
            return specaugment.change_speed(x, speed)
        audio = augment.change_speed(x.numpy(), speed)
        return torch.from_numpy(self._disturb(audio, rng))

    def _disturb(self, audio: Audio, rng: np.random.Generator) -> Audio:
        assert self.config is not None
        if rng.random() < self.config.noise_probability:
            noise = self._noise(len(audio), rng)
            audio = augment.add_noise(audio, noise, snr_db=float(rng.uniform(*self.config.snr_db)))
        return augment.change_gain(audio, float(rng.uniform(-1, 1)) * self.config.gain_db)

    def _noise(self, samples: int, rng: np.random.Generator) -> Audio:
        if not self.noises:
            return rng.standard_normal(samples, dtype=np.float32)
        chosen = self.noises[int(rng.integers(len(self.noises)))]
        return augment.loop_to(self.inputs.load(chosen).numpy(), samples, rng)
