"""The page of the demonstration, from the files that it left: one HTML file with players.

python recipes/demo_page.py --out out/demo       # again, after demo.py
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from al_demo import BUDGET
from kws_demo import KEYWORD

from speechkit import audio, manifests
from speechkit.active_learning.jsonl import read_rows
from speechkit.active_learning.select import read_selection
from speechkit.cli import run_recipe
from speechkit.page import Html, paragraph, picture, player, section, table, write_page

SHOWN = 8


def demo_page(*, out: Path) -> None:
    """Write OUT/index.html.

    Parameters
    ----------
    out
        the folder of a demonstration, with spotter/ and recogniser/.
    """
    write_page(
        out / "index.html",
        "speechkit: spot, recognise, choose what to label",
        paragraph("One small run with synthetic voices, which proves nothing.", note=True),
        spotting(out / "spotter"),
        recognising(out / "recogniser"),
        choosing(out / "recogniser"),
    )
    print(f"all of it on one page: {out / 'index.html'}")


def spotting(folder: Path) -> Html:
    """Return the section on the keyword spotter."""
    report = read(folder / "report/report.json")["rows"]
    rows = [row for row in report if row["fa_per_hour"] == 0.5 and row["frr"] is not None]
    names = ("condition", "threshold_from", "misses", "positives", "false_alarms")
    heard = read(folder / "stream.json")
    return section(
        f"Spotting “{KEYWORD}”",
        paragraph(
            "Misses (FRR) at 0.5 false alarms per hour, clean and with noise at an SNR in dB."
        ),
        table(
            ["FRR", "condition", "threshold from", "misses", "keywords", "false alarms"],
            ([f"{row['frr']:.1%}", *(row[name] for name in names)] for row in rows),
        ),
        picture(folder / "report" / "det.png", "Misses against false alarms, all thresholds"),
        paragraph("A minute of speech in which the detector listens for the word:"),
        Html(f"<p>{player(folder / 'stream.wav')}</p>"),
        paragraph(
            f"The word ends at {times(heard['ends_s'])} s; it was heard at "
            f"{times(one['time_s'] for one in heard['detections'])} s."
        ),
    )


def recognising(folder: Path) -> Html:
    """Return the section on the transcripts of the first model."""
    cuts = {cut.id: cut for cut in manifests.read(folder / "strings" / "test")}
    rows = read_rows(folder / "before" / "utterances.jsonl")[:SHOWN]
    wer = read(folder / "before/report.json")["wer"]
    return section(
        "Recognising digits",
        paragraph(f"From a quarter of the labels, on voices never heard: WER {wer:.1%}."),
        table(
            ["clip", "said", "understood"],
            ([sound(cuts[row["id"]], folder), row["reference"], row["hypothesis"]] for row in rows),
        ),
    )


def choosing(folder: Path) -> Html:
    """Return the section on what was selected, and what labels were worth."""
    rows, cuts = read_selection(folder / "selection")
    clips = list(zip(rows, cuts, strict=True))[:SHOWN]
    return section(
        "Choosing what to label",
        paragraph(f"By expected gradient length (EGL), {BUDGET} of audio: the first {len(clips)}."),
        table(
            ["clip", "understood", "EGL", "entropy", "seconds"],
            (
                [sound(cut, folder), row["hypothesis"]]
                + [f"{row[name]:.3g}" for name in ("egl", "entropy", "duration_s")]
                for row, cut in clips
            ),
        ),
        picture(folder / "report" / "wer.png", "Word error rate against labels added (one seed)"),
    )


def sound(cut: manifests.Cut, folder: Path) -> Html:
    """Return a player of a clip."""
    path = folder / "players" / f"{cut.id}.wav"
    audio.write_audio(path, audio.load_cut(cut))
    return player(path)


def times(times_s: Iterable[float]) -> str:
    """Return times in seconds as a list."""
    return ", ".join(f"{time_s:.1f}" for time_s in times_s)


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    sys.exit(run_recipe(demo_page))
