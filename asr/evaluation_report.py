"""What an evaluation of a recogniser leaves behind: report, alignments, reliability plot."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speechkit.asr.bootstrap import wer_interval
from speechkit.asr.confidence import Reliability
from speechkit.asr.scoring import CorpusScore, Counts, Kind, Pair, Transcript, UtteranceScore
from speechkit.errors import RequestError
from speechkit.files import atomic_path, write_text
from speechkit.reports import markdown_table, write_report

_TOP = 10
_UTTERANCES = "utterances.jsonl"
_EDITS: tuple[Kind, ...] = ("substitute", "delete", "insert")


def write_evaluation(
    out: Path,
    score: CorpusScore,
    *,
    title: str,
    about: Mapping[str, Any],
    notes: Sequence[str] = (),
    reliability: Reliability | None = None,
) -> None:
    """Write utterances.jsonl, reliability.png where there is one, report.md and report.json.

    Parameters
    ----------
    about
        what else report.json holds beside the figures: provenance (its seed is used), settings of
        the decoder, broken clips.
    notes
        lines that a reader of the figures must know.
    reliability
        of the words' confidences.
    """
    write_text(out / _UTTERANCES, "".join(map(_utterance_line, score.utterances)))
    report = {"title": title, **_figures(score, seed=about.get("seed") or 0)}
    parts = [f"# {title}", _totals_table(report), "\n".join(f"- {note}" for note in notes)]
    if reliability is not None:
        report["reliability"] = reliability.to_dict()
        plot_reliability(out / "reliability.png", reliability)
        parts.append(
            f"Word confidence: expected calibration error {reliability.error:.3f}.\n\n"
            "![reliability](reliability.png)"
        )
    parts += ["## By speaker", _speaker_table(report), "## Commonest errors", _error_table(report)]
    write_report(out, {**report, **about}, "\n\n".join(part for part in parts if part))


def read_transcripts(folder: Path) -> list[Transcript]:
    """Return what an evaluation compared, as its utterances.jsonl holds it.

    Raises
    ------
    RequestError
        if the folder has none, or one that is cut off or of another kind.
    """
    path = folder / _UTTERANCES
    if not path.is_file():
        raise RequestError(
            f"{folder} has no {_UTTERANCES}; give a folder that `asr evaluate` wrote"
        )
    found = []
    # not splitlines(), which also breaks at separators that a transcript may hold
    try:
        lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path}: cannot be read ({error}); evaluate again") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            words = (row[key] for key in ("id", "reference", "hypothesis", "speaker"))
            found.append(Transcript(*words))
        except (ValueError, KeyError, TypeError) as error:
            raise RequestError(f"{path}, line {number}: not an utterance of a report") from error
    return found


def plot_reliability(path: Path, reliability: Reliability) -> None:
    """Draw the share of right words against their confidence, with the number of words."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    bins = reliability.bins
    upper.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    upper.plot([b.confidence for b in bins], [b.accuracy for b in bins], marker="o")
    upper.set(ylabel="share right", title=f"Calibration error {reliability.error:.3f}")
    upper.legend(fontsize="small")
    lower.bar([b.low for b in bins], [b.count for b in bins], width=0.1, align="edge")
    lower.set(xlabel="confidence", ylabel="words", xlim=(0, 1))
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _figures(score: CorpusScore, *, seed: int) -> dict[str, Any]:
    words, characters, interval = score.words, score.characters, wer_interval(score, seed=seed)
    return {
        "wer": words.rate,
        "wer_low": interval.low,
        "wer_high": interval.high,
        "cer": characters.rate,
        "utterances": len(score.utterances),
        "wrong_utterances": score.wrong_utterances,
        "words": _counts(words),
        "characters": _counts(characters),
        "speakers": [
            {
                "speaker": speaker,
                "utterances": len(part.utterances),
                "wer": part.words.rate,
                "cer": part.characters.rate,
                "words": _counts(part.words),
            }
            for speaker, part in score.by_speaker().items()
        ],
        "commonest": {
            kind: [
                {"reference": pair.reference, "hypothesis": pair.hypothesis, "times": times}
                for pair, times in score.confusions(kind, top=_TOP)
            ]
            for kind in _EDITS
        },
    }


def _counts(counts: Counts) -> dict[str, int]:
    return {
        "reference": counts.length,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
    }


def _utterance_line(score: UtteranceScore) -> str:
    transcript = score.transcript
    row = {
        "id": transcript.id,
        "speaker": transcript.speaker,
        "reference": transcript.reference,
        "hypothesis": transcript.hypothesis,
        "wer": score.words.rate,
        "cer": score.characters.rate,
        "words": _counts(score.words),
        "alignment": [_step(pair) for pair in score.alignment],
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


def _step(pair: Pair) -> list[str | None]:
    return [pair.kind, pair.reference, pair.hypothesis]


def _totals_table(report: Mapping[str, Any]) -> str:
    header = ["", "rate", "95 %", "reference", "substitutions", "deletions", "insertions"]
    interval = f"{report['wer_low']:.2%} to {report['wer_high']:.2%}"
    table = markdown_table(
        header,
        [
            ["WER", f"{report['wer']:.2%}", interval, *report["words"].values()],
            ["CER", f"{report['cer']:.2%}", None, *report["characters"].values()],
        ],
    )
    wrong = f"{report['wrong_utterances']} of {report['utterances']} utterances have word errors."
    return f"{table}\n\n{wrong} The interval is a bootstrap over utterances."


def _speaker_table(report: Mapping[str, Any]) -> str:
    header = ["speaker", "utterances", "WER", "CER", "words", "sub", "del", "ins"]
    rows = [
        [
            row["speaker"],
            row["utterances"],
            f"{row['wer']:.2%}",
            f"{row['cer']:.2%}",
            *row["words"].values(),
        ]
        for row in report["speakers"]
    ]
    return markdown_table(header, rows)


def _error_table(report: Mapping[str, Any]) -> str:
    rows = [
        [kind, row["reference"], row["hypothesis"], row["times"]]
        for kind in _EDITS
        for row in report["commonest"][kind]
    ]
    return markdown_table(["error", "said", "recognised", "times"], rows)
