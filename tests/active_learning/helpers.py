"""A tiny recogniser and spotter, and clips of generated features."""

import string
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import torch
from lhotse import SupervisionSegment
from lhotse.cut import MonoCut
from torch import nn

from speechkit import checkpoint
from speechkit.active_learning.models import Clip, Utterances
from speechkit.errors import AudioError, RequestError
from speechkit.seeds import seed_of

BANDS = 5
LETTERS = " " + string.ascii_lowercase


class Network(nn.Module):
    """Convolution with stride 2, depthwise convolution, LayerNorm, feed-forward, output."""

    def __init__(self, tokens=4, width=6, dropout=0.3, bands=BANDS):
        super().__init__()
        self.down = nn.Conv1d(bands, width, 3, stride=2, padding=1)
        self.depth = nn.Conv1d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.inner = nn.Linear(width, width)
        self.output = nn.Linear(width, tokens)

    def forward(self, features, lengths):
        x = features * _inside(features, lengths)
        x = torch.tanh(self.down(x.mT))
        lengths = (lengths + 1) // 2
        x = x * _inside(x.mT, lengths).mT
        hidden = torch.tanh(self.inner(self.dropout(self.norm(self.depth(x).mT))))
        return self.output(hidden), lengths, hidden


def _inside(x, lengths):
    return (torch.arange(x.shape[1]) < lengths[:, None])[..., None].to(x.dtype)


class TinyRecogniser:
    """A recogniser whose clips' features come from their ids; a folder on disk."""

    blank = 0

    def __init__(self, seed=0, tokens=4, *, dtype=torch.float32, scale=1.6, dropout=0.3):
        torch.manual_seed(seed)
        self.network = Network(tokens, dropout=dropout).to(dtype)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.mul_(scale)
        self.output_layer = self.network.output
        self.tokens = tokens
        self.eval()

    def features(self, cuts):
        pieces = [features_of(cut).to(self.output_layer.weight.dtype) for cut in cuts]
        lengths = torch.tensor([len(piece) for piece in pieces])
        return nn.utils.rnn.pad_sequence(pieces, batch_first=True), lengths

    def tokens_of(self, text):
        known = LETTERS[: self.tokens - 1]
        if strange := set(text) - set(known):
            raise RequestError(f"{min(strange)!r} is no token")
        return [known.index(letter) + 1 for letter in text]

    def text_of(self, tokens):
        return "".join(LETTERS[token - 1] for token in tokens)

    def eval(self):
        self.network.eval()
        return self

    def save(self, folder):
        checkpoint.save_folder(
            folder,
            task="test",
            loader="speechkit.checkpoint:none",
            weights=self.network.state_dict(),
            config={},
            card="",
        )


def features_of(cut):
    """Return features (T, F), 100 frames a second, of a cut that names its own noise."""
    custom = cut.custom or {}
    if custom.get("broken"):
        raise AudioError(f"{cut.id}: cannot be read")
    generator = torch.Generator().manual_seed(seed_of(cut.id))
    frames = round(float(cut.duration) * 100)
    return torch.randn(frames, BANDS, generator=generator) * custom.get("noise", 1.0)


def cut_of(id_, duration_s=0.13, *, text=" a", speaker=None, **custom):
    supervision = SupervisionSegment(
        id=id_, recording_id=id_, start=0, duration=duration_s, text=text, speaker=speaker
    )
    return MonoCut(
        id=id_,
        start=0,
        duration=duration_s,
        channel=0,
        supervisions=[supervision],
        custom=custom or None,
    )


def pool_of(count, seed=0, **custom):
    """Return cuts of 0.06 to 0.4 s."""
    rng = np.random.default_rng(seed)
    return [
        cut_of(f"clip-{i:03d}", round(float(rng.uniform(0.06, 0.4)), 2), speaker=f"s{i % 3}")
        for i in range(count)
    ]


def utterances(model, cuts):
    clips = [Clip(cut, model.features([cut])[0][0]) for cut in cuts]
    return Utterances.of(model, clips)


@dataclass
class TinySpotter:
    """A spotter of four classes."""

    network: nn.Module
    window_frames: int = 10
    hop_samples: int = 160

    def __post_init__(self):
        self.config = SimpleNamespace(labels=("_background_", "yes", "no", "go"))
        self.frontend = self._features
        self.frontend.__func__.config = SimpleNamespace(sample_rate=16_000)
        self.network.eval()

    def _features(self, audio, lengths=None):
        frames = audio[:, : audio.shape[1] // 160 * 160].reshape(len(audio), -1, 160)
        return frames[..., :BANDS] * 10, None

    def eval(self):
        self.network.eval()
        return self
