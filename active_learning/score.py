"""`speechkit al score`: from a pool of clips to a folder with a row of scores for each."""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from lhotse.cut import Cut

from speechkit import manifests
from speechkit.active_learning import cascade, engines
from speechkit.active_learning.blocks import (
    commit,
    cut_blocks,
    digest,
    finish,
    pending,
    read_scores,
    reopen,
    scores_folder,
)
from speechkit.active_learning.blocks import verify as compare_with_pool
from speechkit.active_learning.cascade import Cascade
from speechkit.active_learning.engines import Engine, EngineName, Local
from speechkit.active_learning.models import Model
from speechkit.active_learning.scorers import committee_members, require_known, split
from speechkit.active_learning.scoring import ClipScorer, ScoringConfig
from speechkit.checkpoint import model_digest
from speechkit.claims import claim
from speechkit.errors import JobError, RequestError

logger = logging.getLogger(__name__)

_STAGES = "stages"
_POOL = "pool.json"


def score(
    pool: Path,
    *,
    model: Path,
    out: Path,
    strategy: list[str] | None = None,
    engine: EngineName = "local",
    actors: int = 1,
    stall_s: float = 1800.0,
    retry_failed: bool = False,
    verify: bool = False,
    config: ScoringConfig = ScoringConfig(),
) -> int:
    """Score the clips of a pool by how much their labels would help; run again to go on.

    Parameters
    ----------
    pool
        a manifest, or a folder with one.
    model
        the folder of a recogniser or of a keyword spotter.
    out
        a folder; the scores go to model=HASH/config=HASH in it, as Parquet.
    strategy
        names, with parameters after a colon, such as egl,entropy or "egl:weights=raw,k=100"; egl if
        not given. Of any model: egl, entropy, margin, confidence, random, longest, shortest; of a
        recogniser besides: cascade, confidence_per_token, entropy_sum, pctc, dropout, committee,
        embedding, true_gradient, true_errors.
    engine
        local: this process; torchrun: the processes that it started; ray: actors of Ray.
    actors
        of Ray.
    stall_s
        seconds without a new part after which Ray is given up.
    retry_failed
        score the clips that failed once more, and those of their blocks.
    verify
        score nothing; say whether every clip of the pool has one row (exit status 1 if not).
    """
    cuts = manifests.read(pool)
    texts = split(strategy or ["egl"])
    folder = scores_folder(
        out, model_sha=model_digest(model), config_sha=config_digest(texts, config)
    )
    if verify:
        found = compare_with_pool(folder, cuts.ids)
        logger.info("%s: %s", folder, found)
        return 0 if found.whole else 1
    worker = engines.build(engine, actors=actors, stall_s=stall_s)
    if retry_failed:
        if worker.leads:
            logger.info("%s: %d blocks are scored again", folder, take_back_failed(folder))
        worker.wait()
    counts = score_pool(list(cuts), model, texts, folder=folder, config=config, engine=worker)
    if worker.leads:
        logger.info("%s: %s", folder, compare_with_pool(folder, cuts.ids))
        if counts["failed"] == counts["clips"]:
            raise JobError(
                f"{folder}: not one clip could be scored; the rows say why. Once that is mended, "
                "--retry-failed scores them again"
            )
    return 0


def score_pool(
    cuts: Sequence[Cut],
    model: Model | Path,
    strategies: Sequence[str],
    *,
    folder: Path,
    config: ScoringConfig = ScoringConfig(),
    engine: Engine = Local(),
) -> dict[str, int]:
    """Score clips into a folder, which may hold a part of the scores already; return the counts.

    Parameters
    ----------
    model
        a model, or its folder.
    strategies
        names with parameters, see `scorers`.
    folder
        for the parts, of this model and these strategies alone.

    Raises
    ------
    RequestError
        if there are no clips, ids repeat, strategies or model are not what they should be, or the
        folder was begun with other clips under these ids.
    """
    if not cuts:
        raise RequestError("the pool is empty; give at least one clip")
    if odd := [cut.id for cut in cuts if not _is_text(cut.id)]:
        raise RequestError(
            f"{len(odd)} clips have ids that are no UTF-8 ({odd[0]!r}): rename their files"
        )
    if engine.leads:
        claim(folder, {"pool": _extents(cuts)}, file=_POOL)
    blocks = cut_blocks((cut.id for cut in cuts), size=config.block_size)
    by_id = {cut.id: cut for cut in cuts}
    texts, cascades = cascade.separate(strategies)
    require_known([one.fine for one in cascades])  # before the first stage, which may take hours
    first = folder / _STAGES / "0" if cascades else folder
    scorer = ClipScorer(model, texts, config=config)
    if pending(blocks, folder):
        scorer.hear(cuts)
    engine.run(scorer, blocks, cuts=by_id, folder=first)
    if engine.leads:
        finish(blocks, first)
    engine.wait()
    if cascades:
        _refine(cascades, cuts, scorer, folder=folder, engine=engine)
    return finish(blocks, folder) if engine.leads else {}


def _is_text(id_: str) -> bool:
    try:
        id_.encode()
    except UnicodeEncodeError:
        return False
    return True


def take_back_failed(folder: Path) -> int:
    """Remove the blocks with a clip that failed, to be scored again; return how many."""
    stages = folder / _STAGES
    if not stages.is_dir():
        return reopen(folder, failed=True)
    count = sum(reopen(stage, failed=True) for stage in sorted(stages.iterdir()))
    if count:
        # which clips a cascade refines depends on all of its first stage
        for later in stages.iterdir():
            if later.name != "0":
                shutil.rmtree(later)
        reopen(folder, failed=False)
    return count


def _extents(cuts: Sequence[Cut]) -> str:
    """Return 16 hex digits over where clips lie, not over labels, which may come in meanwhile."""
    return digest(
        sorted([c.id, round(getattr(c, "start", 0.0), 6), round(c.duration, 6)] for c in cuts)
    )


def config_digest(strategies: Sequence[str], config: ScoringConfig) -> str:
    """Return 16 hex digits over strategies, the models of committees among them, and settings."""
    members = {
        folder: model_digest(Path(folder))
        for text in strategies
        for folder in committee_members(text)
    }
    return digest({"strategies": list(strategies), "members": members, **asdict(config)})


def _refine(
    cascades: Sequence[Cascade],
    cuts: Sequence[Cut],
    scorer: ClipScorer,
    *,
    folder: Path,
    engine: Engine,
) -> None:
    """Score the best clips of the first stage once more, and write the rows of both stages."""
    stages = folder / _STAGES
    coarse = read_scores(stages / "0")
    found = []
    for number, one in enumerate(cascades, start=1):
        chosen = set(one.chosen(coarse))
        fine = coarse.slice(0, 0)
        if chosen:
            fine = _second(
                [cut for cut in cuts if cut.id in chosen],
                scorer.asking([one.fine]),
                stages / str(number),
                engine,
            )
        found.append(one.scores(coarse, fine))
    if engine.leads:
        _write_merged(coarse, found, folder, scorer.config.block_size)
    engine.wait()


def _second(cuts: Sequence[Cut], scorer: ClipScorer, folder: Path, engine: Engine) -> pa.Table:
    blocks = cut_blocks((cut.id for cut in cuts), size=scorer.config.block_size)
    engine.run(scorer, blocks, cuts={cut.id: cut for cut in cuts}, folder=folder)
    if engine.leads:
        finish(blocks, folder)
    engine.wait()
    return read_scores(folder)


def _write_merged(coarse: pa.Table, found: Sequence[Any], folder: Path, size: int) -> None:
    rows = {row["id"]: cascade.merge(row, found) for row in coarse.to_pylist()}
    blocks = cut_blocks(rows, size=size)
    for block in pending(blocks, folder):
        commit(block, [rows[id_] for id_ in block.ids], folder)
