"""Connectionist temporal classification: likelihoods, gradients, posteriors and samples, exact.

A path names one token a frame; a transcript is a path with its runs merged and its blanks removed,
and its probability is the sum over its paths (Graves et al. 2006). Shapes: B clips, T frames,
V tokens (the blank among them), K hypotheses, L labels.

Everything but the training loss is computed in float64: at 1,500 frames float32 spoils a
likelihood by a hundredth of a nat and a gradient norm by a percent. Wherever ``log_probs`` are
asked for they are normalised again in float64, so that logits do as well.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from speechkit import ctc_lattice, ctc_scaled
from speechkit.ctc_lattice import IMPOSSIBLE, Job, forward, repeated
from speechkit.errors import JobError, RequestError

Tokens = tuple[int, ...]

# cells of a forward table held at a time (float64, so 64 MiB)
TABLE_CELLS = 2**23


@dataclass(frozen=True)
class LogitGradients:
    """The CTC loss of each hypothesis, as its gradient at the logits sees it.

    Parameters
    ----------
    log_likelihood
        (K,), float64, log p(y | x); -inf where the hypothesis cannot be.
    gradients
        (K, T, V), float64, d(-log p(y | x)) / d logits; 0 at padding and where the hypothesis
        cannot be.
    """

    log_likelihood: Tensor
    gradients: Tensor

    @property
    def possible(self) -> Tensor:
        """(K,), bool: which hypotheses have a path."""
        return self.log_likelihood.isfinite()


@dataclass(frozen=True, slots=True)
class BestPath:
    """The transcript of a clip's most probable path.

    Parameters
    ----------
    tokens
        the labels.
    frames
        for each label the frame of its run at which it is most probable.
    log_probs
        for each label the log-probability of its token at that frame.
    log_prob
        that of the whole path, a lower bound of log p(tokens | x).
    """

    tokens: Tokens
    frames: tuple[int, ...]
    log_probs: tuple[float, ...]
    log_prob: float


def frames_needed(target: Sequence[int]) -> int:
    """Return the fewest frames that can emit a target: its labels, and a blank in each repeat."""
    return len(target) + sum(left == right for left, right in pairwise(target))


def feasible(frames: int, target: Sequence[int]) -> bool:
    """Return whether a target has a path of so many frames."""
    return frames >= frames_needed(target)


def collapse(path: Sequence[int], *, blank: int = 0) -> Tokens:
    """Return the transcript of a path: runs merged, then blanks removed."""
    return tuple(token for token, _ in groupby(path) if token != blank)


def loss(
    logits: Tensor,
    lengths: Tensor,
    targets: Tensor | Sequence[Sequence[int]],
    target_lengths: Tensor | None = None,
    *,
    blank: int = 0,
) -> Tensor:
    """Return the negative log-likelihood (B,) of each clip's target, in nats, differentiable.

    It is computed in float32 (float64 for float64 logits), whatever autocast says. A target that
    the frames cannot hold costs inf, and its clip gets the gradient 0, never NaN: the other clips
    of the batch still train, and the caller sees which one to drop (see `feasible`).

    Parameters
    ----------
    logits
        (B, T, V), finite.
    lengths
        (B,), frames of each clip.
    targets
        a sequence of labels a clip, or (B, L) with ``target_lengths`` (B,).

    Raises
    ------
    RequestError
        if there are not as many targets as clips, or a label is the blank or no token.
    """
    batch, _, vocabulary = logits.shape
    labels, label_lengths = _pack(targets, target_lengths, vocabulary=vocabulary, blank=blank)
    if len(labels) != batch:
        raise RequestError(f"{len(labels)} targets for {batch} clips: give one a clip")
    lengths = lengths.cpu()
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        nll = F.ctc_loss(
            wide.log_softmax(-1).transpose(0, 1),
            labels.to(logits.device),
            lengths,
            label_lengths,
            blank=blank,
            reduction="none",
            zero_infinity=True,
        )
    short = lengths < label_lengths + repeated(labels, blank).sum(1)
    return nll.masked_fill(short.to(nll.device), float("inf"))


def log_posteriors(log_probs: Tensor, lengths: Tensor | None = None, *, blank: int = 0) -> Tensor:
    """Return normalised log-probabilities (B, T, V) in float64; padding is made certain blanks.

    A certain blank at the end changes the probability of no transcript, so that what follows
    needs no lengths. Log 0 is `IMPOSSIBLE`, a finite number.

    Parameters
    ----------
    log_probs
        (B, T, V) or (T, V), log-probabilities or logits.
    lengths
        (B,), frames of each clip; all of them when None.

    Raises
    ------
    JobError
        if a frame within a clip holds NaN, +inf or no possible token.
    """
    if log_probs.ndim == 2:
        log_probs = log_probs[None]
    posteriors = log_probs.detach().double().log_softmax(-1).clamp(min=IMPOSSIBLE)
    if lengths is not None:
        padding = _padding(posteriors, lengths)
        posteriors[padding] = IMPOSSIBLE
        posteriors[..., blank].masked_fill_(padding, 0.0)
    broken = posteriors.isnan().flatten(1).any(1)
    if broken.any():
        clip = int(broken.nonzero()[0])
        raise JobError(f"the posteriors of clip {clip} hold NaN: check the model and its input")
    return posteriors


def log_likelihood(
    log_probs: Tensor,
    hypotheses: Sequence[Sequence[int]],
    *,
    lengths: Tensor | None = None,
    clips: Sequence[int] | None = None,
    blank: int = 0,
) -> Tensor:
    """Return log p(y | x) (K,) of each hypothesis, float64, by the forward algorithm.

    The empty transcript is a hypothesis like any other; one that cannot be gets -inf.

    Parameters
    ----------
    log_probs
        (B, T, V), or (T, V) for one clip.
    lengths
        (B,), frames of each clip; all of them when None.
    clips
        (K,), the clip of each hypothesis; may be left out for one clip.
    """
    posteriors = log_posteriors(log_probs, lengths, blank=blank)
    jobs = _jobs(posteriors, hypotheses, clips, blank)
    results = [forward(posteriors, job, blank) for job in jobs]
    return torch.cat(results) if results else posteriors.new_empty(0)


def occupancies(
    log_probs: Tensor,
    hypotheses: Sequence[Sequence[int]],
    *,
    lengths: Tensor | None = None,
    clips: Sequence[int] | None = None,
    blank: int = 0,
) -> Tensor:
    """Return the probability (K, T, V) that a frame emits a token, given clip and transcript.

    float64; each frame sums to 1, and to 0 at padding and where the hypothesis cannot be.
    The parameters are those of `log_likelihood`.
    """
    posteriors = log_posteriors(log_probs, lengths, blank=blank)
    return _occupancies(posteriors, lengths, hypotheses, clips, blank)[1]


def logit_gradients(
    log_probs: Tensor,
    hypotheses: Sequence[Sequence[int]],
    *,
    lengths: Tensor | None = None,
    clips: Sequence[int] | None = None,
    blank: int = 0,
) -> LogitGradients:
    """Return the log-likelihood and the gradient of the loss at the logits of each hypothesis.

    The gradient is softmax - occupancy. The parameters are those of `log_likelihood`.
    """
    posteriors = log_posteriors(log_probs, lengths, blank=blank)
    totals, gradients = _occupancies(posteriors, lengths, hypotheses, clips, blank)
    probabilities = posteriors.exp()
    if lengths is not None:
        probabilities[_padding(posteriors, lengths)] = 0.0
    gradients.neg_()
    owners = _clips(len(hypotheses), clips, len(posteriors)).tolist()
    for gradient, clip, possible in zip(gradients, owners, totals.isfinite().tolist(), strict=True):
        if possible:
            gradient += probabilities[clip]
    return LogitGradients(totals, gradients)


def greedy(log_probs: Tensor, lengths: Tensor | None = None, *, blank: int = 0) -> list[BestPath]:
    """Return the transcript of each clip's most probable path.

    Parameters
    ----------
    log_probs
        (B, T, V), or (T, V) for one clip.
    lengths
        (B,), frames of each clip; all of them when None.
    """
    best = log_posteriors(log_probs, lengths, blank=blank).max(-1)
    rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [_best_path(tokens, scores, blank) for tokens, scores in rows]


def sample(
    log_probs: Tensor, count: int, generator: torch.Generator, *, blank: int = 0
) -> dict[Tokens, int]:
    """Return how often each transcript came up in ``count`` exact draws from p(y | x).

    Frames are independent given the clip, so a path is drawn frame by frame and collapsed. The
    most frequent transcript comes first, equal ones in the order of their tokens.

    Parameters
    ----------
    log_probs
        (T, V), one clip without padding.
    generator
        a CPU generator; the draws depend on its state and the posteriors alone.
    """
    cumulative = log_posteriors(log_probs, blank=blank)[0].exp().cumsum(-1).cpu()
    # the last bound is exactly 1, above every draw; a token of probability 0 is never hit
    cumulative = cumulative / cumulative[:, -1:]
    draws = torch.rand(count, len(cumulative), generator=generator, dtype=torch.float64)
    paths = torch.searchsorted(cumulative, draws.T.contiguous(), right=True).T
    kept = paths != blank
    kept[:, 1:] &= paths[:, 1:] != paths[:, :-1]
    labels = torch.split_with_sizes(paths[kept], kept.sum(1).tolist())
    counts = Counter(tuple(row.tolist()) for row in labels)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def frame_entropy(log_probs: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the entropy (B, T) of the token at each frame, in nats, float64; 0 at padding.

    The parameters are those of `greedy`.
    """
    posteriors = log_posteriors(log_probs, lengths)
    return -(posteriors.exp() * posteriors).sum(-1)


def _occupancies(
    posteriors: Tensor,
    lengths: Tensor | None,
    hypotheses: Sequence[Sequence[int]],
    clips: Sequence[int] | None,
    blank: int,
) -> tuple[Tensor, Tensor]:
    """Return log-likelihoods (K,) and occupancies (K, T, V)."""
    totals = posteriors.new_empty(len(hypotheses))
    _, frames, vocabulary = posteriors.shape
    occupied = posteriors.new_zeros(frames, len(hypotheses), vocabulary)
    probabilities = posteriors.exp()
    padding = None if lengths is None else _padding(posteriors, lengths).T
    first = 0
    for job in _jobs(posteriors, hypotheses, clips, blank):
        part = slice(first, first + len(job.labels))
        found = occupied[:, part]
        totals[part] = _forward_backward(posteriors, probabilities, job, blank, found)
        if padding is not None:
            found[padding[:, job.clips]] = 0.0
        first = part.stop
    return totals, occupied.transpose(0, 1)


def _forward_backward(
    posteriors: Tensor, probabilities: Tensor, job: Job, blank: int, occupied: Tensor
) -> Tensor:
    """Return log-likelihoods (K,); add the occupancies, by logarithms where these are needed."""
    totals, certain = ctc_scaled.forward_backward(
        probabilities, job, blank=blank, occupied=occupied
    )
    rest = (~certain).nonzero()[:, 0]
    if len(rest):
        part = Job(job.labels[rest], job.lengths[rest], job.clips[rest])
        found = torch.zeros_like(occupied[:, rest])
        totals[rest] = ctc_lattice.forward_backward(posteriors, part, blank=blank, occupied=found)
        occupied[:, rest] = found
    return totals


def _jobs(
    posteriors: Tensor,
    hypotheses: Sequence[Sequence[int]],
    clips: Sequence[int] | None,
    blank: int,
) -> list[Job]:
    """Return the hypotheses in parts whose tables fit in `TABLE_CELLS`."""
    batch, frames, vocabulary = posteriors.shape
    owners = _clips(len(hypotheses), clips, batch)
    labels, lengths = _pack(hypotheses, None, vocabulary=vocabulary, blank=blank)
    cells = 2 * max(1, frames) * (labels.shape[1] + 1)
    size = max(1, TABLE_CELLS // cells)
    labels, lengths, owners = (part.to(posteriors.device) for part in (labels, lengths, owners))
    parts = [slice(first, first + size) for first in range(0, len(labels), size)]
    return [Job(labels[part], lengths[part], owners[part]) for part in parts]


def _clips(count: int, clips: Sequence[int] | None, batch: int) -> Tensor:
    """Return the clip of each of ``count`` hypotheses (K,)."""
    if clips is None:
        if batch != 1:
            raise RequestError(
                f"hypotheses of {batch} clips: say in clips to which one each of them belongs"
            )
        return torch.zeros(count, dtype=torch.int64)
    owners = torch.as_tensor(clips, dtype=torch.int64).cpu()
    if len(owners) != count or (count and not 0 <= int(owners.min()) <= int(owners.max()) < batch):
        raise RequestError(
            f"clips {owners.tolist()[:8]} of {count} hypotheses: give one number from 0 to "
            f"{batch - 1} each"
        )
    return owners


def _pack(
    targets: Tensor | Sequence[Sequence[int]],
    target_lengths: Tensor | None,
    *,
    vocabulary: int,
    blank: int,
) -> tuple[Tensor, Tensor]:
    """Return labels (K, L), padded with the blank, and their lengths (K,), on the CPU."""
    if isinstance(targets, Tensor):
        if target_lengths is None:
            raise RequestError("targets in one tensor: give target_lengths as well")
        lengths = target_lengths.cpu().long()
        labels = targets.cpu().long()
    else:
        lengths = torch.tensor([len(target) for target in targets], dtype=torch.int64)
        width = int(lengths.max()) if len(lengths) else 0
        rows = [[*target, *[blank] * (width - len(target))] for target in targets]
        labels = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)
    inside = torch.arange(labels.shape[1]) < lengths[:, None]
    wrong = inside & ((labels < 0) | (labels >= vocabulary) | (labels == blank))
    if wrong.any():
        raise RequestError(
            f"label {int(labels[wrong][0])}: labels are tokens from 0 to {vocabulary - 1} "
            f"other than the blank {blank}"
        )
    return labels.masked_fill(~inside, blank), lengths


def _padding(frames: Tensor, lengths: Tensor) -> Tensor:
    """Return the mask (B, T) of the frames (B, T, V) beyond each clip's length."""
    if lengths.shape != frames.shape[:1]:
        raise RequestError(f"{lengths.numel()} lengths for {len(frames)} clips: give one a clip")
    steps = torch.arange(frames.shape[1], device=frames.device)
    return steps >= lengths.to(frames.device)[:, None]


def _best_path(path: list[int], scores: list[float], blank: int) -> BestPath:
    tokens, frames = [], []
    first = 0
    for token, run in groupby(path):
        end = first + len(list(run))
        if token != blank:
            tokens.append(token)
            frames.append(max(range(first, end), key=scores.__getitem__))
        first = end
    emitted = tuple(scores[frame] for frame in frames)
    return BestPath(tuple(tokens), tuple(frames), emitted, sum(scores))
