"""What a measuring verb leaves behind: report.json for machines, report.md for people."""

import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console

from speechkit import __version__
from speechkit.files import write_json, write_text


def provenance(*, seed: int | None, data: Mapping[str, str]) -> dict[str, Any]:
    """Return what it takes to repeat a measurement: versions, device, seed, data fingerprints."""
    import torch

    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "speechkit": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "lhotse")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "data": dict(data),
    }


@cache
def commit() -> str | None:
    """Return the commit that this code is of, with a "+" if files differ; None outside of git."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():  # installed; a repository further up is not ours
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--exclude", "*", "--dirty=+"]
    try:
        found = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def write_report(out: Path, report: Mapping[str, Any], markdown: str) -> None:
    """Write ``OUT/report.md`` and then ``OUT/report.json``, whose presence marks completion."""
    write_text(out / "report.md", markdown.rstrip() + "\n")
    write_json(out / "report.json", report)


def console_for_tables() -> Console:
    """Return standard output for tables, whose cells are taken as they are."""
    # a pipe has no width of its own, and the default of 80 columns would break file names
    return Console(width=None if sys.stdout.isatty() else 200, markup=False, emoji=False)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Format a table; None becomes a dash, and a bar inside a cell is escaped."""

    def line(cells: Sequence[object]) -> str:
        texts = ("-" if cell is None else str(cell).replace("|", "\\|") for cell in cells)
        return "| " + " | ".join(texts) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)])


def short_names(folders: Iterable[str]) -> dict[str, str]:
    """Return what a report calls each folder: its own name, or all of it if two share one."""
    names = {folder: Path(folder).name for folder in folders}
    return names if len(set(names.values())) == len(names) else {folder: folder for folder in names}
