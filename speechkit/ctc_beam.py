"""Prefix beam search over CTC posteriors: the most probable transcripts, alignments merged.

A prefix is a transcript so far; the search keeps the mass of its paths that end in a blank and of
those that end in its last token, and adds up paths that meet in one prefix (Hannun et al. 2014).
What is found is given its exact log-probability by the forward algorithm. Shapes: B clips, T
frames, W prefixes in the beam, C tokens kept at a frame.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speechkit import ctc
from speechkit.ctc import Tokens
from speechkit.ctc_lattice import IMPOSSIBLE
from speechkit.ctc_scored_beam import BeamConfig, Frames, Scorer, search_with

# the best mass shrinks by no more than beam times tokens a frame, so that doubles last this long
RESCALE_FRAMES = 8

# odd 64-bit constants that mix a prefix's hash with its next token
_MIX = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xC2B2AE3D27D4EB4F)
_HALF = np.uint64(32)
# hashes that no living prefix has: of a dead place in the beam, and of what comes before a prefix
# that has no parent
_DEAD = np.uint64(0)
_NO_PARENT = np.uint64(1)
_EMPTY = np.uint64(0x27D4EB2F165667C5)
_NO_TOKEN = -1

__all__ = ["BeamConfig", "Hypothesis", "Scorer", "beam_search"]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A transcript that the search found.

    Parameters
    ----------
    tokens
        the labels; empty for silence.
    log_prob
        log p(tokens | x), exact, without any scorer's part.
    score
        what the search gave it: its log-probability as far as the beam saw it, with a scorer's
        bonuses.
    """

    tokens: Tokens
    log_prob: float
    score: float


def beam_search(
    log_probs: Tensor,
    lengths: Tensor | None = None,
    *,
    config: BeamConfig | None = None,
    scorer: Scorer[Any] | None = None,
    blank: int = 0,
) -> list[list[Hypothesis]]:
    """Return the n-best transcripts of each clip, best first, at least one.

    Without a scorer they are ordered by their exact log-probability, with one by their score.
    Where a scorer lets none of a clip's hypotheses finish, they come back with the score -inf.

    Parameters
    ----------
    log_probs
        (B, T, V), or (T, V) for one clip: log-probabilities or logits.
    lengths
        (B,), frames of each clip; all of them when None.
    """
    config = config or BeamConfig()
    posteriors = ctc.log_posteriors(log_probs, lengths, blank=blank)
    frames = _prune(posteriors, config, blank)
    if scorer is None:
        found = _search(frames, config)
    else:
        found = [
            search_with(scorer, frames, clip=clip, config=config) for clip in range(len(posteriors))
        ]
    return _exact(posteriors, found, by_score=scorer is not None, blank=blank)


def _exact(
    posteriors: Tensor, found: list[list[tuple[Tokens, float]]], *, by_score: bool, blank: int
) -> list[list[Hypothesis]]:
    """Return what was found with its exact log-probabilities, best first."""
    clips = [clip for clip, row in enumerate(found) for _ in row]
    flat = [tokens for row in found for tokens, _ in row]
    exact = iter(ctc.log_likelihood(posteriors, flat, clips=clips, blank=blank).tolist())

    def order(hypothesis: Hypothesis) -> tuple[float, float, Tokens]:
        first = hypothesis.score if by_score else hypothesis.log_prob
        return -first, -hypothesis.log_prob, hypothesis.tokens

    return [
        sorted((Hypothesis(tokens, next(exact), score) for tokens, score in row), key=order)
        for row in found
    ]


def _prune(posteriors: Tensor, config: BeamConfig, blank: int) -> Frames:
    steps = posteriors.transpose(0, 1).cpu()
    labels = steps.clone()
    labels[..., blank] = IMPOSSIBLE
    top = labels.topk(min(config.max_tokens, labels.shape[-1]), dim=-1)
    worth = top.values >= max(config.min_log_prob, IMPOSSIBLE / 2)
    # some token must go on: the best one where the blank does not
    worth[..., 0] |= steps[..., blank] < config.min_log_prob
    return Frames(
        all=steps.exp().numpy(),
        blank=steps[..., blank].exp().numpy(),
        kept=torch.where(worth, top.values.exp(), 0.0).numpy(),
        tokens=top.indices.numpy(),
        count=worth.sum(-1).amax(-1).tolist() if len(steps) else [],
    )


@dataclass
class _Beam:
    """The prefixes of B clips, and their mass relative to 2 ** exponent; each array (B, W).

    in_blank and in_label are the masses of paths that end in a blank or in the last token. A
    prefix is known by a 64-bit hash of its tokens, which also finds its parent in the beam.
    """

    in_blank: NDArray[np.float64]
    in_label: NDArray[np.float64]
    last: NDArray[np.int64]
    own: NDArray[np.uint64]
    parent: NDArray[np.uint64]
    exponent: NDArray[np.int64]

    @classmethod
    def start(cls, batch: int, width: int) -> "_Beam":
        """Return beams that hold the empty prefix alone."""
        shape = (batch, width)
        beam = cls(
            in_blank=np.zeros(shape),
            in_label=np.zeros(shape),
            last=np.full(shape, _NO_TOKEN),
            own=np.full(shape, _DEAD),
            parent=np.full(shape, _NO_PARENT),
            exponent=np.zeros((batch, 1), np.int64),
        )
        beam.in_blank[:, 0] = 1.0
        beam.own[:, 0] = _EMPTY
        return beam


def _search(frames: Frames, config: BeamConfig) -> list[list[tuple[Tokens, float]]]:
    """Return for each clip what its beam ends with, and the scores."""
    batch = frames.all.shape[1]
    beam = _Beam.start(batch, config.beam)
    history: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    for step, count in enumerate(frames.count):
        spread = _advance(beam, frames, step, count)
        if spread is not None:
            history.append(_select(beam, spread, frames.tokens[step, :, :count]))
        if step % RESCALE_FRAMES == 0:
            _rescale(beam)
    return _trace(beam, history, config.nbest or config.beam)


def _advance(beam: _Beam, frames: Frames, step: int, count: int) -> NDArray[np.float64] | None:
    """Let the prefixes stay as they are for a frame; return the mass of new ones (B, W, C).

    None when the frame keeps no token. A prefix that grows into another one of the beam passes its
    mass on to that one.
    """
    rows = np.arange(len(beam.own))[:, None]
    # the empty prefix has no last token, and no mass that what is looked up for it could touch
    emitted = frames.all[step].take(rows * frames.all.shape[2] + beam.last)
    total = beam.in_blank + beam.in_label
    # born[b, w, a]: prefix w is prefix a and one token
    born = beam.parent[:, :, None] == beam.own[:, None, :]
    same = beam.last[:, :, None] == beam.last[:, None, :]
    source = np.where(same, beam.in_blank[:, None, :], total[:, None, :])
    inflow = np.einsum("bwa,bwa->bw", born, source)
    spread = None
    if count:
        again = frames.tokens[step, :, None, :count] == beam.last[:, :, None]
        taken = born.transpose(0, 2, 1).astype(np.float32) @ again.astype(np.float32)
        spread = np.where(again, beam.in_blank[:, :, None], total[:, :, None])
        spread *= frames.kept[step, :, None, :count]
        spread *= taken == 0
    beam.in_blank = total * frames.blank[step][:, None]
    beam.in_label = (beam.in_label + inflow) * emitted
    return spread


def _select(
    beam: _Beam, spread: NDArray[np.float64], tokens: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Keep the best of old and new prefixes; return for each its origin and its new token."""
    batch, width, count = spread.shape
    rows = np.arange(batch)[:, None]
    stay = beam.in_blank + beam.in_label
    masses = np.concatenate([stay, spread.reshape(batch, -1)], axis=1)
    best = masses.argpartition(masses.shape[1] - width, axis=1)[:, -width:]
    mass = masses.take(rows * masses.shape[1] + best)
    new = best >= width
    origin, place = np.divmod(best - width, count)
    origin = np.where(new, origin, best)
    token = np.where(new, tokens.take(rows * tokens.shape[1] + place), _NO_TOKEN)

    source = rows * width + origin
    own = beam.own.take(source)
    beam.parent = np.where(new, own, beam.parent.take(source))
    beam.own = np.where(new, _extended(own, token), own)
    dead = mass == 0
    beam.parent[dead], beam.own[dead] = _NO_PARENT, _DEAD
    beam.last = np.where(new, token, beam.last.take(source))
    beam.in_blank = np.where(new, 0.0, beam.in_blank.take(source))
    beam.in_label = np.where(new, mass, beam.in_label.take(source))
    return origin, token


def _extended(own: NDArray[np.uint64], token: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the hashes of prefixes with one token more."""
    mixed = (own ^ (token.astype(np.uint64) * _MIX)) * _SPREAD
    return mixed ^ (mixed >> _HALF)


def _rescale(beam: _Beam) -> None:
    """Divide masses by a power of two, which rounds nothing, so that they never vanish."""
    _, shift = np.frexp((beam.in_blank + beam.in_label).max(axis=1, keepdims=True))
    beam.in_blank = np.ldexp(beam.in_blank, -shift)
    beam.in_label = np.ldexp(beam.in_label, -shift)
    beam.exponent += shift


def _trace(
    beam: _Beam, history: list[tuple[NDArray[np.int64], NDArray[np.int64]]], nbest: int
) -> list[list[tuple[Tokens, float]]]:
    """Return the tokens and scores of the best prefixes of each clip."""
    mass = beam.in_blank + beam.in_label
    place = np.argsort(-mass, axis=1, kind="stable")[:, :nbest]
    rows = np.arange(len(mass))[:, None]
    mass = mass[rows, place]
    picked = []
    for origin, token in reversed(history):
        picked.append(token[rows, place])
        place = origin[rows, place]
    tokens = np.stack(picked[::-1], axis=-1) if picked else np.empty((*mass.shape, 0), np.int64)
    with np.errstate(divide="ignore"):
        scores = np.log(mass) + beam.exponent * math.log(2)
    return [
        [
            (tuple(row[row != _NO_TOKEN].tolist()), float(s))
            for row, s in zip(*clip, strict=True)
            if s > -math.inf
        ]
        for clip in zip(tokens, scores, strict=True)
    ]
