"""Whether a confidence of 0.8 is right 8 times in 10, and how to make it so."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechkit.errors import RequestError

BINS = 10

Floats = NDArray[np.float64]

# keeps logits finite: posteriors in float32 reach 1
_EDGE = 1e-6


@dataclass(frozen=True, slots=True)
class Bin:
    """Words whose confidence lies in [low, high); the last bin includes 1."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """Mean confidence beside the share of right words, bin by bin, those without words left out.

    Attributes
    ----------
    error
        expected calibration error: mean |accuracy - confidence| over words, by bin.
    normalised_cross_entropy
        1 for a confidence that knows all, 0 for one that knows only the share of right words,
        below 0 for a misleading one; None if all words are right or all are wrong.
    """

    bins: tuple[Bin, ...]
    error: float
    normalised_cross_entropy: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return all of it for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Platt's scaling (1999) of a confidence c: sigmoid(slope * logit(c) + offset).

    With offset 0 it is temperature scaling, the slope being 1 / temperature. The default changes
    nothing.
    """

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, confidence: ArrayLike) -> Floats:
        """Return calibrated confidences."""
        scaled = self.slope * _logit(np.asarray(confidence, dtype=float)) + self.offset
        return 1 / (1 + np.exp(-scaled))

    def to_dict(self) -> dict[str, float]:
        """Return the numbers for a model's configuration."""
        return asdict(self)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, float]) -> "Calibration":
        """Read what `to_dict` returned."""
        return cls(float(numbers["slope"]), float(numbers["offset"]))


def fit(confidence: Sequence[float], correct: Sequence[bool]) -> Calibration:
    """Fit a calibration on words that were not trained on.

    Two numbers, unlike isotonic regression's steps, can be learnt from a few hundred words. Each
    word counts as right or wrong to all but a share that so many words leave open (Platt 1999,
    section 2.2), since words that confidence separates wholly would have no finite fit. Rising
    confidence never becomes falling: a fit that says so returns the share of right words for all.

    Raises
    ------
    RequestError
        if the words are all right or all wrong.
    """
    from sklearn.linear_model import LogisticRegression

    right = np.asarray(correct, dtype=bool)
    if not right.any() or right.all():
        raise RequestError(
            f"{len(right)} words, {int(right.sum())} of them right: calibration needs right and "
            "wrong ones; give more recordings"
        )
    logits = _logit(np.asarray(confidence, dtype=float))[:, None]
    rights, wrongs = int(right.sum()), int((~right).sum())
    target = np.where(right, (rights + 1) / (rights + 2), 1 / (wrongs + 2))
    fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(
        np.concatenate([logits, logits]),
        np.repeat([True, False], len(right)),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        return Calibration(0.0, float(_logit(np.array(right.mean()))))
    return Calibration(slope, offset)


def reliability(
    confidence: Sequence[float], correct: Sequence[bool], *, bins: int = BINS
) -> Reliability:
    """Compare confidences with what was right, in bins of equal width.

    Raises
    ------
    RequestError
        if there are no words, not as many of each, or a confidence outside [0, 1].
    """
    claimed, right = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=float)
    if claimed.shape != right.shape or not claimed.size:
        raise RequestError(
            f"{claimed.size} confidences for {right.size} words; give one for each of at least one"
        )
    if not ((claimed >= 0) & (claimed <= 1)).all():
        raise RequestError("a confidence lies outside [0, 1]; calibrate before comparing")
    place = np.minimum((claimed * bins).astype(int), bins - 1)
    filled = [
        Bin(
            low=index / bins,
            high=(index + 1) / bins,
            count=int((place == index).sum()),
            confidence=float(claimed[place == index].mean()),
            accuracy=float(right[place == index].mean()),
        )
        for index in np.unique(place)
    ]
    error = sum(b.count * abs(b.accuracy - b.confidence) for b in filled) / claimed.size
    return Reliability(tuple(filled), float(error), _normalised_cross_entropy(claimed, right))


def _normalised_cross_entropy(claimed: Floats, right: Floats) -> float | None:
    share = right.mean()
    if share in (0.0, 1.0):
        return None
    prior = _cross_entropy(np.full_like(claimed, share), right)
    return float(1 - _cross_entropy(claimed, right) / prior)


def _cross_entropy(claimed: Floats, right: Floats) -> float:
    claimed = np.clip(claimed, _EDGE, 1 - _EDGE)
    return float(-np.mean(np.where(right > 0, np.log(claimed), np.log1p(-claimed))))


def _logit(share: Floats) -> Floats:
    share = np.clip(share, _EDGE, 1 - _EDGE)
    return np.log(share) - np.log1p(-share)
