"""``speechkit asr compare``: whether one recogniser is better than another, or it is chance."""

from pathlib import Path
from typing import Any

from rich.console import Console

from speechkit.asr import bootstrap
from speechkit.asr.bootstrap import Unit
from speechkit.asr.evaluation_report import read_transcripts
from speechkit.asr.scoring import CorpusScore, score
from speechkit.errors import RequestError
from speechkit.reports import markdown_table, provenance, write_report

_UNITS: tuple[Unit, ...] = ("words", "characters")
_NOTE = (
    "Differences from the first, in percentage points: below 0, fewer errors. Paired bootstrap "
    "over utterances, 95 %; an interval that holds 0 decides nothing."
)


def compare(*, reports: list[Path], out: Path | None = None, seed: int = 0) -> None:
    """Set evaluations of the same utterances beside each other, each against the first.

    Parameters
    ----------
    reports
        folders that `speechkit asr evaluate` wrote, two or more.
    out
        gets report.json and report.md; the table is printed in any case.
    seed
        of the bootstrap.

    Raises
    ------
    RequestError
        if there is one report alone, or they are of other utterances than the first.
    """
    if seed < 0:
        raise RequestError(f"seed {seed}: give 0 or more")
    if len(reports) < 2:
        raise RequestError(f"{len(reports)} report: give two or more to compare")
    scores = [score(read_transcripts(folder)) for folder in reports]
    rows = [_row(folder, own, scores[0], seed) for folder, own in zip(reports, scores, strict=True)]
    markdown = f"# Evaluations compared\n\n{_table(rows)}\n\n{_NOTE}"
    Console().print(markdown, markup=False, highlight=False, soft_wrap=True)
    if out is not None:
        write_report(out, {"compared": rows, **provenance(seed=seed, data={})}, markdown)


def _row(folder: Path, own: CorpusScore, first: CorpusScore, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"report": str(folder), "utterances": len(own.utterances)}
    for unit in _UNITS:
        found = bootstrap.compare(first, own, unit=unit, seed=seed)
        row[unit] = {"rate": getattr(own, unit).rate, **found.to_dict()}
    return row


def _table(rows: list[dict[str, Any]]) -> str:
    header = ["report", "utterances", "WER", "difference", "CER", "difference"]
    cells = [
        [
            row["report"],
            row["utterances"],
            *(
                text
                for unit in _UNITS
                for text in (f"{row[unit]['rate']:.2%}", row[unit]["points"] if number else None)
            ),
        ]
        for number, row in enumerate(rows)
    ]
    return markdown_table(header, cells)
