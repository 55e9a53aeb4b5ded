"""From recordings to a measured spotter: split, train, mine, train again, evaluate.

The clips are dealt to folds. A fold is the test of one run, the next one its dev set, the others
train; false alarms are mined in the training part alone. With several test folds the measurements
are pooled, so that every clip is tested once, by a model that never saw it.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lhotse.cut import Cut

from speechkit import manifests
from speechkit.claims import claim
from speechkit.errors import RequestError
from speechkit.kws.clips import Clip, load_clips
from speechkit.kws.dealing import NEGATIVES, deal, require_all
from speechkit.kws.detector import Detector
from speechkit.kws.evaluate import CONDITIONS, FA_PER_HOUR, count_notes, measure_conditions
from speechkit.kws.mining import LEAST_SCORE, MOST_ALARMS, find_alarms
from speechkit.kws.report import (
    PIPELINE,
    SCORES,
    Measured,
    load_scored,
    parse_snr,
    rows_of,
    save_scored,
    write_evaluation,
)
from speechkit.kws.select import Selection, read_any, select
from speechkit.kws.splits import Split, decode, part
from speechkit.kws.spotter import Spotter
from speechkit.kws.train import TrainConfig, new_spotter, train_spotter
from speechkit.ranges import require
from speechkit.reports import provenance

logger = logging.getLogger(__name__)

# where the splits that a corpus came with go: fold 0 is tested, its dev set is fold 1
_FOLD_OF_SPLIT = {"test": 0, "valid": 1, "dev": 1, "train": 2}


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """How recordings are divided, trained on and measured.

    Parameters
    ----------
    folds, test_folds
        parts that the clips are dealt to, at least 3, and which of them to test on.
    split_by
        what must not stand in two parts; "speaker": speakers, and clips without one
        singly; "clip": clips; "corpus": nothing, the corpus says what is train, valid and test,
        and the clips of which it does not are dealt by speaker.
    rounds
        of training; each but the first starts from the one before, with mined false alarms and
        batches of its own, and is half as long.
    conditions, fa_per_hour
        what to measure.
    """

    folds: int = 5
    test_folds: tuple[int, ...] = (0,)
    split_by: Literal["speaker", "clip", "corpus"] = "speaker"
    rounds: int = 2
    conditions: tuple[str, ...] = CONDITIONS
    fa_per_hour: tuple[float, ...] = FA_PER_HOUR
    train: TrainConfig = TrainConfig()

    def __post_init__(self) -> None:
        require(self, "folds", at_least=3)
        require(self, "rounds", at_least=1)
        require(self, "fa_per_hour", above=0)
        if not self.conditions or not self.fa_per_hour:
            raise RequestError("conditions and fa_per_hour: give at least one each")
        for condition in self.conditions:
            parse_snr(condition)
        if self.split_by == "corpus" and self.test_folds != (0,):
            raise RequestError(
                f"test_folds {self.test_folds}: by corpus there is one test, (0,); or split_by "
                "speaker or clip"
            )


@dataclass(frozen=True)
class _Data:
    clips: Split
    responses: list[Clip]
    fold_of: dict[str, int]
    fold_of_noise: dict[str, int]


def run(
    keywords: Sequence[str],
    *,
    positives: Sequence[Path],
    negatives: Sequence[Path],
    noise: Sequence[Path] = (),
    rir: Sequence[Path] = (),
    out: Path,
    config: PipelineConfig = PipelineConfig(),
    notes: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Train and measure a spotter; return the rows of the last round's report.

    Writes ``OUT/model`` (the first test fold's), ``OUT/test-positives.jsonl.gz``,
    ``OUT/test-negatives.jsonl.gz`` and ``OUT/test-noise.jsonl.gz`` (what that model was tested on),
    ``OUT/report.json`` and its company for the last round, and ``OUT/round-N`` for the ones before.
    Run again, it goes on where it was interrupted.
    """
    if not set(config.test_folds) <= set(range(config.folds)) or not config.test_folds:
        raise RequestError(
            f"test_folds {config.test_folds}: choose from 0 to {config.folds - 1}, at least one"
        )
    if len(set(config.test_folds)) < len(config.test_folds):
        raise RequestError(f"test_folds {config.test_folds}: give each fold once")
    selection = select(keywords, positives=positives, negatives=negatives)
    new_spotter(selection.keywords, config.train)  # refuses what cannot be built, before any work
    noises, rooms = read_any(noise), read_any(rir)
    fold_of, rule = _deal(selection, config)
    clips = decode(selection.positives, selection.negatives, noises=noises)
    data = _Data(
        clips,
        load_clips(rooms, what="room responses").clips,
        fold_of,
        _deal_noises([cut for cut in noises if cut.id not in clips.broken], fold_of, config),
    )
    run = _described(selection, noises, rooms, data, config)
    claim(out, run, file=PIPELINE)
    _write_test_manifests(selection, noises, data, config.test_folds[0], out)
    broken = data.clips.broken
    notes = [*notes, rule, *count_notes(selection.counts, broken, noise=bool(noise))]
    if noises and not data.fold_of_noise:
        notes.append(
            f"{len(clips.noises)} noises are too few for {config.folds} folds: the same ones are "
            "heard in training and in the tests; cut long recordings, or give more"
        )
    network = config.train.network["type"]
    rows: list[dict[str, Any]] = []
    for number in range(config.rounds):
        last = number == config.rounds - 1
        measured = _round(data, number, out, config)
        rows = rows_of(measured, model=network, targets=config.fa_per_hour)
        if last:  # before the report, which says that all is there
            chosen = _folder(out, config.test_folds[0], number) / "model"
            Spotter.load(chosen).save(out / "model")
        write_evaluation(
            out if last else out / f"round-{number}",
            measured,
            rows,
            title=f"{', '.join(keywords)}: {network}, round {number + 1}",
            about={
                "counts": selection.counts,
                "broken": broken,
                "config": dataclasses.asdict(config),
                **provenance(seed=config.train.seed, data=run["data"]),
            },
            notes=notes,
        )
    return rows


def _described(
    selection: Selection,
    noises: Sequence[Cut],
    rooms: Sequence[Cut],
    data: _Data,
    config: PipelineConfig,
) -> dict[str, Any]:
    """Return all that the measurements depend on."""
    fit = dataclasses.replace(config.train.fit, workers=0)
    train = dataclasses.replace(config.train, fit=fit)
    described = dataclasses.asdict(dataclasses.replace(config, train=train))
    # more folds, rounds or targets go on from what is there
    for name in ("test_folds", "rounds", "fa_per_hour"):
        del described[name]
    sounds = {"noise": manifests.fingerprint(noises), "rooms": manifests.fingerprint(rooms)}
    return {
        "config": described,
        "data": selection.fingerprints() | sounds,
        # audio that could not be read may be there the next time
        "broken": sorted(data.clips.broken),
    }


def _round(data: _Data, number: int, out: Path, config: PipelineConfig) -> Measured:
    """Return the measurements of one round, those of all test folds beside each other."""
    measured: Measured = {}
    for fold in config.test_folds:
        folder = _folder(out, fold, number)
        for key, parts in _train_and_measure(data, fold, number, folder, config).items():
            measured.setdefault(key, []).extend(parts)
    return measured


def _folder(out: Path, fold: int, number: int) -> Path:
    return out / f"fold-{fold}" / f"round-{number}"


def _train_and_measure(
    data: _Data, fold: int, number: int, folder: Path, config: PipelineConfig
) -> Measured:
    """Train and measure one round of one fold, or read what an earlier call measured."""
    if (folder / SCORES).is_file():
        return load_scored(folder / SCORES)
    folds = range(config.folds)
    dev_fold = _dev_fold(fold, config.folds)
    training = _part(data, set(folds) - {fold, dev_fold})
    test = _part(data, {fold})
    logger.info("fold %d, round %d of %d: training", fold, number + 1, config.rounds)
    settings, init, hard = config.train, None, []
    if number:
        init = folder.parent / f"round-{number - 1}" / "model"
        hard = _mine(Detector.load(init), training, config.train.seed + number)
        logger.info("mined %d false alarms", len(hard))
        settings = _next_round(settings, number)
    spotter = train_spotter(
        training,
        _part(data, {dev_fold}),
        out=folder,
        config=settings,
        responses=data.responses,
        hard=hard,
        init=init,
    )
    measured = measure_conditions(
        Detector(spotter),
        test.positives,
        test.negatives,
        test.noises,
        conditions=config.conditions,
        seed=config.train.seed,
    )
    save_scored(folder / SCORES, measured)
    return measured


def _next_round(settings: TrainConfig, number: int) -> TrainConfig:
    """Return the settings of a later round: half as long, from the first drop of the rate on."""
    first = settings.fit
    gentle = dataclasses.replace(
        first,
        epochs=math.ceil(first.epochs / 2),
        learning_rate=first.learning_rate * first.drop,
        drops=max(0, first.drops - 1),
    )
    return dataclasses.replace(settings, fit=gentle, seed=settings.seed + number)


def _mine(detector: Detector, training: Split, seed: int) -> list[Clip]:
    alarms = find_alarms(
        detector,
        training.negatives,
        training.noises,
        least_score=LEAST_SCORE,
        most=MOST_ALARMS,
        seed=seed,
    )
    return [alarm.heard for alarm in alarms]


def _part(data: _Data, folds: set[int]) -> Split:
    return part(data.clips, _in(data.fold_of, folds), noises=_noises_in(data, folds))


def _in(fold_of: Mapping[str, int], folds: Set[int]) -> set[str]:
    return {id_ for id_, fold in fold_of.items() if fold in folds}


def _noises_in(data: _Data, folds: Set[int]) -> set[str]:
    """Return the noises of some folds; all of them where they could not be dealt."""
    return _in(data.fold_of_noise, folds) or {clip.id for clip in data.clips.noises}


def _deal(selection: Selection, config: PipelineConfig) -> tuple[dict[str, int], str]:
    """Deal positives and negatives to folds, and say by what."""
    kinds = {**selection.positives, NEGATIVES: selection.negatives}
    clips = [cut for cuts in kinds.values() for cut in cuts]
    speakers = {manifests.speaker_of(cut) for cut in clips} - {None}
    by: Literal["speaker", "clip"] = "clip" if config.split_by == "clip" else "speaker"
    fold_of = deal(kinds, config.folds, by=by, seed=config.train.seed)
    listed = _listed(clips) if config.split_by == "corpus" else {}
    fold_of |= listed
    for fold in config.test_folds:
        dev_fold = _dev_fold(fold, config.folds)
        training = set(range(config.folds)) - {fold, dev_fold}
        require_all(kinds, fold_of, [{fold}, {dev_fold}, training])
    bound = sum(manifests.speaker_of(cut) is not None for cut in clips) if by == "speaker" else 0
    if listed:
        return fold_of, (
            f"{len(listed)} of {len(clips)} clips are train, valid and test as in their corpus, "
            "the others by speaker where one is known"
        )
    return fold_of, (
        f"{config.folds} folds; {bound} of {len(clips)} clips by speaker "
        f"({len(speakers) if bound else 0} speakers), the others by clip; tested: "
        f"{', '.join(map(str, config.test_folds))}"
    )


def _listed(clips: Sequence[Cut]) -> dict[str, int]:
    """Return the folds of the clips whose corpus has them in train, valid or test."""
    splits = ((cut.id, manifests.split_of(cut)) for cut in clips)
    listed = {id_: _FOLD_OF_SPLIT[split] for id_, split in splits if split in _FOLD_OF_SPLIT}
    if not listed:
        raise RequestError(
            "split_by corpus: no clip is in train, valid or test; give a folder that "
            "`speechkit data prepare` wrote, or split_by speaker or clip"
        )
    return listed


def _deal_noises(
    noises: Sequence[Cut], fold_of: Mapping[str, int], config: PipelineConfig
) -> dict[str, int]:
    """Deal noises singly, but for those that are negatives too; none if a fold were to lack them.

    What is trained on as the one must not be measured with as the other.
    """
    dealt = deal({"noise": noises}, config.folds, by="clip", seed=config.train.seed)
    dealt |= {cut.id: fold_of[cut.id] for cut in noises if cut.id in fold_of}
    return dealt if set(dealt.values()) == set(range(config.folds)) else {}


def _dev_fold(fold: int, folds: int) -> int:
    return (fold + 1) % folds


def _write_test_manifests(
    selection: Selection, noises: Sequence[Cut], data: _Data, fold: int, out: Path
) -> None:
    positives = [c for cuts in selection.positives.values() for c in cuts]
    tested, heard = _in(data.fold_of, {fold}), _noises_in(data, {fold})
    for name, cuts, ids in (
        ("test-positives", positives, tested),
        ("test-negatives", selection.negatives, tested),
        ("test-noise", noises, heard),
    ):
        chosen = [c for c in cuts if c.id in ids and c.id not in data.clips.broken]
        manifests.write(chosen, out / f"{name}.jsonl.gz")
