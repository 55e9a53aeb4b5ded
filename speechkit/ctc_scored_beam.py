"""The prefix beam search of one clip with a scorer, such as a language model or a lexicon.

A trie of prefixes in plain Python: a scorer's states are arbitrary values, so nothing is batched.
"""

import heapq
import math
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from speechkit.ctc import Tokens
from speechkit.errors import RequestError

State = TypeVar("State")

NO_TOKEN = -1


@dataclass(frozen=True, kw_only=True)
class BeamConfig:
    """What the search keeps.

    Parameters
    ----------
    beam
        prefixes kept after each frame.
    nbest
        hypotheses returned for a clip, at most; all of the beam when None.
    max_tokens
        tokens other than the blank considered at a frame, the most probable ones.
    min_log_prob
        tokens below this log-probability are not considered at a frame.
    max_gap
        with a scorer: it is not asked about a token that would leave a prefix, before its bonus,
        so many nats below the best prefix.
    """

    beam: int = 16
    nbest: int | None = None
    max_tokens: int = 64
    min_log_prob: float = -10.0
    max_gap: float = 10.0

    def __post_init__(self) -> None:
        counts = {"beam": self.beam, "nbest": self.nbest, "max_tokens": self.max_tokens}
        for name, count in counts.items():
            if count is not None and count < 1:
                raise RequestError(f"{name} {count}: must be 1 or more")


@dataclass(frozen=True)
class Frames:
    """Probabilities by frame, with the tokens worth considering.

    all (T, B, V); blank (T, B); kept (T, B, C) and tokens (T, B, C): the kept ones other than the
    blank, most probable first, 0 where pruned; count (T,): how many any clip keeps at a frame.
    """

    all: NDArray[np.float64]
    blank: NDArray[np.float64]
    kept: NDArray[np.float64]
    tokens: NDArray[np.int64]
    count: list[int]


class Scorer(Protocol[State]):
    """Judges transcripts token by token: a language model, a lexicon, or both."""

    def start(self) -> State:
        """Return the state before the first token."""

    def score(self, state: State, token: int) -> tuple[float, State]:
        """Return what a token adds to the score (-inf forbids it), and the state after it."""

    def finish(self, state: State) -> float:
        """Return what the end of the transcript adds to the score (-inf forbids it)."""


class _Node(Generic[State]):
    """A prefix in the search with a scorer, with its children as far as they were met.

    in_blank and in_label are masses as in `_Beam`, next_* those of the frame being worked on;
    ``listed`` says that the prefix is already among the frame's candidates.
    """

    __slots__ = (
        "bonus",
        "children",
        "ending",
        "in_blank",
        "in_label",
        "last",
        "listed",
        "next_blank",
        "next_label",
        "parent",
        "state",
    )

    def __init__(
        self, parent: "_Node[State] | None", last: int, bonus: float, state: State
    ) -> None:
        self.parent = parent
        self.last = last
        self.bonus = bonus
        self.state = state
        self.children: dict[int, _Node[State] | None] = {}
        self.ending: float | None = None
        self.in_blank = self.in_label = self.next_blank = self.next_label = 0.0
        self.listed = False

    def grow(self, token: int, scorer: Scorer[State]) -> "_Node[State] | None":
        """Return the prefix with one token more; None when the scorer forbids it."""
        bonus, state = scorer.score(self.state, token)
        total = self.bonus + bonus
        child = None if total == -math.inf else _Node(self, token, total, state)
        self.children[token] = child
        return child

    def end(self, scorer: Scorer[State]) -> float:
        """Return what ending here adds to the score; -inf where the scorer forbids it."""
        if self.ending is None:
            self.ending = scorer.finish(self.state)
        return self.ending

    def settle(self, scale: float) -> None:
        """Make the masses of the frame worked on the present ones."""
        self.in_blank, self.in_label = self.next_blank * scale, self.next_label * scale
        self.next_blank = self.next_label = 0.0
        self.listed = False

    def rank(self) -> float:
        """Return the score, up to what all prefixes of a frame share."""
        mass = self.in_blank + self.in_label
        return self.bonus + math.log(mass) if mass > 0 else -math.inf

    def tokens(self) -> Tokens:
        """Return the labels of the prefix."""
        labels = []
        node = self
        while node.parent is not None:
            labels.append(node.last)
            node = node.parent
        return tuple(reversed(labels))


def search_with(
    scorer: Scorer[State], frames: Frames, *, clip: int, config: BeamConfig
) -> list[tuple[Tokens, float]]:
    """Return what the beam of one clip ends with, and the scores with the scorer's part."""
    root = _Node(None, NO_TOKEN, 0.0, scorer.start())
    root.in_blank = 1.0
    beam = [root]
    log_scale = 0.0
    for step in range(len(frames.count)):
        candidates = _spread(beam, frames, step, clip, scorer, config.max_gap)
        _, shift = math.frexp(max(node.next_blank + node.next_label for node in candidates))
        shift = max(shift, -1000)
        log_scale += shift * math.log(2)
        for node in candidates:
            node.settle(2.0**-shift)
        if len(candidates) > config.beam:
            candidates = _best(candidates, config.beam, scorer)
        beam = candidates
    ends = [(node.rank() + node.end(scorer) + log_scale, node.tokens()) for node in beam]
    finished = [end for end in ends if end[0] > -math.inf]
    best = heapq.nlargest(config.nbest or config.beam, finished or ends)
    return [(tokens, score) for score, tokens in best]


def _best(candidates: list[_Node[State]], beam: int, scorer: Scorer[State]) -> list[_Node[State]]:
    """Return the best prefixes, the best that may end here among them.

    A beam full of beginnings of words would have nothing to say if the clip ended. So there is one
    prefix more than asked for, unless one of them may end anyway.
    """
    kept = heapq.nlargest(beam, candidates, key=_Node.rank)
    if not any(node.end(scorer) > -math.inf for node in kept):
        whole = [node for node in candidates if node.end(scorer) > -math.inf]
        kept += heapq.nlargest(1, whole, key=_Node.rank)
    return kept


def _spread(
    beam: list[_Node[State]],
    frames: Frames,
    step: int,
    clip: int,
    scorer: Scorer[State],
    max_gap: float,
) -> list[_Node[State]]:
    """Return the prefixes that a frame leads to, with their next masses."""
    chances = frames.all[step, clip].tolist()
    blank = float(frames.blank[step, clip])
    count = int(np.count_nonzero(frames.kept[step, clip]))
    kept = frames.tokens[step, clip, :count].tolist()
    floor = max(node.rank() for node in beam) - max_gap
    for node in beam:
        node.listed = True
    candidates = list(beam)
    for node in beam:
        total = node.in_blank + node.in_label
        node.next_blank += total * blank
        node.next_label += node.in_label * chances[node.last]
        children = node.children
        # no mass is above 1
        least = math.exp(min(floor - node.bonus, 0.0))
        for token in kept:
            # the most probable token comes first
            if total * chances[token] < least:
                break
            child = children[token] if token in children else node.grow(token, scorer)
            if child is None:
                continue
            if not child.listed:
                child.listed = True
                candidates.append(child)
            # a token after itself needs a blank between
            source = node.in_blank if token == node.last else total
            child.next_label += source * chances[token]
    return candidates
