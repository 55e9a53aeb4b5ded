"""What expected gradient length is held against: chance, length, confidence, and oracles.

Higher means that a clip is wanted more.

Shapes: B clips, S frames out, V tokens.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import jiwer
import torch
from lhotse.cut import Cut
from torch import Tensor, nn

from speechkit import checkpoint, ctc
from speechkit.active_learning.egl import Columns, Egl, logit_gradients
from speechkit.active_learning.hypotheses import Hypotheses, from_draws
from speechkit.active_learning.keyed import keys_of, uniforms
from speechkit.active_learning.models import (
    Clip,
    Listener,
    Recogniser,
    Utterances,
    Windows,
    load_features,
    require_model,
)
from speechkit.ctc_beam import Hypothesis
from speechkit.errors import RequestError
from speechkit.manifests import text_of
from speechkit.ranges import require
from speechkit.seeds import seed_of

logger = logging.getLogger(__name__)

Batch = Utterances | Windows


@dataclass(frozen=True, kw_only=True)
class Random:
    """Chance, from (seed, clip id)."""

    seed: int = 0

    def score(self, batch: Batch) -> Columns:
        """Return a number in (0, 1) a clip."""
        return {"": uniforms(keys_of([c.id for c in batch.clips], seed=self.seed)).tolist()}


@dataclass(frozen=True, kw_only=True)
class Longest:
    """The duration."""

    def score(self, batch: Batch) -> Columns:
        """Return seconds."""
        return {"": [float(clip.cut.duration) for clip in batch.clips]}


@dataclass(frozen=True, kw_only=True)
class Shortest:
    """The duration, negated."""

    def score(self, batch: Batch) -> Columns:
        """Return negative seconds."""
        return {"": [-float(clip.cut.duration) for clip in batch.clips]}


@dataclass(frozen=True, kw_only=True)
class LeastConfidence:
    """-log p of the most probable transcript, over its tokens if ``per_token``."""

    per_token: bool = False

    def score(self, batch: Utterances) -> Columns:
        """Return nats."""
        return {"": [_cost(h) / (_length(h) if self.per_token else 1) for h in batch.best()]}


@dataclass(frozen=True, kw_only=True)
class PredictedCtc:
    """The CTC loss of the most probable transcript over the frames ("pCTC", Huang et al. 2016)."""

    def score(self, batch: Utterances) -> Columns:
        """Return nats a frame."""
        frames = batch.frames.tolist()
        return {"": [_cost(h) / n for h, n in zip(batch.best(), frames, strict=True)]}


@dataclass(frozen=True, kw_only=True)
class FrameEntropy:
    """Entropy of the token at a frame: the mean over the frames, or the sum."""

    total: bool = False

    def score(self, batch: Utterances) -> Columns:
        """Return nats."""
        sums = ctc.frame_entropy(batch.logits, batch.frames).sum(1)
        return {"": (sums if self.total else sums / batch.frames).tolist()}


@dataclass(frozen=True, kw_only=True)
class Margin:
    """How near the second-best transcript comes to the best: log p2 - log p1, at most 0."""

    def score(self, batch: Utterances) -> Columns:
        """Return nats; where the beam holds one transcript, a bound for all others."""
        return {"": [_margin(beam) for beam in batch.beam()]}


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """How much transcripts under dropout differ from each other (Monte Carlo dropout).

    Attributes
    ----------
    passes
        how often each clip is recognised.
    seed
        of the dropout, which depends on it and on the clip's id alone.
    """

    passes: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.passes < 2:
            raise RequestError(f"dropout: passes {self.passes}; give 2 or more")

    def score(self, batch: Utterances) -> Columns:
        """Return the mean character error rate between two transcripts."""
        return {"": [self._of(batch, place) for place in range(len(batch))]}

    def _of(self, batch: Utterances, place: int) -> float:
        # alone, since what is dropped depends on the shape of the batch
        length = batch.lengths[place : place + 1]
        features = batch.features[place : place + 1, : int(length)]
        texts = []
        for number in range(self.passes):
            seed = seed_of("dropout", self.seed, batch.clips[place].id, number)
            with torch.random.fork_rng(), dropout_on(batch.model.network), torch.no_grad():
                torch.manual_seed(seed)
                logits, frames, _ = batch.model.network(features, length)
            texts.append(_greedy(batch.model, logits, frames)[0])
        return disagreement(texts)


@dataclass(frozen=True, kw_only=True)
class Committee:
    """How much the transcripts of several models differ from each other.

    Attributes
    ----------
    models
        folders of recognisers beside the one that scores, joined by "+".
    heard
        by folder, what the members that normalise by speaker know of the pool's.
    """

    models: str
    heard: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def hear(self, pool: Sequence[Cut]) -> None:
        """Let the members measure the speakers of a pool."""
        for folder in self.models.split("+"):
            member = _member(folder)
            if isinstance(member, Listener):
                member.hear(pool)
                self.heard[folder] = member.statistics

    def score(self, batch: Utterances) -> Columns:
        """Return the mean character error rate between two transcripts."""
        texts = [_greedy(batch.model, batch.logits, batch.frames)]
        for folder in self.models.split("+"):
            member = _member(folder)
            if isinstance(member, Listener) and folder in self.heard:
                member.statistics = self.heard[folder]
            cuts = [clip.cut for clip in batch.clips]
            own = [Clip(cut, load_features(member, cut)) for cut in cuts]
            theirs = Utterances.of(member, own)
            texts.append(_greedy(member, theirs.logits, theirs.frames))
        return {"": [disagreement(of_clip) for of_clip in zip(*texts, strict=True)]}


@dataclass(frozen=True, kw_only=True)
class TrueGradient:
    """An oracle: the squared norm of the gradient for the true transcript.

    Attributes
    ----------
    parameters
        as of `Egl`.
    """

    parameters: str = "all"
    egl: Egl = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "egl", Egl(parameters=self.parameters, tolerance=0.0))

    def score(self, batch: Utterances) -> Columns:
        """Return the squared norms; None where there is no transcript, or none that fits."""
        scores: list[float | None] = []
        for place, clip in enumerate(batch.clips):
            truth = self._truth(batch.model, clip, int(batch.frames[place]))
            one = batch.part(place, place + 1)
            scores.append(None if truth is None else self.egl.expectations(one, [truth])[0][0])
        return {"": scores}

    def _truth(self, model: Recogniser, clip: Clip, frames: int) -> Hypotheses | None:
        text = text_of(clip.cut)
        if text is None:
            return None
        try:
            tokens = tuple(model.tokens_of(text))
        except RequestError as error:
            logger.warning("%s: %s", clip.id, error)
            return None
        if not ctc.feasible(frames, tokens):
            logger.warning("%s: %d frames cannot hold %d tokens", clip.id, frames, len(tokens))
            return None
        return from_draws({tokens: 1})


@dataclass(frozen=True, kw_only=True)
class TrueErrors:
    """An oracle: the word error rate of the most probable transcript."""

    def score(self, batch: Utterances) -> Columns:
        """Return errors over words; None where there is no transcript that the model can write."""
        texts = [_reference(batch.model, clip) for clip in batch.clips]
        found = [batch.model.text_of(best.tokens) for best in batch.best()]
        pairs = zip(texts, found, strict=True)
        return {"": [None if text is None else _error_rate(text, heard) for text, heard in pairs]}


def _reference(model: Recogniser, clip: Clip) -> str | None:
    """Return what is said as the model would write it; None where that is not known."""
    text = text_of(clip.cut)
    try:
        return None if text is None else model.text_of(tuple(model.tokens_of(text)))
    except RequestError as error:
        logger.warning("%s: %s", clip.id, error)
        return None


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """An embedding for diverse selections: the output layer's gradient, drawn small.

    The gradient M of the most probable transcript's loss at the output layer (V, d + 1) is kept as
    R^T M Q with fixed normal R and Q, which preserves distances up to an error that falls with the
    size.

    Attributes
    ----------
    size
        of each side.
    seed
        of R and Q.
    """

    size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        require(self, "size", at_least=1)

    def score(self, batch: Utterances) -> Columns:
        """Return size^2 numbers a clip, under the name ``embedding``."""
        sets = [from_draws({h.tokens: 1}) for h in batch.best()]
        left = self._normal("left", batch.logits.shape[2])
        right = self._normal("right", batch.hidden.shape[2] + 1)
        rows = []
        for place, gradient in enumerate(logit_gradients(batch, sets)):
            hidden = batch.hidden[place, : gradient.shape[1]].double().cpu()
            ones = hidden.new_ones(len(hidden), 1)
            inputs = torch.cat([hidden, ones], dim=1) @ right
            rows.append(((gradient[0].cpu() @ left).mT @ inputs).flatten().float().tolist())
        return {"": rows}

    def _normal(self, side: str, count: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed_of("sketch", side, self.seed))
        drawn = torch.randn(count, self.size, generator=generator, dtype=torch.float64)
        return drawn / math.sqrt(self.size)


@contextmanager
def dropout_on(network: nn.Module) -> Iterator[None]:
    """Let dropout alone act as in training.

    Raises
    ------
    RequestError
        if the network has none.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    if not any(layer.p > 0 for layer in layers):
        raise RequestError("dropout: the model has no layer of dropout; use another strategy")
    try:
        for layer in layers:
            layer.train()
        yield
    finally:
        network.eval()


def disagreement(texts: Sequence[str]) -> float:
    """Return the mean character error rate over all pairs of texts, the longer as the reference."""
    pairs = [sorted(pair, key=lambda text: (-len(text), text)) for pair in combinations(texts, 2)]
    return math.fsum(_character_distance(*pair) for pair in pairs) / len(pairs)


def _character_distance(longer: str, shorter: str) -> float:
    return float(jiwer.cer(longer, shorter)) if longer.strip() else 0.0


def _error_rate(reference: str, hypothesis: str) -> float:
    """Return the word error rate; of an empty reference, the number of words."""
    if not reference.strip():
        return float(len(hypothesis.split()))
    return float(jiwer.wer(reference, hypothesis))


def _greedy(model: Recogniser, logits: Tensor, frames: Tensor) -> list[str]:
    paths = ctc.greedy(logits, frames, blank=model.blank)
    return [model.text_of(path.tokens) for path in paths]


def _cost(hypothesis: Hypothesis) -> float:
    return -hypothesis.log_prob


def _length(hypothesis: Hypothesis) -> int:
    return max(1, len(hypothesis.tokens))


def _margin(beam: Sequence[Hypothesis]) -> float:
    first = beam[0].log_prob
    if len(beam) > 1:
        return beam[1].log_prob - first
    rest = max(-math.expm1(min(first, 0.0)), 1e-300)
    return min(0.0, math.log(rest) - first)


@cache
def _member(folder: str) -> Recogniser:
    model = require_model(checkpoint.load_model(Path(folder)), source=folder)
    if not isinstance(model, Recogniser):
        raise RequestError(f"{folder}: is no recogniser, which a committee is made of")
    return model
