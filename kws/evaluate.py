"""``speechkit kws evaluate``: miss rates at false alarms per hour, of a model on any recordings."""

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws.clips import Clip, load_clips, load_noises
from speechkit.kws.detector import Detector
from speechkit.kws.measure import listen, listen_amid
from speechkit.kws.report import (
    CLEAN,
    Measured,
    condition_of,
    in_words,
    parse_snr,
    rows_of,
    write_evaluation,
)
from speechkit.kws.rows import normalise
from speechkit.kws.select import read_any, select
from speechkit.kws.streams import background_stream, keyword_streams, negative_streams
from speechkit.reports import provenance

logger = logging.getLogger(__name__)

CONDITIONS = (CLEAN, "20", "10", "5", "0")
FA_PER_HOUR = (0.1, 0.5, 1.0, 2.0)


def evaluate(
    *,
    model: Path,
    positives: list[Path],
    negatives: list[Path],
    out: Path,
    keywords: list[str] | None = None,
    noise: list[Path] | None = None,
    snr: list[str] = list(CONDITIONS),  # noqa: B006 - only read; the help shows it
    fa_per_hour: list[float] = list(FA_PER_HOUR),  # noqa: B006
    background_hours: float | None = None,
    seed: int = 0,
) -> None:
    """Measure FRR against false alarms per hour, through the streaming detector.

    Parameters
    ----------
    model
        the folder that `speechkit kws train` wrote as OUT/model.
    positives, negatives
        manifests; rows whose label or text equals a keyword are its positives.
    out
        gets report.json, report.md, det.png, snr.png and scores.npz.
    keywords
        those of the model's keywords to measure; all by default.
    noise
        manifests of noise to mix in; white noise without any.
    snr
        conditions: "clean" or an SNR in dB, for positives and negatives alike.
    fa_per_hour
        targets.
    background_hours
        hear the keywords amid so many hours of background drawn from the negatives, a fifth of it
        audible, as the benchmark of Picovoice does; without it, each keyword alone, and all of
        the negatives. An hour takes 0.6 GB of memory.
    seed
        of the noise and the background.
    """
    if not fa_per_hour or not all(0 < target < math.inf for target in fa_per_hour):
        raise RequestError(f"fa_per_hour {fa_per_hour}: give targets that are positive")
    if background_hours is not None and not 0 < background_hours < math.inf:
        raise RequestError(f"background_hours {background_hours}: give a positive number")
    if seed < 0:
        raise RequestError(f"seed {seed}: give 0 or more")
    for condition in snr:
        parse_snr(condition)
    detector = Detector.load(model)
    spotter = detector.spotter
    chosen = [normalise(keyword) for keyword in keywords or spotter.keywords]
    if unknown := sorted(set(chosen) - set(spotter.keywords)):
        raise RequestError(
            f"keyword {', '.join(unknown)}: the model knows {', '.join(spotter.keywords)}"
        )
    selection = select(chosen, positives=positives, negatives=negatives)
    if not selection.negatives:
        raise RequestError("no row is a negative; false alarms need audio without the keyword")
    found = {k: load_clips(cuts, what="positives") for k, cuts in selection.positives.items()}
    others = load_clips(selection.negatives, what="negatives")
    sounds = read_any(noise)
    noises = load_noises(sounds)
    measured = measure_conditions(
        detector,
        {keyword: loaded.clips for keyword, loaded in found.items()},
        others.clips,
        noises.clips,
        conditions=snr,
        seed=seed,
        background_hours=background_hours,
    )
    rows = rows_of(measured, model=str(model), targets=fa_per_hour)
    heard = [*found.values(), others, noises]
    broken = {id_: why for part in heard for id_, why in part.broken.items()}
    write_evaluation(
        out,
        measured,
        rows,
        title=f"Keyword spotting: {', '.join(chosen)}",
        about={
            "counts": selection.counts,
            "broken": broken,
            **provenance(
                seed=seed,
                data=selection.fingerprints() | {"noise": manifests.fingerprint(sounds)},
            ),
        },
        notes=[
            *count_notes(selection.counts, broken, noise=bool(noise)),
            *_background_notes(background_hours),
        ],
    )
    log_headline(rows, out)


def measure_conditions(
    detector: Detector,
    positives: dict[str, list[Clip]],
    negatives: Sequence[Clip],
    noises: Sequence[Clip],
    *,
    conditions: Sequence[str],
    seed: int,
    background_hours: float | None = None,
) -> Measured:
    """Run the detector over positives and negatives in each condition.

    Apart, unless ``background_hours`` says how long a background holds the positives.
    """
    measured: Measured = {}
    snrs_db = list(dict.fromkeys(parse_snr(condition) for condition in conditions))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=len(snrs_db))
        for snr_db in snrs_db:
            options: dict[str, Any] = {"snr_db": snr_db, "seed": seed}
            if background_hours is None:
                scored = listen(
                    detector,
                    positives={
                        keyword: keyword_streams(clips, noises, **options)
                        for keyword, clips in positives.items()
                    },
                    negatives=negative_streams(negatives, noises, **options),
                )
            else:
                options["hours"] = background_hours
                scored = {
                    keyword: listen_amid(
                        detector, background_stream(clips, negatives, noises, **options), keyword
                    )
                    for keyword, clips in positives.items()
                }
            measured |= {(keyword, condition_of(snr_db)): [one] for keyword, one in scored.items()}
            progress.advance(task)
    return measured


def count_notes(
    counts: dict[str, dict[str, float]], broken: dict[str, str], *, noise: bool
) -> list[str]:
    """Return what a reader must know about the data."""
    notes = [
        f"{keyword}: {n['positives']:g} positives; {n['negatives']:g} negatives "
        f"({n['negative_hours']:.2f} h), of them {n['unverified']:g} "
        f"({n['unverified_hours']:.2f} h) without text or label, so unverified; "
        f"{n['left_out']:g} rows left out"
        for keyword, n in counts.items()
    ]
    if broken:
        notes.append(f"{len(broken)} broken clips left out: {', '.join(sorted(broken)[:20])}")
    if not noise:
        notes.append("no noise was given: conditions with an SNR use white noise")
    return notes


def _background_notes(hours: float | None) -> list[str]:
    if hours is None:
        return []
    return [f"the keywords lie in {hours:g} h of background drawn from the negatives"]


def log_headline(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Log for each condition what the frozen threshold gives, and then the lowest ones.

    A frozen threshold is one for all targets: its false alarms are as they come.
    """
    for (keyword, condition), group in groupby(rows, lambda r: (r["keyword"], r["condition"])):
        name, found = f"{keyword}, {in_words(condition)}", list(group)
        frozen = [r for r in found if r["threshold_from"] == "dev" and r["frr"] is not None]
        for row in frozen[:1]:
            logger.info(
                "%s: FRR %.2f%% with %.2f false alarms an hour (threshold frozen on dev)",
                *(name, 100 * row["frr"], row["measured_fa_per_hour"]),
            )
        lowest = ", ".join(_in_short(r) for r in found if r["threshold_from"] == "eval")
        logger.info("%s: FRR %s (the lowest threshold that meets it here)", name, lowest)
    logger.info("report: %s", out / "report.md")


def _in_short(row: dict[str, Any]) -> str:
    frr = row["status"] if row["frr"] is None else f"{row['frr']:.2%}"
    unresolved = " (unresolved)" if row["status"] == "unresolved" else ""
    return f"{frr} at {row['fa_per_hour']:g} FA/hour{unresolved}"
