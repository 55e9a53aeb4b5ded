"""One round with people: choose clips of a pool and hand them over; take their labels back."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lhotse import CutSet
from lhotse.cut import Cut

from speechkit import manifests
from speechkit.active_learning.annotations import with_text
from speechkit.active_learning.blocks import digest, scores_folder
from speechkit.active_learning.exchange import TASKS_NAME, export, import_labels
from speechkit.active_learning.query import Query
from speechkit.active_learning.score import config_digest, score
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.select import SELECTION_NAME, read_selection, select
from speechkit.checkpoint import model_digest
from speechkit.claims import claim
from speechkit.errors import JobError, RequestError
from speechkit.files import write_json

SELECTION_FOLDER = "selection"
EXPORT_FOLDER = "to_label"
_LABELS_FOLDER = "labels"
_ORACLE_NAME = "oracle.jsonl.gz"
_RETRAINED_FOLDER = "retrained"
_ERRORS_NAME = "errors.json"
_ROUND_NAME = "round.json"

logger = logging.getLogger(__name__)

M = TypeVar("M")

LabelOf = Callable[[Cut], str | None]


class Learner(Protocol[M]):
    """Trains and measures models of one kind, see `simulate`."""

    def fit(self, cuts: Sequence[Cut], init: M | None, *, seed: int, out: Path) -> M:
        """Return a model trained on clips, from ``init`` if there is one."""

    def evaluate(self, model: M, cuts: Sequence[Cut]) -> dict[str, float]:
        """Return errors by name."""

    def settings(self) -> dict[str, Any]:
        """Return all that its models depend on besides clips and seed, as plain values."""


def run_round(
    learner: Learner[M],
    before: M,
    *,
    model: Path,
    labelled: Sequence[Path],
    pool: Path,
    test: Sequence[Path],
    out: Path,
    strategy: str,
    budget: str,
    labels: Path | None,
    oracle: LabelOf | None,
    seed: int,
) -> str:
    """Hand clips over and, once there are labels, retrain; return what there is to tell of it.

    Parameters
    ----------
    before, model
        the model that asks, and its folder.
    labels
        what the annotation tool exported; None as long as the annotators work.
    oracle
        gives the labels in place of people.

    See `hand_over` and `retrain`.
    """
    handed = hand_over(
        pool, model=model, strategy=strategy, budget=budget, out=out, labelled=labelled
    )
    if oracle is not None:
        labels = ask_oracle(oracle, out=out)
    if labels is None:
        return f"label the clips in {handed}, then run again with --labels FILE (the tool's export)"
    parts = {"labelled": labelled, "test": test}
    errors = retrain(learner, before, labels=labels, out=out, seed=seed, **parts)
    return "\n".join(
        f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in found.items())
        for name, found in errors.items()
    )


def hand_over(
    pool: Path,
    *,
    model: Path,
    strategy: str,
    budget: str,
    out: Path,
    labelled: Sequence[Path] = (),
) -> Path:
    """Score, select and export; return the folder for the annotators.

    They get tasks for Label Studio, or cuts if what was selected are features without recordings.

    A selection and an export that stand in ``out`` are kept, whatever has become of the pool since:
    the clips may be with the annotators already. Another model, strategy or budget is another
    round, and refused there.

    Parameters
    ----------
    strategy
        such as egl or egl/per_second, see `Query.parse`.
    labelled
        manifests of clips that have their labels, and folders of labels of earlier rounds, whose
        skipped clips are not asked for again either.
    """
    selection, handed = out / SELECTION_FOLDER, out / EXPORT_FOLDER
    asked = {"model": model_digest(model), "strategy": strategy, "budget": budget}
    claim(out, asked, file=_ROUND_NAME)
    if not (selection / SELECTION_NAME).is_file():
        query = Query.parse(strategy)
        config = ScoringConfig()
        score(pool, model=model, out=out / "scores", strategy=query.strategies, config=config)
        folder = scores_folder(
            out / "scores",
            model_sha=model_digest(model),
            config_sha=config_digest(query.strategies, config),
        )
        select(
            folder,
            cuts=pool,
            budget=budget,
            out=selection,
            labelled=list(labelled),
            config=query.selection(config.seed),
        )
    _, cuts = read_selection(selection)
    audio = all(cut.has_recording for cut in cuts)
    if not (handed / (TASKS_NAME if audio else manifests.CUTS_NAME)).is_file():
        export(selection, to="label-studio" if audio else "lhotse", out=handed)
    return handed


def take_back(labels: Path, *, out: Path) -> CutSet:
    """Import what annotators gave; return the cuts labelled so far, with their texts.

    Raises
    ------
    JobError
        if there is no label yet.
    """
    folder = out / _LABELS_FOLDER
    import_labels(labels, selection=out / SELECTION_FOLDER, out=folder)
    labelled = manifests.read(folder, allow_empty=True)
    if len(labelled) == 0:
        raise JobError(f"{labels}: holds no usable label; {folder / 'report.md'} says why")
    return labelled


def retrain(
    learner: Learner[M],
    before: M,
    *,
    labels: Path,
    labelled: Sequence[Path],
    test: Sequence[Path],
    out: Path,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Take labels back, train on with them and measure; return the errors before and after.

    Writes OUT/retrained/DIGEST/model, of the clips and labels that it was trained on, the seed and
    the learner's settings, and OUT/errors.json, which names it. Further labels make another model,
    from the same one.

    Parameters
    ----------
    learner
        trains and measures models of the kind that asked.
    before
        the model that asked.
    labelled, test
        manifests: what it was trained on, what to measure on.
    """
    # a clip that was labelled again counts once, as it was labelled last
    known = [cut for path in labelled for cut in manifests.read(path, allow_empty=True)]
    training = list({cut.id: cut for cut in [*known, *take_back(labels, out=out)]}.values())
    of = {"clips": manifests.fingerprint(training), "seed": seed, "learner": learner.settings()}
    retrained = out / _RETRAINED_FOLDER / digest(of)
    after = learner.fit(training, before, seed=seed, out=retrained)
    measured = list(manifests.read_all(test))
    learnt = {cut.id for cut in training}
    if shared := sum(cut.id in learnt for cut in measured):
        logger.warning(
            "%d of %d clips to measure on were trained on: errors after are too low",
            *(shared, len(measured)),
        )
    errors = {
        "before": learner.evaluate(before, measured),
        "after": learner.evaluate(after, measured),
    }
    write_json(out / _ERRORS_NAME, {"model": str(retrained / "model"), **errors})
    logger.info("retrained on %d clips: %s", len(training), retrained / "model")
    return errors


def ask_oracle(known: LabelOf, *, out: Path) -> Path:
    """Write the selected clips with their known texts, in place of people.

    Raises
    ------
    RequestError
        if the text of a selected clip is not known.
    """
    _, cuts = read_selection(out / SELECTION_FOLDER)
    texts = {cut.id: known(cut) for cut in cuts}
    if absent := [id_ for id_, text in texts.items() if text is None]:
        raise RequestError(
            f"{len(absent)} of the selected clips have no text in the pool ({absent[0]}); have "
            "them labelled"
        )
    manifests.write((with_text(cut, texts[cut.id]) for cut in cuts), out / _ORACLE_NAME)
    return out / _ORACLE_NAME
