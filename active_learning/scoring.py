"""Scoring of clips, block by block: features, batches, strategies, and a row for every clip.

A clip that cannot be scored is a row with the status "failed" and the reason. What a block's rows
hold depends on its clips alone, to the last byte; the batch that a clip shares moves its scores by
no more than rounding.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from lhotse.cut import Cut

from speechkit import checkpoint
from speechkit.active_learning.baselines import Committee
from speechkit.active_learning.blocks import FAILED, OK
from speechkit.active_learning.jsonl import Row
from speechkit.active_learning.models import (
    BEST_WIDTH,
    Clip,
    Listener,
    Model,
    Recogniser,
    Utterances,
    Windows,
    describe_batch,
    load_features,
    require_model,
)
from speechkit.active_learning.quality import measure
from speechkit.active_learning.scorers import RECOGNISER, SPOTTER, Strategy, parse
from speechkit.audio import load_cut
from speechkit.errors import AudioError, RequestError, SpeechkitError
from speechkit.manifests import speaker_of

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How a pool is scored.

    Attributes
    ----------
    block_size
        clips that are committed together.
    batch_s
        audio in a batch, the padding included; one clip at least.
    nbest
        transcripts of a recogniser to keep for the annotators; 0 for none.
    quality
        measure level, clipping and noise, where there is audio.
    seed
        of all random choices.
    """

    block_size: int = 64
    batch_s: float = 60.0
    nbest: int = 5
    quality: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.block_size < 1 or not self.batch_s > 0 or self.nbest < 0:
            raise RequestError(
                f"block_size {self.block_size}, batch_s {self.batch_s:g}, nbest {self.nbest}: give "
                "at least 1, above 0, and 0 or more"
            )


class ClipScorer:
    """Scores clips with one model by several strategies; the same in every engine.

    Parameters
    ----------
    model
        a model, or its folder, which is loaded when it is first needed.
    strategies
        names with parameters, see `scorers`.
    """

    def __init__(
        self,
        model: Model | Path,
        strategies: Sequence[str],
        *,
        config: ScoringConfig = ScoringConfig(),
    ) -> None:
        self._source = model
        self._texts = tuple(strategies)
        self.config = config
        self._statistics: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """All but a model that is loaded."""
        return {name: value for name, value in vars(self).items() if name != "model"}

    def hear(self, pool: Sequence[Cut]) -> None:
        """Measure the speakers of a pool, for models whose inputs are normalised by speaker.

        It goes before the blocks are shared out: whoever scores one then has the same features.
        """
        if isinstance(self.model, Listener):
            self.model.hear(pool)
            self._statistics = self.model.statistics
        for strategy in self.strategies:
            if isinstance(strategy.scorer, Committee):
                strategy.scorer.hear(pool)

    def asking(self, strategies: Sequence[str]) -> "ClipScorer":
        """Return a scorer by other strategies, with the same model and speakers."""
        other = ClipScorer(self._source, strategies, config=self.config)
        other._statistics = self._statistics
        return other

    @cached_property
    def model(self) -> Model:
        """The model, in evaluation mode."""
        source = self._source
        loaded: Any = checkpoint.load_model(source) if isinstance(source, Path) else source
        if self._statistics is not None:
            loaded.statistics = self._statistics
        return require_model(loaded, source=source if isinstance(source, Path) else "model")

    @cached_property
    def strategies(self) -> list[Strategy]:
        """The strategies, as far as the model knows them."""
        table = RECOGNISER if isinstance(self.model, Recogniser) else SPOTTER
        return parse(self._texts, table, seed=self.config.seed)

    def __call__(self, cuts: Iterable[Cut]) -> list[Row]:
        """Return one row for each clip: id, duration_s, status, error, and what was measured.

        Raises
        ------
        RequestError
            if a strategy does not suit the model.
        """
        strategies = self.strategies
        rows = {}
        clips = []
        for cut in cuts:
            rows[cut.id] = row = _blank_row(cut)
            clip = _or_failed(lambda cut=cut: self._load(cut, rows[cut.id]), row)  # type: ignore[misc]
            if clip is not None:
                clips.append(clip)
        for batch in _batches(clips, self.config.batch_s):
            self._score(batch, strategies, rows)
        return list(rows.values())

    def _load(self, cut: Cut, row: Row) -> Clip:
        clip = Clip(cut, load_features(self.model, cut))
        if self.config.quality and cut.has_recording:
            # features may be at hand on machines that lack the audio
            with suppress(AudioError):
                found = measure(load_cut(cut))
                row.update({name: value for name, value in found.items() if value == value})
        return clip

    def _score(
        self, clips: Sequence[Clip], strategies: Sequence[Strategy], rows: dict[str, Row]
    ) -> None:
        """Add to the rows of some clips; where the batch fails, clip by clip."""
        try:
            columns = self._columns(clips, strategies)
        except RequestError:
            raise
        except Exception as error:
            if len(clips) == 1:
                _fail(rows[clips[0].id], error)
                return
            for clip in clips:
                self._score([clip], strategies, rows)
            return
        for place, clip in enumerate(clips):
            rows[clip.id].update({name: values[place] for name, values in columns.items()})

    def _columns(
        self, clips: Sequence[Clip], strategies: Sequence[Strategy]
    ) -> dict[str, list[Any]]:
        batch = describe_batch(self.model, clips)
        columns = self._transcripts(batch)
        for strategy in strategies:
            columns |= strategy.columns(batch)
        return columns

    def _transcripts(self, batch: Utterances | Windows) -> dict[str, list[Any]]:
        if isinstance(batch, Windows):
            best = batch.logits.argmax(1).tolist()
            return {"hypothesis": [batch.model.config.labels[place] for place in best]}
        if self.config.nbest == 0:
            return {}
        text_of = batch.model.text_of
        beams = batch.beam(max(BEST_WIDTH, self.config.nbest))
        texts = [[text_of(h.tokens) for h in beam[: self.config.nbest]] for beam in beams]
        return {
            "hypothesis": [of_clip[0] for of_clip in texts],
            "nbest": texts,
            "log_prob": [beam[0].log_prob for beam in beams],
        }


def _blank_row(cut: Cut) -> Row:
    row: Row = {"id": cut.id, "duration_s": float(cut.duration), "status": OK, "error": None}
    speaker = speaker_of(cut)
    return row if speaker is None else row | {"speaker": speaker}


def _or_failed(job: Callable[[], T], row: Row) -> T | None:
    """Return what a job does; None, with the reason in the row, if it fails."""
    try:
        return job()
    except Exception as error:  # one clip, whatever is wrong with it, never stops a pool
        _fail(row, error)
        return None


def _fail(row: Row, error: Exception) -> None:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, SpeechkitError) else f"{type(error).__name__}: {text}"
    fixed = {name: row[name] for name in ("id", "duration_s", "speaker") if name in row}
    row.clear()
    row.update(fixed | {"status": FAILED, "error": reason})
    logger.warning("%s failed: %s", row["id"], reason)


def _batches(clips: Sequence[Clip], batch_s: float) -> Iterator[list[Clip]]:
    """Cut clips into batches of like lengths."""
    batch: list[Clip] = []
    for clip in sorted(clips, key=lambda clip: (len(clip.features), clip.id)):
        if batch and (len(batch) + 1) * _seconds([*batch, clip]) > batch_s:
            yield batch
            batch = []
        batch.append(clip)
    if batch:
        yield batch


def _seconds(clips: Sequence[Clip]) -> float:
    return max(float(clip.cut.duration) for clip in clips)
