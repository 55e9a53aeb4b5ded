"""The page that `speechkit al compare` writes: what it found, as tables and plots."""

from collections.abc import Sequence
from typing import Any

from speechkit.reports import markdown_table, short_names

Json = dict[str, Any]


def comparison_markdown(report: Json) -> str:
    """Return the page of what `speechkit al compare` found, the same numbers as its JSON."""
    config = report["comparison"]
    unit = "share of the pool" if config["axis"] == "share" else "seconds of audio"
    parts = [
        "# Comparison of strategies",
        f"Against {config['baseline']}, over the {unit}, at a share of {config['at']:g}. Intervals "
        "are of 95 %, over paired seeds: Student's t, and of savings a bootstrap widened "
        "accordingly, which is still too narrow for fewer than six seeds. p by "
        f"{config['test']} test, Holm-corrected over the strategies. Saving: the part of the "
        "labels that the baseline needs and the strategy does not, for the same error; a bound "
        "where the baseline's curve ends or starts there.",
    ]
    for metric, compared in report["metrics"].items():
        parts += [f"## {metric}", _against_table(compared["against_baseline"])]
        parts += ["By which part errors lie below the baseline's, share by share:"]
        parts += [_reduction_table(compared["against_baseline"])]
        parts += [_curve_table(compared["curves"]), f"![{metric}]({metric}.png)"]
        parts += [f"![difference](difference_{metric}.png)"]
        parts += ["\n".join(f"- {note}" for note in compared["notes"])]
    if report["correlations"]:
        parts += ["## How alike scores rank", _matrix_table(report["correlations"])]
        parts += ["![correlations](correlations.png)"]
    if report["selections"]:
        parts += ["## What was selected", _composition_table(report["selections"])]
    return "\n\n".join(part for part in parts if part)


def _against_table(rows: Sequence[Json]) -> str:
    header = ("strategy", "seeds", "error", "baseline", "reduction", "p (Holm)", "saving", "area")
    cells = [
        (
            row["strategy"],
            row["seeds"],
            f"{row['error']:.4g}",
            f"{row['baseline_error']:.4g}",
            _percent(row["reduction"]["value"], row["reduction"]["interval"]),
            f"{row['error_p']:.3g} ({row['error_p_holm']:.3g})",
            _saving_cell(row["saving"]),
            f"{row['area']['value']:.4g} against {row['baseline_area']['value']:.4g}, "
            f"p {row['area_p']:.3g} ({row['area_p_holm']:.3g})",
        )
        for row in rows
    ]
    return markdown_table(header, cells)


def _reduction_table(rows: Sequence[Json]) -> str:
    shares = sorted({share for row in rows for share in row["share"]})
    cells = []
    for row in rows:
        found = dict(zip(row["share"], row["reductions"], strict=True))
        texts = (found.get(share) for share in shares)
        percents = [None if r is None else _percent(r["value"], r["interval"]) for r in texts]
        cells.append((row["strategy"], row["seeds"], *percents))
    return markdown_table(("strategy", "seeds", *(f"{share:.3g}" for share in shares)), cells)


def _saving_cell(saving: Json) -> str:
    if saving["saving"] is None:
        return "none: the baseline starts as good"
    bound = f"{saving['censored']} " if saving["censored"] else ""
    return bound + _percent(saving["saving"], saving["interval"])


def _percent(value: float | None, interval: Json) -> str:
    middle, low, high = (
        "-" if number is None else f"{number:.1%}"
        for number in (value, interval["low"], interval["high"])
    )
    return f"{middle} [{low}, {high}]"


def _curve_table(curves: dict[str, Json]) -> str:
    shares = sorted({share for curve in curves.values() for share in curve["share"]})
    rows = []
    for name, curve in curves.items():
        points = zip(curve["share"], curve["mean"], curve["low"], curve["high"], strict=True)
        cells = {share: _error_cell(*found) for share, *found in points}
        rows.append((name, len(curve["seeds"]), *(cells.get(share) for share in shares)))
    return markdown_table(("strategy", "seeds", *(f"{share:.3g}" for share in shares)), rows)


def _error_cell(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.4g}" if low is None else f"{mean:.4g} [{low:.4g}, {high:.4g}]"


def _matrix_table(found: Json) -> str:
    names = found["columns"]
    pairs = zip(names, found["spearman"], found["top_overlap"], strict=True)
    rows = [
        (name, *(None if r is None else f"{r:.2f} ({o:.2f})" for r, o in zip(rs, os, strict=True)))
        for name, rs, os in pairs
    ]
    head = (
        f"Spearman, and overlap of the top {found['top_share']:.0%}, over {found['clips']} clips."
    )
    return f"{head}\n\n{markdown_table(('', *names), rows)}"


def _composition_table(selections: dict[str, Json]) -> str:
    names = list(dict.fromkeys(name for made_of in selections.values() for name in made_of))
    short = short_names(selections)
    rows = [
        (short[folder], *(made_of.get(name) for name in names))
        for folder, made_of in selections.items()
    ]
    return markdown_table(("", *names), rows)
