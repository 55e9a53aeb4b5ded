"""Training steps by length, and an hour transcribed in several ways: measured row by row, reported.

A row is a file of its own, so a run that was interrupted goes on where it stopped.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lhotse.cut import Cut

from speechkit import manifests
from speechkit.asr import long_form
from speechkit.asr.long_form import WAYS, LongFormConfig
from speechkit.asr.step_cost import StepConfig, step_row
from speechkit.files import atomic_path, write_json
from speechkit.isolated import Limits
from speechkit.reports import markdown_table, provenance, write_report

logger = logging.getLogger(__name__)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class LongAudioConfig:
    """What is measured.

    Parameters
    ----------
    steps
        training steps of a sparse and a dense encoder.
    long_form
        transcription of a long recording.
    limits
        of time and memory of each row.
    """

    steps: StepConfig = StepConfig()
    long_form: LongFormConfig = LongFormConfig()
    limits: Limits = Limits()


def measure(
    models: Sequence[Path], clips: Sequence[Cut], *, out: Path, config: LongAudioConfig
) -> None:
    """Measure what is not measured yet, and write the report.

    Parameters
    ----------
    models
        model folders to transcribe with; none to measure training steps alone.
    clips
        the utterances of one long recording, in their order.
    out
        gets rows/, report.json, report.md and, where steps are measured, steps.png.
    """
    steps = list(_step_rows(out / "rows", config))
    transcribed = list(_way_rows(models, clips, out / "rows", config)) if models else []
    compared = {
        str(model): _compared(model, clips, transcribed, config.long_form) for model in models
    }
    report = {
        "steps": steps,
        "transcribed": [{k: v for k, v in row.items() if k != "text"} for row in transcribed],
        "compared": compared,
        "duration_s": clips[0].recording.duration if clips else None,
        "config": asdict(config),
        **provenance(seed=config.long_form.seed, data={"clips": manifests.fingerprint(clips)}),
    }
    if steps:
        _plot_steps(out / "steps.png", steps)
    write_report(out, report, _markdown(report))


def _step_rows(folder: Path, config: LongAudioConfig) -> Iterator[Row]:
    for pattern in config.steps.patterns:
        for length_s in config.steps.lengths_s:
            own = {**asdict(config.steps), "lengths_s": None, "patterns": None}
            key = {"steps": own, "pattern": pattern, "length_s": length_s}
            yield _once(
                folder / f"step-{_name(pattern)}-{length_s:g}.json",
                {**key, "limits": asdict(config.limits)},
                partial(step_row, config.steps, pattern, length_s, limits=config.limits),
            )


def _way_rows(
    models: Sequence[Path], clips: Sequence[Cut], folder: Path, config: LongAudioConfig
) -> Iterator[Row]:
    for number, model in enumerate(models):
        weights = (model / "model.safetensors").stat()
        key = {
            "model": str(model),
            "weights": [weights.st_size, weights.st_mtime],
            "clips": manifests.fingerprint(clips),
            "long_form": asdict(config.long_form),
            "limits": asdict(config.limits),
        }
        for way in WAYS:
            yield _once(
                folder / f"transcribed-{number}-{_name(way)}.json",
                key,
                partial(
                    long_form.way_row,
                    model,
                    clips,
                    way,
                    config=config.long_form,
                    limits=config.limits,
                ),
            )


def _once(path: Path, key: Mapping[str, Any], measured: Callable[[], Row]) -> Row:
    """Return the row in a file, if it was measured under the same key, else measure it."""
    wanted = json.loads(json.dumps(key))
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == wanted:
            return dict(stored["row"])
    row = measured()
    logger.info("%s: %s", path.stem, {k: v for k, v in row.items() if k != "text"})
    write_json(path, {"key": wanted, "row": row})
    return row


def _compared(
    model: Path, clips: Sequence[Cut], rows: Sequence[Row], config: LongFormConfig
) -> list[Row]:
    own = [row for row in rows if row["model"] == str(model)]
    said = long_form.spoken(model, clips)
    duration_s = clips[0].recording.duration
    return long_form.compare(said, own, duration_s=duration_s, config=config)


def _markdown(report: Mapping[str, Any]) -> str:
    parts = ["# Long audio"]
    if report["steps"]:
        parts += ["## Training steps", _steps_table(report["steps"]), "![steps](steps.png)"]
    if report["transcribed"]:
        minutes = report["duration_s"] / 60
        parts += [f"## A recording of {minutes:.1f} minutes", _cost_table(report)]
        parts += [_seams_table(report), _NOTE]
    return "\n\n".join(parts)


_NOTE = (
    "Decoding is greedy in all ways. Differences are of WER in percentage points, with paired "
    "bootstrap intervals of 95 %: over utterances, and over the surroundings of the seams of "
    "chunks, where all ways are scored in the same places."
)


def _steps_table(rows: Sequence[Row]) -> str:
    header = ["attention", "utterance, s", "step, s", "peak, GiB", "scores if stored, GiB", ""]
    cells = [
        [
            row["pattern"],
            f"{row['length_s']:g}",
            _number(row["step_s"]),
            _number(row["peak_gib"]),
            _number(row["scores_gib"]),
            f"stopped: {row['stopped']}" if row["stopped"] else "",
        ]
        for row in rows
    ]
    return (
        markdown_table(header, cells)
        + "\n\nOne utterance a step: forward, CTC loss, backward, AdamW. The peak is what the "
        "process held beyond its imports. No path here stores the scores of dense attention; the "
        "column is the arithmetic of those that do."
    )


def _cost_table(report: Mapping[str, Any]) -> str:
    header = ["model", "way", "wall time, s", "real-time factor", "peak, GiB", ""]
    duration_s = report["duration_s"]
    cells = [
        [
            row["model"],
            row["way"],
            _number(row["seconds"]),
            _number(row["seconds"] and row["seconds"] / duration_s),
            _number(row["peak_gib"]),
            f"stopped: {row['stopped']}" if row["stopped"] else "",
        ]
        for row in report["transcribed"]
    ]
    return markdown_table(header, cells)


def _seams_table(report: Mapping[str, Any]) -> str:
    header = ["model", "way", "WER", "difference", "WER near seams", "difference", "against"]
    cells = [
        [
            model,
            row["way"],
            f"{row['wer']:.2%}",
            row.get("wer_difference", {}).get("points"),
            f"{row['seam_errors']} of {row['seam_words']} words, {row['seams']} seams",
            row.get("seam_wer_difference", {}).get("points"),
            row.get("against"),
        ]
        for model, rows in report["compared"].items()
        for row in rows
    ]
    return markdown_table(header, cells)


def _plot_steps(path: Path, rows: Sequence[Row]) -> None:
    """Plot time and peak memory of training steps over the length of the utterance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, (name, label) in zip(
        figure.subplots(1, 2), (("step_s", "step, s"), ("peak_gib", "peak, GiB")), strict=True
    ):
        for pattern in dict.fromkeys(row["pattern"] for row in rows):
            own = [row for row in rows if row["pattern"] == pattern and not row["stopped"]]
            axes.plot(
                [row["length_s"] for row in own],
                [row[name] for row in own],
                marker="o",
                label=pattern,
            )
        axes.set(xscale="log", yscale="log", xlabel="utterance, s", ylabel=label)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.3g}"


def _name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
