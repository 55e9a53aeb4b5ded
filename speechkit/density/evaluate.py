"""``speechkit density evaluate``: bits per byte, with the least context of each byte stated."""

import logging
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import Progress

from speechkit.density.artifact import Artifact
from speechkit.density.corpus import Corpus
from speechkit.density.metrics import Baseline, compressor_baselines, unigram_bits_per_byte
from speechkit.density.optimisation import Precision
from speechkit.density.scoring import Score, score, spread, total
from speechkit.density.sources import CorpusName, SourceConfig, open_corpus
from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path
from speechkit.reports import markdown_table, provenance, write_report

logger = logging.getLogger(__name__)

_OTHER_SPLITS = (
    "is not what the model was trained on, or is divided in another way: bytes that it has learnt "
    "may be among those that are scored; give the same --source settings and data"
)
_DTYPES = {"bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How bits per byte are measured.

    Parameters
    ----------
    min_context
        bytes before each scored byte, at least, but for the first window's: windows of the model's
        n bytes are taken n - min_context apart, so time grows as that shrinks. Figures at different
        values do not compare. Images are scored whole, at 0.
    windows
        windows to score, at even distances; 0 for all.
    batch
        windows at once; changes nothing in the result.
    precision
        of matrix products: "32", "bf16" or, on a GPU, "16".
    baselines
        also measure general compressors on the same bytes, after the training bytes.
    """

    min_context: int = 0
    windows: int = 0
    batch: int = 8
    precision: Precision = "32"
    baselines: bool = False


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A score and what it is compared with."""

    score: Score
    baselines: Sequence[Baseline] = ()
    unigram: float | None = None


def evaluate(
    *,
    model: Path,
    corpus: CorpusName,
    out: Path,
    data: list[Path] | None = None,
    split: Literal["train", "valid", "test"] = "valid",
    source: SourceConfig = SourceConfig(),
    config: ScoringConfig = ScoringConfig(),
) -> None:
    """Measure a density model in bits per byte.

    Parameters
    ----------
    model
        the folder that `speechkit density train` wrote as OUT/model.
    corpus, data
        as given to `speechkit density train`.
    split
        train, valid or test.
    out
        gets report.json, report.md and context.png (bits per byte by bytes of context).
    """
    artifact = Artifact.load(model)
    found = open_corpus(corpus, data, source)
    evaluate_with(artifact, found, split=split, out=out, config=config, model=str(model))


def evaluate_with(
    artifact: Artifact,
    corpus: Corpus,
    *,
    out: Path,
    split: str = "valid",
    config: ScoringConfig = ScoringConfig(),
    model: str = "",
) -> Evaluation:
    """Measure a model on a split; write the report.

    Raises
    ------
    RequestError
        if the corpus has other bytes than the model knows, or fewer than its context.
    JobError
        if the model's weights are damaged.
    """
    artifact.check(corpus)
    if other_splits := artifact.learnt_from_other_splits(corpus):
        logger.warning("%s: %s", corpus.name, _OTHER_SPLITS)
    if config.baselines:
        _require_comparable(split, config)
    found = Evaluation(measure(artifact, corpus, split=split, config=config))
    if not math.isfinite(found.score.bits_per_byte):
        raise JobError("the model gives NaN or infinity: its weights are damaged; train again")
    if config.baselines:
        found = _compared(found.score, corpus, split)
    length = artifact.model.config.context
    report = {
        **_summary(found, length, config),
        "split": split,
        "by_context": _by_context(found.score),
        "source_entropy": corpus.entropy.get(split),
        "baselines": [asdict(one) for one in found.baselines],
        "unigram_bits_per_byte": found.unigram,
        "model": model,
        "trained": dict(artifact.about),
        "other_splits": other_splits,
        "precision": config.precision,
        **provenance(seed=None, data={corpus.name: corpus.fingerprint()}),
    }
    _plot(out / "context.png", report["by_context"])
    write_report(out, report, _markdown(report, corpus))
    logger.info(
        "%.4f bits per byte of %s at a minimum context of %d; report: %s",
        found.score.bits_per_byte,
        split,
        config.min_context,
        out / "report.md",
    )
    return found


def measure(artifact: Artifact, corpus: Corpus, *, split: str, config: ScoringConfig) -> Score:
    """Return the score of a split, showing how far it is."""
    model = artifact.model.to(device()).eval()
    windows = corpus.evaluation(split, length=model.config.context, min_context=config.min_context)
    chosen = spread(windows, config.windows)
    scores = score(
        model, windows, chosen, batch=config.batch, precision=lambda: autocast(config.precision)
    )
    found = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("scoring", total=len(chosen))
        for one in scores:
            found.append(one)
            progress.advance(bar, one.windows)
    return total(found)


def device() -> torch.device:
    """Return where models run: on the GPU, if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(precision: Precision) -> AbstractContextManager[Any]:
    """Return the context of a precision.

    Raises
    ------
    RequestError
        for float16 without a GPU.
    """
    if precision == "32":
        return nullcontext()
    if precision == "16" and device().type == "cpu":
        raise RequestError("precision 16: needs a GPU; give bf16 or 32")
    return torch.autocast(device().type, _DTYPES[precision])


def _require_comparable(split: str, config: ScoringConfig) -> None:
    """Refuse compressors for what they know already, or where not all of it is scored."""
    if split == "train":
        raise RequestError("baselines: know the training bytes already; give split valid or test")
    if config.windows:
        raise RequestError("baselines: need all windows; leave windows at 0")


def _compared(found: Score, corpus: Corpus, split: str) -> Evaluation:
    """Add what general compressors need for the same bytes."""
    known, scored = corpus.split("train").whole(), corpus.split(split).whole()
    return Evaluation(
        found, compressor_baselines(known, scored), unigram_bits_per_byte(known, scored)
    )


def _summary(found: Evaluation, length: int, config: ScoringConfig) -> dict[str, Any]:
    scored = found.score
    return {
        "bits_per_byte": round(scored.bits_per_byte, 6),
        "min_context": config.min_context,
        "window": length,
        "step": length - config.min_context,
        "windows": scored.windows,
        "windows_are_all": not config.windows,
        "bytes": scored.bytes,
        "seconds_per_window": scored.seconds_per_window,
        "batch": config.batch,
    }


def _by_context(found: Score) -> list[dict[str, Any]]:
    """Return bits per byte in octaves of context."""
    length = len(found.nats)
    edges = [0, *(1 << power for power in range(length.bit_length())), length]
    edges = sorted({edge for edge in edges if edge <= length})
    return [
        {"from": low, "to": high, "bits_per_byte": value}
        for (low, high), value in zip(pairwise(edges), found.by_context(edges), strict=True)
        if value is not None
    ]


def _markdown(report: dict[str, Any], corpus: Corpus) -> str:
    part = "" if report["windows_are_all"] else ", at even distances over the split"
    rows = [["model", f"{report['bits_per_byte']:.4f}", ""]]
    if report["source_entropy"] is not None:
        rows.append(["entropy of the source", f"{report['source_entropy']:.4f}", ""])
    if report["unigram_bits_per_byte"] is not None:
        rows.append(["counts of single bytes", f"{report['unigram_bits_per_byte']:.4f}", ""])
    rows += [
        [one["name"], f"{one['after_training']:.4f}", f"{one['alone']:.4f}"]
        for one in report["baselines"]
    ]
    note = f"This corpus {_OTHER_SPLITS}.\n\n" if report["other_splits"] else ""
    contexts = [[f"{c['from']:,}", f"{c['bits_per_byte']:.4f}"] for c in report["by_context"]]
    return f"""\
# Bits per byte: {report["model"] or corpus.name}

**{report["bits_per_byte"]:.4f} bits per byte** of {report["bytes"]:,} bytes, minimum context
{report["min_context"]:,} (windows of {report["window"]:,} bytes, step {report["step"]:,};
{report["windows"]:,} windows{part}).

{corpus.summary()}; split {report["split"]}. {note}{report["seconds_per_window"]:.3f} s a window, in
batches of {report["batch"]}.

{markdown_table(["", "bits per byte", "without training bytes"], rows)}

By bytes of context, from:

{markdown_table(["context", "bits per byte"], contexts)}
"""


def _plot(path: Path, contexts: Sequence[dict[str, Any]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    middles = [(one["from"] * (one["to"] - 1)) ** 0.5 + 1 for one in contexts]
    axes.plot(middles, [one["bits_per_byte"] for one in contexts], marker="o")
    axes.set(xscale="log", xlabel="bytes of context", ylabel="bits per byte")
    axes.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
