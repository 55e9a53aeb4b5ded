"""What is asked of a model so that clips can be scored with it, and what it says of a batch.

Models are seen through protocols: nothing here knows the package that a model comes from.

Shapes: B clips, T frames in, S frames out, F features, V tokens, d width, C classes, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import torch
from lhotse.cut import Cut
from torch import Tensor, nn

from speechkit import ctc, ctc_beam
from speechkit.audio import load_cut
from speechkit.augment import energy_span
from speechkit.ctc_beam import Hypothesis
from speechkit.errors import AudioError, RequestError


@runtime_checkable
class Recogniser(Protocol):
    """A speech recogniser with a CTC output layer."""

    network: nn.Module
    """Maps features (B, T, F) and lengths to logits (B, S, V), lengths and hidden (B, S, d)."""
    output_layer: nn.Linear
    """The network's own layer that turns hidden into logits."""
    blank: int

    def features(self, cuts: Sequence[Cut]) -> tuple[Tensor, Tensor]:
        """Return the features (B, T, F) of clips, and their lengths (B,); nothing random in it."""

    def tokens_of(self, text: str) -> list[int]:
        """Return the tokens of a text; `RequestError` if it has none."""

    def text_of(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""

    def eval(self) -> Self:
        """Switch to evaluation mode."""


@runtime_checkable
class KeywordSpotter(Protocol):
    """A classifier of windows of features."""

    network: nn.Module
    """Maps windows (B, T, F) to logits (B, C); its last linear layer makes them."""
    config: Any
    """Holds ``labels``, the names of the classes."""
    frontend: Any
    """Maps audio (B, N) to features (B, T, F) and lengths."""

    @property
    def window_frames(self) -> int:
        """Frames of a window."""

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""

    def eval(self) -> Self:
        """Switch to evaluation mode."""


@runtime_checkable
class Listener(Protocol):
    """A model that may want to know the speakers of the clips that it is given."""

    statistics: Any

    def hear(self, cuts: Sequence[Cut]) -> None:
        """Measure the speakers, into ``statistics``."""


Model = Recogniser | KeywordSpotter

# of the beam that finds the best hypothesis
BEST_WIDTH = 16

# features of a front-end that adapts have a past before the window begins
_LEAD_S = 1.5


@dataclass(frozen=True)
class Clip:
    """A clip that is being scored, with its features (T, F)."""

    cut: Cut
    features: Tensor

    @property
    def id(self) -> str:
        """The cut's id."""
        return str(self.cut.id)


@dataclass
class Utterances:
    """What a recogniser says of a batch of clips.

    Attributes
    ----------
    clips
        B of them.
    features, lengths
        (B, T, F), padded with 0, and (B,).
    logits, frames, hidden
        (B, S, V), (B,) and (B, S, d), detached.
    beams
        by width, the hypotheses of each clip that were searched for so far.
    """

    model: Recogniser
    clips: Sequence[Clip]
    features: Tensor
    lengths: Tensor
    logits: Tensor
    frames: Tensor
    hidden: Tensor
    beams: dict[int, list[list[Hypothesis]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Recogniser, clips: Sequence[Clip]) -> Self:
        """Run a recogniser, in evaluation mode, over a batch."""
        device = next(model.network.parameters()).device
        pieces = [clip.features for clip in clips]
        features = nn.utils.rnn.pad_sequence(pieces, batch_first=True).to(device)
        lengths = torch.tensor([len(piece) for piece in pieces], device=device)
        model.eval()
        with torch.no_grad():
            logits, frames, hidden = model.network(features, lengths)
        if int(frames.min()) < 1:
            place = int(frames.argmin())
            raise AudioError(f"{clips[place].id}: too short, no frame is left of its features")
        return cls(model, clips, features, lengths, logits, frames.to(device), hidden)

    def part(self, first: int, last: int) -> Self:
        """Return some clips of the batch."""
        rows = slice(first, last)
        return type(self)(
            self.model,
            self.clips[rows],
            self.features[rows],
            self.lengths[rows],
            self.logits[rows],
            self.frames[rows],
            self.hidden[rows],
            {width: found[rows] for width, found in self.beams.items()},
        )

    def __len__(self) -> int:
        return len(self.clips)

    @property
    def blank(self) -> int:
        """The token that stands for none."""
        return self.model.blank

    def posteriors(self, place: int) -> Tensor:
        """Log-posteriors (S, V) of one clip without padding, float64."""
        valid = self.logits[place, : int(self.frames[place])]
        return ctc.log_posteriors(valid, blank=self.blank)[0]

    def beam(self, width: int = BEST_WIDTH) -> list[list[Hypothesis]]:
        """Return each clip's hypotheses, best first, from a beam without a language model."""
        if width not in self.beams:
            config = ctc_beam.BeamConfig(beam=width)
            found = ctc_beam.beam_search(self.logits, self.frames, config=config, blank=self.blank)
            self.beams[width] = [_possible(hypotheses) for hypotheses in found]
        return self.beams[width]

    def best(self) -> list[Hypothesis]:
        """Return each clip's most probable hypothesis of a beam of `BEST_WIDTH`."""
        return [hypotheses[0] for hypotheses in self.beam()]


@dataclass(frozen=True)
class Windows:
    """What a keyword spotter says of a batch of clips.

    Attributes
    ----------
    clips
        B of them.
    features
        (B, T, F).
    logits
        (B, C), detached.
    """

    model: KeywordSpotter
    clips: Sequence[Clip]
    features: Tensor
    logits: Tensor

    @classmethod
    def of(cls, model: KeywordSpotter, clips: Sequence[Clip]) -> Self:
        """Run a spotter, in evaluation mode, over a batch."""
        device = next(model.network.parameters()).device
        features = torch.stack([clip.features for clip in clips]).to(device)
        model.eval()
        with torch.no_grad():
            return cls(model, clips, features, model.network(features))

    def __len__(self) -> int:
        return len(self.clips)

    def log_posteriors(self) -> Tensor:
        """Log-posteriors of the classes (B, C), float64."""
        return self.logits.double().log_softmax(-1)


def require_model(model: Any, *, source: object) -> Model:
    """Return the model in evaluation mode if clips can be scored with it.

    Raises
    ------
    RequestError
        if it is neither a recogniser nor a keyword spotter.
    """
    if isinstance(model, Recogniser | KeywordSpotter):
        return model.eval()
    raise RequestError(
        f"{source}: a {type(model).__name__} cannot score clips; give a recogniser or a keyword "
        "spotter"
    )


def load_features(model: Model, cut: Cut) -> Tensor:
    """Return the features (T, F) of one clip: of all of it, or of a spotter's window in it.

    Raises
    ------
    AudioError
        if the clip cannot be read, or its features are not finite.
    """
    if isinstance(model, Recogniser):
        features, lengths = model.features([cut])
        features = features[0, : int(lengths[0])]
    else:
        features = _window(model, cut)
    if not features.isfinite().all():
        raise AudioError(f"{cut.id}: its features are not finite")
    return features


def describe_batch(model: Model, clips: Sequence[Clip]) -> Utterances | Windows:
    """Run a model over a batch."""
    if isinstance(model, Recogniser):
        return Utterances.of(model, clips)
    return Windows.of(model, clips)


@torch.no_grad()
def _window(model: KeywordSpotter, cut: Cut) -> Tensor:
    """Return the features of the window about the middle of the speech, as in classifying."""
    rate = model.frontend.config.sample_rate
    audio = load_cut(cut, sample_rate=rate)
    if len(audio) == 0:
        raise AudioError(f"{cut.id}: holds no samples")
    span = energy_span(audio)
    lead, window = round(_LEAD_S * rate), (model.window_frames - 1) * model.hop_samples
    padded = np.concatenate([np.zeros(lead, np.float32), audio, np.zeros(window, np.float32)])
    first = max(0, (lead + (span.start + span.end) // 2 - window // 2) // model.hop_samples)
    features, _ = model.frontend(torch.from_numpy(padded)[None])
    return torch.as_tensor(features[0, first : first + model.window_frames])


def _possible(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """Drop what has no path of so many frames; what the beam ends with has one, up to rounding."""
    return [h for h in hypotheses if np.isfinite(h.log_prob)]
