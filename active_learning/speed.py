"""What expected gradient length costs, against the obvious way, and against a forward pass.

All ways score the same clips from the same features, one after the other, with the beam or the
draws counted in: seconds of processor time, the least of several rounds.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from lhotse.cut import Cut

from speechkit.active_learning.cascade import Cascade, round_up
from speechkit.active_learning.egl import Egl, logit_gradients
from speechkit.active_learning.models import Clip, Recogniser, Utterances, load_features
from speechkit.active_learning.per_clip_autograd import per_clip_autograd
from speechkit.active_learning.statistics import spearman_matrix, top_overlap
from speechkit.reports import markdown_table

_TOP_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class SpeedConfig:
    """What is timed.

    Attributes
    ----------
    k
        hypotheses, or draws.
    batch
        clips in a forward pass.
    share, passes
        of the cascade.
    naive_clips
        the obvious way is timed on so many clips, spread over the pool by duration.
    rounds
        of each way, in turn.
    """

    k: int = 16
    batch: int = 16
    share: float = Cascade.share
    passes: int = Cascade.passes
    naive_clips: int = 10
    rounds: int = 2


def measure_speed(
    model: Recogniser, cuts: Sequence[Cut], config: SpeedConfig = SpeedConfig()
) -> dict[str, Any]:
    """Time each way over all clips; return milliseconds a clip, and how well the cascade ranks."""
    clips = sorted(
        (Clip(cut, load_features(model, cut)) for cut in cuts),
        key=lambda clip: (len(clip.features), clip.id),
    )
    every = max(1, len(clips) // config.naive_clips)
    few = clips[every // 2 :: every]
    exact = Egl(k=config.k, tolerance=0.0)
    ways: dict[str, tuple[Sequence[Clip], Callable[[Sequence[Clip]], Any]]] = {
        "naive": (few, lambda part: naive(model, part, exact)),
        "exact, the naive way's clips": (few, lambda part: _scores(model, part, exact, config)),
        "exact": (clips, lambda part: _scores(model, part, exact, config)),
        "tolerance 1 %": (clips, lambda part: _scores(model, part, Egl(k=config.k), config)),
        "cascade": (clips, lambda part: cascaded(model, part, config)),
        "forward": (clips, lambda part: _batches(model, part, config.batch)),
        "output, drawn": (
            clips,
            lambda part: _scores(
                model, part, Egl(k=config.k, weights="sample", parameters="output"), config
            ),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    values: dict[str, Any] = {}
    for _ in range(config.rounds):
        for name, (part, way) in ways.items():
            begun = time.process_time()
            values[name] = way(part)
            seconds[name].append((time.process_time() - begun) / len(part))
    best = {name: 1000 * min(found) for name, found in seconds.items()}
    ranked = {"exact": values["exact"], "cascade": values["cascade"]}
    return {
        "clips": len(clips),
        "config": asdict(config),
        "ms_a_clip": best,
        "naive over exact": best["naive"] / best["exact, the naive way's clips"],
        "naive over cascade": _whole(best, "exact") / best["cascade"],
        "naive over tolerance 1 %": _whole(best, "exact") / best["tolerance 1 %"],
        "output over forward": best["output, drawn"] / best["forward"],
        "cascade: Spearman with exact": float(spearman_matrix(ranked)[0, 1]),
        "cascade: top-10 % overlap": top_overlap(*ranked.values(), share=_TOP_SHARE),
        "largest difference of naive and exact": float(
            np.abs(values["naive"] / values["exact, the naive way's clips"] - 1).max()
        ),
    }


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of `measure_speed`."""
    costs = [(name, f"{value:.1f}") for name, value in found["ms_a_clip"].items()]
    rest = [
        (name, f"{value:.2g}" if value < 0.01 else f"{value:.2f}")
        for name, value in found.items()
        if isinstance(value, float)
    ]
    return (
        f"{found['clips']} clips, K = {found['config']['k']}.\n\n"
        + markdown_table(("way", "ms a clip"), costs)
        + "\n\n"
        + markdown_table(("", ""), rest)
    )


def naive(model: Recogniser, clips: Sequence[Clip], egl: Egl) -> np.ndarray:
    """Score by one forward and backward pass for each hypothesis of each clip."""
    scores = []
    for clip in clips:
        batch = Utterances.of(model, [clip])
        sets = egl.hypotheses(batch)
        gradients = logit_gradients(batch, sets)[0][:, None].to(batch.logits)
        squares = per_clip_autograd(
            model.network,
            lambda _, batch=batch: model.network(batch.features, batch.lengths)[0],  # type: ignore[misc]
            [gradients],
        )
        scores.append(sets[0].expectation(squares[:, 0]))
    return np.array(scores)


def cascaded(model: Recogniser, clips: Sequence[Clip], config: SpeedConfig) -> np.ndarray:
    """Score all clips by the output layer, and the best of them by all layers."""
    coarse = _scores(model, clips, Egl(k=config.k, parameters="output"), config)
    order = np.argsort(-coarse, kind="stable")[: round_up(config.share * len(clips))]
    chosen = np.sort(order)
    fine = Egl(k=config.k, passes=config.passes)
    scores = coarse.copy()
    scores[chosen] = _scores(model, [clips[place] for place in chosen], fine, config)
    rest = np.setdiff1d(np.arange(len(clips)), chosen)
    scores[rest] *= scores[chosen].sum() / coarse[chosen].sum()
    return scores


def _whole(best: dict[str, float], way: str) -> float:
    """Return what the naive way would cost on all clips, by what the exact one costs there."""
    return best["naive"] * best[way] / best[f"{way}, the naive way's clips"]


def _scores(model: Recogniser, clips: Sequence[Clip], egl: Egl, config: SpeedConfig) -> np.ndarray:
    batches = _batches(model, clips, config.batch)
    return np.array([value for batch in batches for value in egl.score(batch)[""]])


def _batches(model: Recogniser, clips: Sequence[Clip], size: int) -> list[Utterances]:
    return [
        Utterances.of(model, clips[first : first + size]) for first in range(0, len(clips), size)
    ]
