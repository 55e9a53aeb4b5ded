"""Which frames each token and word of a transcript takes: forced alignment by CTC.

T frames, V tokens, L tokens of the transcript.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import Tensor

from speechkit import ctc
from speechkit.asr.hypothesis import Hypothesis, Word
from speechkit.asr.tokenizer import BLANK, SPACE, Tokenizer
from speechkit.errors import JobError

# CTC emits a token within a frame or two of its sound; this is about half a long vowel
REACH_S = 0.12

# more cells (frames times tokens) than this are cut into pieces: about a second and 200 MB
_CELLS = 100_000_000

# tokens of a piece, at least, and equal tokens on either side of a cut
_PIECE = 500
_MARGIN = 10


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """A token's place in the recording.

    Attributes
    ----------
    start_s, end_s
        the frames that emit the token and its share of the blanks around them.
    peak_s
        the middle of the frame where its posterior is highest.
    confidence
        that posterior.
    """

    token: int
    start_s: float
    end_s: float
    peak_s: float
    confidence: float


def align(
    log_probs: Tensor,
    tokens: Sequence[int],
    *,
    frame_s: float,
    first_s: float | None = None,
    reach_s: float = REACH_S,
) -> list[TokenSpan]:
    """Place the tokens of a transcript on the likeliest CTC path that spells them.

    CTC's tokens are peaks with blanks between: neighbours share the blanks between them, each
    taking at most ``reach_s`` on a side.

    Where the likeliest path of all spells the transcript, as it does for greedy decoding, it is
    the answer. Else Viterbi's algorithm finds it, in time and memory of order T L. When that is
    too much, the problem is cut where both spell the same 20 tokens, in the middle of them.

    Parameters
    ----------
    log_probs
        (T, V) natural log-probabilities, token 0 being the blank.
    frame_s
        period of the frames.
    first_s
        the middle of frame 0; half a period by default: frame t is [t, t + 1) * frame_s.

    Raises
    ------
    JobError
        if the frames are too few for the transcript, or it has no finite probability.
    """
    if not tokens:
        return []
    log_probs = log_probs.detach().float().cpu()
    needed = ctc.frames_needed(tokens)
    if needed > len(log_probs):
        raise JobError(
            f"a transcript of {len(tokens)} tokens needs at least {needed} frames, the recording "
            f"has {len(log_probs)}; check that they belong together"
        )
    path = log_probs.argmax(dim=1)
    if ctc.collapse(greedy := path.tolist(), blank=BLANK) != tuple(tokens):
        path = _forced(log_probs, tokens, greedy)
    along = log_probs.gather(1, path[:, None])[:, 0]
    if not torch.isfinite(along).all():
        raise JobError("the model gives this transcript no probability; check that it belongs here")
    late_s = 0.0 if first_s is None else first_s - frame_s / 2
    spans = _spans(path.tolist(), along.exp().tolist(), frame_s, reach_s)
    return [_later(span, late_s) for span in spans]


def words_of(spans: Sequence[TokenSpan], tokenizer: Tokenizer) -> tuple[Word, ...]:
    """Join the spans of tokens to words, each as sure as its least sure token."""
    groups: list[list[TokenSpan]] = [[]]
    for span in spans:
        if tokenizer.starts_word(span.token):
            groups.append([])
        # the space alone is no part of a word
        if tokenizer.pieces[span.token] != SPACE:
            groups[-1].append(span)
    # a group is one word, unless bytes in it spell white space of another kind
    return tuple(
        Word(
            text,
            group[0].start_s,
            group[-1].end_s,
            min(span.confidence for span in group),
        )
        for group in groups
        for text in tokenizer.decode(span.token for span in group).split()
    )


def timed(
    log_probs: Tensor,
    tokens: Sequence[int],
    tokenizer: Tokenizer,
    *,
    frame_s: float,
    first_s: float | None = None,
) -> Hypothesis:
    """Return the hypothesis of a decoder's tokens, with times and confidences.

    The whole's confidence is the mean of its words', 1 without words.

    Parameters
    ----------
    log_probs, frame_s, first_s
        as for `align`.
    """
    spans = align(log_probs, tokens, frame_s=frame_s, first_s=first_s)
    words = words_of(spans, tokenizer)
    return Hypothesis(
        text=tokenizer.decode(tokens),
        tokens=tuple(tokens),
        times=tuple(span.peak_s for span in spans),
        confidence=fmean([word.confidence or 0.0 for word in words] or [1.0]),
        words=words,
    )


def _forced(log_probs: Tensor, tokens: Sequence[int], greedy: list[int]) -> Tensor:
    """Return the likeliest path (T,) that spells the tokens."""
    cuts = [(0, 0), (len(log_probs), len(tokens))]
    if len(log_probs) * len(tokens) > _CELLS:
        finer = [cuts[0], *_anchors(greedy, tokens), cuts[1]]
        pieces = pairwise(finer)
        if all(ctc.feasible(t2 - t1, tokens[l1:l2]) for (t1, l1), (t2, l2) in pieces):
            cuts = finer
    return torch.cat(
        [_viterbi(log_probs[t1:t2], tokens[l1:l2]) for (t1, l1), (t2, l2) in pairwise(cuts)]
    )


def _viterbi(log_probs: Tensor, tokens: Sequence[int]) -> Tensor:
    from torchaudio.functional import forced_align

    targets = torch.tensor([list(tokens)])
    return forced_align(log_probs[None].contiguous(), targets, blank=BLANK)[0][0]


def _anchors(greedy: list[int], tokens: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (frame, index of token) where the greedy path and the transcript surely meet."""
    import jiwer

    runs = list(_runs(greedy))
    as_they_are = jiwer.Compose([])
    matched = jiwer.process_words(
        [[str(token) for token in tokens]],
        [[str(greedy[first]) for first, _ in runs]],
        reference_transform=as_they_are,
        hypothesis_transform=as_they_are,
    )
    last = 0
    for chunk in matched.alignments[0]:
        if chunk.type == "equal":
            earliest = max(chunk.ref_start_idx + _MARGIN, last + _PIECE)
            for index in range(earliest, chunk.ref_end_idx - _MARGIN, _PIECE):
                last = index
                yield runs[chunk.hyp_start_idx + index - chunk.ref_start_idx][0], index


def _spans(
    path: list[int], posteriors: list[float], frame_s: float, reach_s: float
) -> Iterator[TokenSpan]:
    runs = list(_runs(path))
    reach = reach_s / frame_s
    # where a token may begin at the earliest: halfway to the one before
    bounds = [0.0, *((a[1] + b[0]) / 2 for a, b in pairwise(runs)), float(len(path))]
    for (first, end), low, high in zip(runs, bounds, bounds[1:], strict=False):
        peak = max(range(first, end), key=posteriors.__getitem__)
        yield TokenSpan(
            token=path[first],
            start_s=max(low, first - reach) * frame_s,
            end_s=min(high, end + reach) * frame_s,
            peak_s=(peak + 0.5) * frame_s,
            confidence=min(posteriors[peak], 1.0),
        )


def _later(span: TokenSpan, by_s: float) -> TokenSpan:
    """Return a span at another time, never before the recording."""
    times = {name: max(0.0, getattr(span, name) + by_s) for name in ("start_s", "end_s", "peak_s")}
    return dataclasses.replace(span, **times)


def _runs(path: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first frame, frame after the last) of each token's run."""
    first = 0
    for frame in range(1, len(path) + 1):
        if frame == len(path) or path[frame] != path[first]:
            if path[first] != BLANK:
                yield first, frame
            first = frame
