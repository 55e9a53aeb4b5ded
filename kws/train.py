"""``speechkit kws train``: from manifests to a model folder with frozen thresholds."""

import dataclasses
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from lhotse.cut import Cut

from speechkit import frontend, manifests
from speechkit.audio import SAMPLE_RATE
from speechkit.checkpoint import model_digest
from speechkit.claims import claim
from speechkit.errors import RequestError
from speechkit.files import write_json
from speechkit.kws.batches import SceneBatches
from speechkit.kws.clips import Clip, load_clips
from speechkit.kws.detector import Detector
from speechkit.kws.fit import DevSet, FitConfig, fit
from speechkit.kws.measure import Scored, listen, operating_point
from speechkit.kws.models import network_config
from speechkit.kws.rows import AMID_IDS
from speechkit.kws.scenes import Material, SceneConfig
from speechkit.kws.select import free_of, read_any, select
from speechkit.kws.splits import Split, clips_fingerprint, decode, set_aside
from speechkit.kws.spotter import (
    BACKGROUND,
    SILENCE,
    UNKNOWN,
    DetectionConfig,
    Spotter,
    SpotterConfig,
    Threshold,
)
from speechkit.kws.streams import Stream, keyword_streams, negative_streams
from speechkit.ranges import require
from speechkit.reports import provenance

logger = logging.getLogger(__name__)

# each dev keyword is heard in so many noises, since keywords are what a dev set is short of
_DEV_DRAWS = 3
# and each negative, when thresholds are frozen: of an hour one false alarm more moves them by a lot
_FREEZE_DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """All that a training run depends on, but for the data.

    Parameters
    ----------
    network
        type (crnn, the paper's, or cnn, its baseline) and hyperparameters, such as
        {"type": "crnn", "filters": 64}.
    frontend
        type and settings of the front-end (pcen, logmel or mfcc), such as
        {"type": "logmel", "mels": 40}.
    classes
        "keywords": one class for everything else; "unknown-silence": two, for other words and for
        none, as in the 12-class task of Speech Commands.
    fa_per_hour, snr_db
        the operating point whose threshold is frozen on dev, and its noise.
    seed
        of weights, scenes and masks; the noise on dev is the same for all.
    """

    network: dict[str, Any] = field(default_factory=lambda: {"type": "crnn"})
    frontend: dict[str, Any] = field(default_factory=lambda: {"type": "pcen"})
    classes: Literal["keywords", "unknown-silence"] = "keywords"
    detection: DetectionConfig = DetectionConfig()
    scenes: SceneConfig = SceneConfig()
    fit: FitConfig = FitConfig()
    fa_per_hour: float = 0.5
    snr_db: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        network_config(self.network)
        require(self, "fa_per_hour", above=0)
        require(self, "snr_db")
        require(self, "seed", at_least=0, at_most=2**63 - 1)


def train(
    *,
    keywords: list[str],
    positives: list[Path],
    negatives: list[Path],
    out: Path,
    noise: list[Path] | None = None,
    rir: list[Path] | None = None,
    hard: list[Path] | None = None,
    dev_positives: list[Path] | None = None,
    dev_negatives: list[Path] | None = None,
    dev_noise: list[Path] | None = None,
    init: Path | None = None,
    config: TrainConfig = TrainConfig(),
) -> None:
    """Train a spotter and freeze its thresholds on a dev set.

    Run again after an interruption, the same command goes on where it stopped.

    Parameters
    ----------
    keywords
        the words to spot, as they stand in labels or texts.
    positives, negatives
        manifests; rows whose label or text equals a keyword are its positives.
    out
        gets model/ (best on dev), log.jsonl (a line an epoch), tensorboard/ where that is
        installed, and resume/ (the state of the run).
    noise, rir
        manifests of background noise and of room impulse responses; white noise without any.
    hard
        manifests that `speechkit kws mine` wrote; what it found in clips of dev is left out.
    dev_positives, dev_negatives, dev_noise
        manifests to choose the best epoch and the threshold on; without them a sixth of the
        clips is set aside, by speaker where one is known. Without dev_noise, noise serves.
    init
        a model folder to go on from, for the second round, say; network, front-end and detection
        must be its own.
    """
    selection = select(keywords, positives=positives, negatives=negatives)
    new_spotter(selection.keywords, config, init)  # refuses what cannot be, before any work
    noises, rooms = read_any(noise), read_any(rir)
    clips = decode(selection.positives, selection.negatives, noises=noises)
    if dev_positives and dev_negatives:
        chosen = select(keywords, positives=dev_positives, negatives=dev_negatives)
        manifests.require_apart(selection.cuts, chosen.cuts)
        training, dev = (
            clips,
            decode(chosen.positives, chosen.negatives, noises=read_any(dev_noise or noise)),
        )
    elif dev_positives or dev_negatives:
        raise RequestError("dev_positives and dev_negatives: give both or none")
    elif dev_noise:
        raise RequestError("dev_noise: without dev sets a share of noise serves; leave it out")
    else:
        training, dev = set_aside(clips, selection.positives, selection.negatives, seed=config.seed)
    responses = load_clips(rooms, what="room responses").clips
    # mining may have found nothing
    alarms = [cut for source in hard or [] for cut in manifests.read(source, allow_empty=True)]
    free = free_of(alarms, keywords)
    if len(free) < len(alarms):
        logger.warning("%d hard negatives left out: may hold a keyword", len(alarms) - len(free))
    apart = _apart_from(dev, free)
    mined = load_clips(apart, what="hard negatives").clips
    spotter = train_spotter(
        training, dev, out=out, config=config, responses=responses, hard=mined, init=init
    )
    report = {
        "keywords": list(spotter.keywords),
        "rows": selection.counts,
        "broken": training.broken | dev.broken,
        "init": None if init is None else model_digest(init),
        "config": dataclasses.asdict(config),
        **provenance(
            seed=config.seed,
            data={
                **selection.fingerprints(),
                "noise": manifests.fingerprint(noises),
                "rooms": manifests.fingerprint(rooms),
                "hard": manifests.fingerprint(apart),
                "dev": clips_fingerprint([c for cs in dev.positives.values() for c in cs]),
                "dev_negatives": clips_fingerprint(dev.negatives),
            },
        ),
    }
    write_json(out / "train.json", report)
    logger.info("the model is in %s", out / "model")


def _apart_from(dev: Split, alarms: Sequence[Cut]) -> list[Cut]:
    """Return the mined alarms that are not cut from clips of dev."""
    own = {clip.id for clips in (*dev.positives.values(), dev.negatives) for clip in clips}
    apart = [cut for cut in alarms if not own & set(manifests.custom_of(cut).get(AMID_IDS, ()))]
    if len(apart) < len(alarms):
        logger.warning(
            "%d hard negatives left out: cut from clips of dev", len(alarms) - len(apart)
        )
    return apart


def train_spotter(
    training: Split,
    dev: Split | None,
    *,
    out: Path,
    config: TrainConfig,
    responses: Sequence[Clip] = (),
    hard: Sequence[Clip] = (),
    init: Path | None = None,
) -> Spotter:
    """Train on decoded clips; return the best spotter, its thresholds frozen on ``dev``.

    Without ``dev`` the last epoch is kept, and no threshold frozen.

    Raises
    ------
    RequestError
        if ``dev`` cannot tell misses from false alarms, or ``init`` is of other settings.
    """
    if dev is not None:
        _require_both(dev)
    clips = {
        "training": training.fingerprints(),
        "dev": None if dev is None else dev.fingerprints(),
        "rooms": clips_fingerprint(responses),
        "hard": clips_fingerprint(hard),
    }
    spotter = new_spotter(list(training.positives), config, init)
    labels = spotter.config.labels
    other = labels.index(UNKNOWN if config.classes == "unknown-silence" else BACKGROUND)
    silence = labels.index(SILENCE) if config.classes == "unknown-silence" else other
    material = Material(
        positives=[(c, labels.index(k)) for k, clips in training.positives.items() for c in clips],
        negatives=[(c, silence if c.id in training.silent else other) for c in training.negatives],
        hard=[(clip, other) for clip in hard],
        noises=training.noises,
        responses=list(responses),
        other=other,
        silence=silence,
    )
    batches = SceneBatches(
        material,
        config.scenes,
        keyword_labels=frozenset(labels.index(k) for k in spotter.keywords),
        window_s=spotter.window_samples / SAMPLE_RATE,
        hop_s=spotter.hop_samples / SAMPLE_RATE,
        seed=config.seed,
    )
    claim(out, _described(config, clips, init))
    progress = sys.stderr.isatty()
    if dev is None:
        return fit(spotter, batches, None, config=config.fit, out=out, progress=progress)
    positives, negatives = _dev_streams(dev, config.snr_db, negative_draws=1)
    kept = DevSet({k: list(streams) for k, streams in positives.items()}, list(negatives))
    best = fit(spotter, batches, kept, config=config.fit, out=out, progress=progress)
    # heard once, and so never in memory together
    positives, negatives = _dev_streams(dev, config.snr_db, negative_draws=_FREEZE_DRAWS)
    heard = listen(Detector(best), positives=positives, negatives=negatives)
    frozen = freeze(best, heard, config)
    frozen.save(out / "model")
    return frozen


def _require_both(dev: Split) -> None:
    if not dev.negatives or not dev.positives or not all(dev.positives.values()):
        counts = ", ".join(f"{len(clips)} of {k}" for k, clips in dev.positives.items())
        raise RequestError(
            f"dev set: {counts or 'no positives'}, {len(dev.negatives)} negatives: epochs and "
            "thresholds are chosen by misses and false alarms; give some of each"
        )


def _dev_streams(
    dev: Split, snr_db: float, *, negative_draws: int
) -> tuple[dict[str, Iterator[Stream]], Iterator[Stream]]:
    """Return dev in noise, made as it is heard: keywords and negatives in several draws of it."""

    def draws(
        count: int, streams: Callable[..., Iterable[Stream]], clips: Sequence[Clip]
    ) -> Iterator[Stream]:
        for draw in range(count):
            yield from streams(clips, dev.noises, snr_db=snr_db, seed=draw)

    return (
        {k: draws(_DEV_DRAWS, keyword_streams, clips) for k, clips in dev.positives.items()},
        draws(negative_draws, negative_streams, dev.negatives),
    )


def _described(config: TrainConfig, clips: dict[str, Any], init: Path | None) -> dict[str, Any]:
    """Return all that a run depends on."""
    # how many processes make the batches changes nothing in them
    fit_config = dataclasses.replace(config.fit, workers=0)
    return {
        "config": dataclasses.asdict(dataclasses.replace(config, fit=fit_config)),
        "clips": clips,
        "init": None if init is None else model_digest(init),
    }


def freeze(spotter: Spotter, dev: dict[str, Scored], config: TrainConfig) -> Spotter:
    """Return the spotter with the thresholds that meet the target on dev."""
    thresholds = {}
    for keyword, scored in dev.items():
        row = operating_point([scored], fa_per_hour=config.fa_per_hour)
        if row["threshold"] is None:
            logger.warning("%s: no threshold meets %g FA/hour on dev", keyword, config.fa_per_hour)
            continue
        hours = scored.negative_hours / _FREEZE_DRAWS
        if config.fa_per_hour * hours < 1:
            logger.warning(
                "%s: %.2f h of dev negatives, heard in %d noises, cannot resolve %g FA/hour: other "
                "audio may give more; give more dev negatives",
                *(keyword, hours, _FREEZE_DRAWS, config.fa_per_hour),
            )
        thresholds[keyword] = Threshold(
            value=row["threshold"],
            fa_per_hour=config.fa_per_hour,
            snr_db=config.snr_db,
            negative_hours=scored.negative_hours,
        )
    return spotter.with_thresholds(thresholds)


def new_spotter(keywords: list[str], config: TrainConfig, init: Path | None = None) -> Spotter:
    """Return the spotter that a training starts from: untrained, or the one in ``init``.

    Raises
    ------
    RequestError
        if the settings cannot be built, or ``init`` is of others.
    """
    background = (SILENCE, UNKNOWN) if config.classes == "unknown-silence" else (BACKGROUND,)
    labels = (*background, *keywords)
    if init is not None:
        spotter = Spotter.load(init)
        if spotter.config.labels != labels:
            raise RequestError(
                f"{init}: is a model for {', '.join(spotter.config.labels)}, wanted is one for "
                f"{', '.join(labels)}"
            )
        _require_settings(spotter, config, init)
        return spotter.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Spotter(
            SpotterConfig(
                labels=labels,
                frontend=config.frontend,
                network=config.network,
                detection=config.detection,
            )
        )


def _require_settings(spotter: Spotter, config: TrainConfig, init: Path) -> None:
    """Refuse to go on from a model of other settings, which would silently take their place."""
    wanted = {
        "network": dataclasses.asdict(network_config(config.network)),
        "frontend": frontend.build(config.frontend).describe(),
        "detection": dataclasses.asdict(config.detection),
    }
    found = {
        "network": dataclasses.asdict(spotter.network.config),
        "frontend": spotter.frontend.describe(),
        "detection": dataclasses.asdict(spotter.config.detection),
    }
    for name, value in wanted.items():
        if found[name] != value:
            raise RequestError(
                f"{init}: its {name} is {found[name]}, wanted is {value}; give the same"
            )
