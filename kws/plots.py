"""Pictures of an evaluation: the DET curve, and misses against the SNR."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechkit.files import atomic_path

# false alarms per hour and FRR, from the lowest threshold to the highest
DetLine = tuple[NDArray[np.float64], NDArray[np.float64]]


def plot_det(
    path: Path, lines: Mapping[str, DetLine], *, title: str = "Detection error trade-off"
) -> None:
    """Draw FRR against false alarms per hour; a line for each label."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for label, (alarms, frr) in lines.items():
        axes.step(alarms, 100 * frr, where="post", label=label)
    axes.set(
        xscale="log",
        xlim=(0.05, 50),
        xlabel="false alarms per hour",
        ylabel="FRR (%)",
        title=title,
    )
    axes.set_ylim(bottom=0)
    axes.axvline(0.5, color="grey", linestyle=":")
    axes.grid(visible=True, alpha=0.3)
    if lines:
        axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def plot_snr(path: Path, lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Draw the FRR of report rows against their SNR, with intervals; clean is the right end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    rows = [row for line in lines.values() for row in line]
    order = {row["condition"]: _snr_order(row["snr_db"]) for row in rows}
    conditions = sorted(order, key=order.__getitem__)
    place = {condition: index for index, condition in enumerate(conditions)}
    drawn = {label: [r for r in line if r["frr"] is not None] for label, line in lines.items()}
    for label, points in drawn.items():
        points.sort(key=lambda row: place[row["condition"]])
        middle = np.array([100 * row["frr"] for row in points])
        low = middle - [100 * row["frr_low"] for row in points]
        high = np.array([100 * row["frr_high"] for row in points]) - middle
        x = [place[row["condition"]] for row in points]
        axes.errorbar(
            x, middle, yerr=np.maximum([low, high], 0), marker="o", capsize=3, label=label
        )
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set(xlabel="condition", ylabel="FRR (%)", title="FRR against SNR")
    axes.grid(visible=True, alpha=0.3)
    if any(drawn.values()):
        axes.legend(fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _snr_order(snr_db: float | None) -> float:
    return float("inf") if snr_db is None else snr_db
