"""``speechkit kws mine``: find what a model takes for its keyword, as a manifest to train with."""

import logging
from pathlib import Path

from lhotse.cut import Cut
from lhotse.supervision import SupervisionSegment

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws.clips import load_clips
from speechkit.kws.detector import Detector
from speechkit.kws.mining import CONTEXT_S, Alarm, find_alarms
from speechkit.kws.rows import AMID
from speechkit.kws.select import select

logger = logging.getLogger(__name__)


def mine(
    *,
    model: Path,
    negatives: list[Path],
    out: Path,
    noise: list[Path] | None = None,
    least_score: float = 0.2,
    most: int = 500,
    seed: int = 0,
) -> None:
    """Write the false alarms of a model as cuts.jsonl.gz, for `speechkit kws train --hard`.

    Mine audio that is in no dev or test set.

    Parameters
    ----------
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    negatives
        manifests; rows that hold a keyword are left out.
    out
        gets cuts.jsonl.gz: each cut is an alarm with its context, the supervision marks the alarm.
    noise
        manifests of noise; with some, the audio is heard clean and at 5 dB.
    least_score, most
        what counts as an alarm, and how many to keep for each keyword, the highest first.
    """
    if not 0 <= least_score <= 1 or most < 1:
        raise RequestError(f"least_score {least_score}, most {most}: give 0 to 1, and at least 1")
    detector = Detector.load(model)
    selection = select(list(detector.spotter.keywords), positives=[], negatives=negatives)
    loaded = load_clips(selection.negatives, what="negatives")
    noises = load_clips(manifests.read_all(noise), what="noise").clips if noise else []
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
    manifests.write([_as_cut(cuts[a.clip_id], a) for a in alarms], out / manifests.CUTS_NAME)
    logger.info("%d alarms in %.2f h, in %s", len(alarms), loaded.hours, out / manifests.CUTS_NAME)


def _as_cut(cut: Cut, alarm: Alarm) -> Cut:
    start, end = alarm.core
    first = max(0.0, start - CONTEXT_S)
    last = min(cut.duration, end + CONTEXT_S)
    short = cut.truncate(offset=first, duration=last - first, preserve_id=False)
    short.id = f"{cut.id}@{alarm.centre_s:.2f}"
    short.supervisions = [
        SupervisionSegment(
            id=short.id,
            recording_id=cut.recording_id,
            start=max(0.0, start - first),
            duration=min(end, last) - max(start, first),
            speaker=manifests.speaker_of(cut),
            # whoever trains another keyword with it must know what it may hold
            custom={
                "mined_for": alarm.keyword,
                "score": alarm.score,
                AMID: [name for name in (manifests.label_of(cut), manifests.text_of(cut)) if name],
            },
        )
    ]
    return short
