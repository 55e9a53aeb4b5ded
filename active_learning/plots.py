"""Pictures of comparisons: learning curves with bands, and the correlation matrix."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from speechkit.files import atomic_path

if TYPE_CHECKING:
    from speechkit.active_learning.compare import ComparisonConfig

_MAX_LABELLED = 30  # columns whose cells are still wide enough for a number


def plot_curves(
    path: Path, curves: Mapping[str, Any], *, metric: str, config: "ComparisonConfig"
) -> None:
    """Draw mean and band of each curve (x, mean, low, high); the baseline is black and dashed."""
    with _figure(path, size=(7.0, 4.5)) as axes:
        for name, curve in curves.items():
            style: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.4}
            if name == config.baseline:
                style |= {"color": "black", "linestyle": "--"}
            (line,) = axes.plot(curve["x"], curve["mean"], label=name, **style)
            color = line.get_color()
            ends = (_numbers(curve[end]) for end in ("low", "high"))
            axes.fill_between(curve["x"], *ends, alpha=0.12, color=color)
        axes.set_xlabel("share of the pool" if config.axis == "share" else "seconds of audio")
        axes.set_ylabel(metric.upper())
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)


def plot_differences(
    path: Path, rows: Sequence[Mapping[str, Any]], *, metric: str, config: "ComparisonConfig"
) -> None:
    """Draw by how many percent each strategy's errors lie below the baseline's, share by share.

    Bands are those of the paired difference: what seeds have in common, which bands of the curves
    themselves are full of, is not in them.
    """
    with _figure(path, size=(7.0, 4.5)) as axes:
        axes.axhline(0.0, color="black", linestyle="--", linewidth=1.2, label=config.baseline)
        for row in rows:
            shown = list(zip(row["share"], row["reductions"], strict=True))
            x = [100 * share for share, _ in shown]
            ends = (_numbers([r["interval"][end] for _, r in shown]) for end in ("low", "high"))
            values = _numbers([r["value"] for _, r in shown])
            (line,) = axes.plot(x, 100 * values, marker="o", markersize=3, label=row["strategy"])
            axes.fill_between(x, *(100 * e for e in ends), alpha=0.12, color=line.get_color())
        axes.set_xlabel("share of the pool, %")
        axes.set_ylabel(f"{metric.upper()} below that of {config.baseline}, %")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)


def plot_correlations(path: Path, found: Mapping[str, Any]) -> None:
    """Draw a matrix of rank correlations (columns, spearman), with numbers if there is room."""
    names = found["columns"]
    matrix = np.array(found["spearman"], dtype=np.float64)
    side = max(3.5, 0.5 * len(names) + 1.5)
    with _figure(path, size=(side + 1.0, side)) as axes:
        image = axes.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        axes.figure.colorbar(image, ax=axes, label="Spearman", shrink=0.8)
        axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), names, fontsize=8)
        if len(names) <= _MAX_LABELLED:
            for (row, column), value in np.ndenumerate(matrix):
                shade = "white" if abs(value) > 0.6 else "black"
                text = "" if np.isnan(value) else f"{value:.2f}"
                axes.text(column, row, text, ha="center", va="center", fontsize=7, color=shade)


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    """Return values of a report, NaN for those that are not known, which leave a gap."""
    return np.array(values, dtype=np.float64)


@contextmanager
def _figure(path: Path, *, size: tuple[float, float]) -> Iterator[Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    yield figure.subplots()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
