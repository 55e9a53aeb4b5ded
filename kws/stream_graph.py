"""A spotter as one step of a stream: a chunk of audio and a state in, scores and a state out.

`speechkit kws export` writes it as a graph for devices. What `Detector` does with any chunks, this
does with chunks of exactly one shift, so that all shapes are fixed. Its modules are the spotter's
own, and `Detector` is the reference.

Shapes: N samples of a chunk, H samples held back, J frames of a chunk, R frames remembered, F mel
bands, L windows averaged, K keywords.
"""

import torch
from torch import Tensor, nn

from speechkit.kws.spotter import Spotter

# what a stream carries from chunk to chunk, in this order
STATE = ("audio", "level", "features", "recent", "chunks")


class StreamGraph(nn.Module):
    """One step of a spotter along a stream."""

    def __init__(self, spotter: Spotter) -> None:
        super().__init__()
        frontend = spotter.frontend
        config, hop = frontend.config, frontend.hop_samples
        self.spotter = spotter
        self.shift = spotter.shift_frames
        self.chunk_samples = self.shift * hop
        # each chunk gives as many frames as fit into it; the first ones so many before the stream
        whole = (config.lead_samples + self.chunk_samples - config.window_samples) // hop + 1
        before = self.shift - whole
        self.held_samples = config.lead_samples + before * hop
        # the chunk and the place in it of frame 0
        self.begins, self.place = divmod(before, self.shift)
        newest = self.shift - before - 1  # frame of the first chunk
        # chunks until the first window is whole, and frames from its start to the newest then
        self.first_chunk = -((newest - spotter.window_frames + 1) // self.shift)
        self.frames = newest + self.first_chunk * self.shift + 1

    def start(self) -> dict[str, Tensor]:
        """Return the state at the start of a stream, zeros of the shapes that it always has.

        They are (H,), (1, mel columns), (R, F), (L - 1, K) and (1,).
        """
        spotter = self.spotter
        bands, keywords = spotter.frontend.bands, len(spotter.keywords)
        shapes = (
            torch.zeros(self.held_samples),
            torch.zeros(1, spotter.frontend.mel.columns),
            torch.zeros(self.frames - self.shift, bands),
            torch.zeros(spotter.config.detection.smoothing_windows - 1, keywords).double(),
            torch.zeros(1, dtype=torch.int64),
        )
        return dict(zip(STATE, shapes, strict=True))

    def forward(self, chunk: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Take a chunk (N,) in [-1, 1]; return smoothed scores (K,) and the state that follows.

        Scores are 0 until the first window is whole.
        """
        audio, level, remembered, recent, chunks = state
        span = torch.cat([audio, chunk])
        energies = self.spotter.frontend.mel(span[None])
        # before the stream there is nothing: its first frame stands for what was
        begun = chunks > self.begins
        first = energies[:, self.place]
        level = torch.where(begun, level, first)
        early = torch.where(begun, energies[:, : self.place], first[:, None])
        energies = torch.cat([early, energies[:, self.place :]], dim=1)
        features, carry = self.spotter.frontend.features(energies, level)
        known = torch.cat([remembered, features[0]])
        score = self.spotter.keyword_scores(known[None, : self.spotter.window_frames])[0]
        windows = chunks - self.first_chunk + 1
        score = score * (windows > 0)
        scores = torch.cat([recent, score[None]])
        smoothed = scores.sum(dim=0) / windows.clamp(1, len(scores))
        following = (
            span[self.chunk_samples :],
            level if carry is None else carry,
            known[self.shift :],
            scores[1:],
            chunks + 1,
        )
        return smoothed, *following
