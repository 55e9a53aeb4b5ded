"""``speechkit kws mine``: find what a model takes for its keyword, as a manifest to train with."""

import logging
from collections.abc import Mapping
from pathlib import Path

from lhotse.audio import Recording
from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from speechkit import manifests
from speechkit.audio import SAMPLE_RATE, write_audio
from speechkit.checkpoint import model_digest
from speechkit.errors import RequestError
from speechkit.kws.clips import load_clips, load_noises
from speechkit.kws.detector import Detector
from speechkit.kws.mining import LEAST_SCORE, MOST_ALARMS, Alarm, find_alarms
from speechkit.kws.rows import AMID, AMID_IDS
from speechkit.kws.select import read_any, select

logger = logging.getLogger(__name__)

_CLAIM = "mine.json"


def mine(
    *,
    model: Path,
    negatives: list[Path],
    out: Path,
    noise: list[Path] | None = None,
    least_score: float = LEAST_SCORE,
    most: int = MOST_ALARMS,
    seed: int = 0,
) -> None:
    """Write the false alarms of a model as a data set, for `speechkit kws train --hard`.

    Mine audio that is in no dev or test set.

    Parameters
    ----------
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    negatives
        manifests; rows that hold a keyword are left out.
    out
        gets cuts.jsonl.gz and audio/: each cut is an alarm as it was heard, with its context and
        noise; the supervision marks the alarm.
    noise
        manifests of noise; with some, the audio is heard clean and at 5 dB.
    least_score, most
        what counts as an alarm, and how many to keep for each keyword, the highest first.
    seed
        of the noise, and of what stands beside each other.

    Raises
    ------
    RequestError
        if no row is a negative, or the folder holds something else.
    """
    if not 0 <= least_score <= 1 or most < 1:
        raise RequestError(f"least_score {least_score}, most {most}: give 0 to 1, and at least 1")
    if seed < 0:
        raise RequestError(f"seed {seed}: give 0 or more")
    detector = Detector.load(model)
    selection = select(list(detector.spotter.keywords), positives=[], negatives=negatives)
    if not selection.negatives:
        raise RequestError("no row is a negative; false alarms are found in audio without keywords")
    sounds = read_any(noise)
    # numbered files of another mining would lie under this one's names
    manifests.claim_set(
        out,
        {
            "model": model_digest(model),
            "data": selection.fingerprints() | {"noise": manifests.fingerprint(sounds)},
            "settings": {"least_score": least_score, "most": most, "seed": seed},
        },
        file=_CLAIM,
    )
    loaded = load_clips(selection.negatives, what="negatives")
    noises = load_noises(sounds).clips
    alarms = find_alarms(
        detector,
        loaded.clips,
        noises,
        least_score=least_score,
        most=most,
        snrs_db=(None, 5.0) if noise else (None,),
        seed=seed,
    )
    cuts = {cut.id: cut for cut in selection.negatives}
    manifests.write(
        [
            _write(alarm, out / "audio" / f"{number:05d}.flac", cuts)
            for number, alarm in enumerate(alarms)
        ],
        out / manifests.CUTS_NAME,
    )
    logger.info("%d alarms in %.2f h, in %s", len(alarms), loaded.hours, out / manifests.CUTS_NAME)


def _write(alarm: Alarm, path: Path, cuts: Mapping[str, Cut]) -> Cut:
    """Write an alarm's audio, and return a cut of it."""
    write_audio(path, alarm.heard.audio)
    heard, core = Recording.from_file(path, recording_id=alarm.heard.id), alarm.heard.span
    cut = heard.to_cut()
    cut.id = heard.id
    cut.supervisions = [
        SupervisionSegment(
            id=heard.id,
            recording_id=heard.id,
            start=core.start / SAMPLE_RATE,
            duration=core.samples / SAMPLE_RATE,
            speaker=manifests.speaker_of(cuts[alarm.clip_id]),
            # whoever trains another keyword with it must know what it may hold
            custom={
                "mined_for": alarm.keyword,
                "score": alarm.score,
                AMID: [
                    name
                    for id_ in alarm.amid
                    for name in (manifests.label_of(cuts[id_]), manifests.text_of(cuts[id_]))
                    if name
                ],
                # and whoever sets some of the clips aside, that it is cut from them
                AMID_IDS: list(alarm.amid),
            },
        )
    ]
    return cut
