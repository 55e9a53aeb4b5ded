"""The verbs of ``speechkit kernels``: do the kernels compute the right thing here, and how fast."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from rich.table import Table

from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path, write_json
from speechkit.kernels import bench as measuring
from speechkit.kernels import bench_profile, bench_speed, conformance, dispatch
from speechkit.kernels import retune as retuning
from speechkit.kernels.encoding import decode
from speechkit.reports import console_for_tables, markdown_table, provenance, write_report

logger = logging.getLogger(__name__)

_DTYPES = {str(x).removeprefix("torch."): x for x in measuring.DTYPES}


def check(
    *, device: Literal["cpu", "cuda"] = "cpu", quick: bool = False, out: Path | None = None
) -> int:
    """Compare every attention backend of this machine with float64.

    Outputs, log-sum-exps and gradients, over patterns, types and lengths, with padded keys; on the
    CPU the Triton kernels run under Triton's interpreter, where there is Triton. The exit status is
    1 if an error is above its limit: twice that of plain attention in the same precision, three
    times for gradients.

    Parameters
    ----------
    device
        where the kernels run.
    quick
        try fewer patterns and lengths.
    out
        folder for report.json and report.md.
    """
    _require_device(device)
    rows = [row for backend in _backends(device) for row in _rows(backend, device, quick)]
    groups: dict[tuple[str, str], list[conformance.Row]] = defaultdict(list)
    for row in rows:
        groups[row.case.backend, _name(row.case.dtype)].append(row)
    header = ("backend", "type", "cases", "failed", *conformance.QUANTITIES)
    table = [_summary(*key, group) for key, group in groups.items()]
    _show("largest errors", header, table)
    if out:
        report = {"largest errors": [dict(zip(header, line, strict=True)) for line in table]}
        _write(out, report, "# Attention against float64\n\n" + markdown_table(header, table))
    failed = [row for row in rows if not row.passed]
    for row in failed[:20]:
        logger.error("failed: %s: errors %s, limits %s", row.case, row.errors, row.limits)
    return int(bool(failed))


def _backends(device: str) -> tuple[str, ...]:
    if device == "cuda":
        return ("triton",)
    if find_spec("triton"):
        return "cpu", "dense", "triton"
    logger.warning("triton is not installed: its kernels are not checked")
    return "cpu", "dense"


def _rows(backend: str, device: str, quick: bool) -> list[conformance.Row]:
    chosen = list(conformance.cases(backend, device, quick=quick))
    logger.info("%s on %s: %d cases", backend, device, len(chosen))
    if backend == "triton" and device == "cpu":
        return conformance.run_interpreted(chosen)
    return [conformance.run(case) for case in chosen]


def _summary(backend: str, dtype: str, rows: Sequence[conformance.Row]) -> list[str]:
    worst = (
        f"{max(row.errors[name] for row in rows):.1e}" if name in rows[0].errors else "-"
        for name in conformance.QUANTITIES
    )
    return [backend, dtype, str(len(rows)), str(sum(not row.passed for row in rows)), *worst]


def bench(
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    suite: Literal["grid", "speed"] = "grid",
    lengths: list[int] = [1024, 4096],  # noqa: B006 -- read only
    patterns: list[str] = ["Merged(Local(64), Strided(64))", "Fixed(64, 4)"],  # noqa: B006
    dtypes: list[str] = ["float32"],  # noqa: B006
    causal: bool = True,
    batch: int = 1,
    heads: int = 8,
    head_size: int = 64,
    repeats: int = 5,
    flex: bool = False,
    retune: bool = False,
    profile: bool = False,
    out: Path | None = None,
) -> int:
    """Measure the attention kernels against torch's dense attention, after checking them.

    Times of the forward pass and of both passes, rates over attended pairs, and peak memory.

    Parameters
    ----------
    device
        where the kernels run.
    suite
        "grid": all lengths, patterns and types; "speed": what the package promises, row by row,
        on fixed shapes (some minutes).
    lengths
        numbers of positions.
    patterns
        patterns as they are written in Python, e.g. "Fixed(128, 8)".
    dtypes
        float32, bfloat16, float16 or float64.
    causal
        whether no query sees later keys.
    batch, heads, head_size
        the other sizes.
    repeats
        the median of so many runs counts.
    flex
        measure FlexAttention too: on the CPU forward only, after a compilation of about a minute.
    retune
        first measure the constants by which the CPU's choice between dense and tiled is made, and
        write them into the package.
    profile
        show for each case, instead of measuring it, in which operators its time is spent.
    out
        folder for report.json, report.md and a plot.
    """
    _require_device(device)
    cases = _grid(
        patterns,
        dtypes,
        lengths,
        {
            "device": device,
            "causal": causal,
            "batch": batch,
            "heads": heads,
            "head_size": head_size,
        },
    )
    _require_correct([*cases, *(bench_speed.cases(device) if suite == "speed" else ())])
    if retune:
        _retune(device)
    if suite == "speed":
        return _bench_speed(device, repeats, out)
    if profile:
        return _profile(cases, out)
    found = []
    for case in cases:
        logger.info("measuring %s, T = %d, %s", case.pattern, case.length, _name(case.dtype))
        found.append(measuring.measure(case, repeats=repeats, flex=flex))
    header, rows = _bench_table(found)
    _show(f"attention on {device}", header, rows)
    if out:
        report = {"measured": [_as_json(one) for one in found]}
        _write(out, report, "# Attention\n\n" + markdown_table(header, rows))
        _plot(out / "times.png", found)
    return 0


def _profile(cases: Sequence[measuring.Case], out: Path | None) -> int:
    """Show the operators that take a hundredth of a case's time or more."""
    header = ("operator", "calls", "ms", "share")
    report: list[dict[str, Any]] = []
    tables = []
    for case in cases:
        title = f"{case.pattern}, T = {case.length}, {_name(case.dtype)}"
        found = bench_profile.profile(case)
        total = sum(spent.seconds for spent in found)
        rows = [
            [x.operator, str(x.calls), f"{1e3 * x.seconds:.2f}", f"{x.seconds / total:.1%}"]
            for x in found
            if x.seconds >= total / 100
        ]
        _show(f"{title}: {1e3 * total:.1f} ms", header, rows)
        tables.append(f"## {title}\n\n" + markdown_table(header, rows))
        report.append({"case": title, "spent": [asdict(x) for x in found]})
    if out:
        _write(out, {"profiles": report}, "# Where the time goes\n\n" + "\n".join(tables))
    return 0


def _grid(
    patterns: list[str], dtypes: list[str], lengths: list[int], sizes: dict[str, Any]
) -> list[measuring.Case]:
    """Return the cases of all combinations, checked."""
    for name, values in (("lengths", lengths), ("patterns", patterns), ("dtypes", dtypes)):
        if not values:
            raise RequestError(f"{name}: is empty; give at least one")
    unknown = set(dtypes) - set(_DTYPES)
    if unknown:
        raise RequestError(f"unknown type {min(unknown)!r}; there are {', '.join(_DTYPES)}")
    numbers = {"length": min(lengths), **{n: x for n, x in sizes.items() if type(x) is int}}
    for name, number in numbers.items():
        if number < 1:
            raise RequestError(f"{name.replace('_', '-')} {number}: give at least 1")
    decoded = [decode(text) for text in patterns]
    for pattern in decoded:
        pattern.per_head(sizes["heads"])
        pattern.check(max(lengths))
    return [
        measuring.Case(pattern=pattern, length=length, dtype=_DTYPES[dtype], **sizes)
        for dtype in dtypes
        for pattern in decoded
        for length in lengths
    ]


def _require_correct(cases: Sequence[measuring.Case]) -> None:
    """Refuse to measure what computes something wrong."""
    for row in (row for case in cases for row in measuring.checks(case)):
        case = row.case
        if not row.passed:
            raise JobError(
                f"{case.pattern} in {_name(case.dtype)} by {case.backend} is wrong on "
                f"{case.device}: errors {row.errors}, limits {row.limits}; run `speechkit kernels "
                "check`"
            )


def _retune(device: str) -> None:
    """Measure the constants of the CPU's choice and write them where they are read."""
    if device != "cpu":
        raise RequestError("--retune measures the CPU's choice; give --device cpu")
    logger.info("fitting the constants of the choice at 1 ... %d threads", torch.get_num_threads())
    about = "seconds on one thread of the machine where `speechkit kernels bench --retune` ran last"
    write_json(dispatch.COSTS, {"about": about, "seconds": retuning.measure()})
    dispatch.forget_costs()
    found = list(bench_speed.choices(5))
    header = ("pattern", "T", "auto took", "auto ms", "tiled ms", "dense ms", "auto / better")
    rows = [
        [
            str(c.case.pattern),
            str(c.case.length),
            c.code,
            *(f"{1e3 * s:.2f}" for s in (c.auto_s, c.sparse_s, c.dense_s)),
            f"{c.ratio:.2f}",
        ]
        for c in found
    ]
    _show("what auto chooses", header, rows)


def _bench_speed(device: str, repeats: int, out: Path | None) -> int:
    found = []
    for promise in bench_speed.promises(device, repeats=repeats):
        logger.info("%s: %.3g %s", promise.name, promise.found, promise.unit)
        found.append(promise)
    header = ("promise", "allowed", "aim", "found", "unit", "kept")
    rows = [
        [
            p.name,
            "-" if p.allows is None else f"{p.allows:.1f}",
            f"{'>=' if p.at_least else '<='} {p.aim:g}",
            f"{p.found:.2f}",
            p.unit,
            "yes" if p.kept else "no",
        ]
        for p in found
    ]
    _show(f"promises on {device}", header, rows)
    if out:
        report = {"promises": [{**asdict(p), "kept": p.kept} for p in found]}
        _write(out, report, "# Speed\n\n" + markdown_table(header, rows))
    return 0


def _bench_table(found: Sequence[measuring.Measured]) -> tuple[tuple[str, ...], list[list[str]]]:
    header = (
        "pattern",
        "type",
        "T",
        "forward ms",
        "both ms",
        "TFLOP/s",
        "peak MiB",
        "dense ms",
        "masked ms",
        "flex forward ms",
        "flex ms",
        "faster than dense",
        "allowed",
    )
    return header, [
        [
            str(m.case.pattern),
            _name(m.case.dtype),
            str(m.case.length),
            *(_ms(s) for s in (m.forward_s, m.both_s)),
            f"{m.tflops:.3g}",
            f"{m.peak_bytes / 2**20:.1f}",
            *(_ms(s) for s in (m.dense_s, m.masked_s, m.flex_forward_s, m.flex_s)),
            f"{m.speedup:.2f}",
            f"{m.allowed:.2f}",
        ]
        for m in found
    ]


def _as_json(measured: measuring.Measured) -> dict[str, Any]:
    case = {**asdict(measured.case), "dtype": _name(measured.case.dtype)}
    rates = {name: getattr(measured, name) for name in ("tflops", "forward_tflops", "speedup")}
    case["pattern"] = str(measured.case.pattern)
    return {**asdict(measured), "case": case, **rates, "allowed": measured.allowed}


def _plot(path: Path, found: Sequence[measuring.Measured]) -> None:
    """Draw the times of both passes over the length, each pattern's and dense attention's."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for m in found:
        kind = _name(m.case.dtype)
        lines[f"{m.case.pattern}, {kind}"].append((m.case.length, m.both_s))
        lines[f"dense, {kind}"].append((m.case.length, m.dense_s))
    for label, points in lines.items():
        x, y = zip(*sorted(dict(points).items()), strict=True)
        axes.plot(x, y, "o--" if label.startswith("dense") else "o-", label=label)
    axes.set(xscale="log", yscale="log", xlabel="positions", ylabel="forward and backward [s]")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend(fontsize="x-small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)


def _write(out: Path, report: dict[str, Any], markdown: str) -> None:
    write_report(out, {**provenance(seed=None, data={}), **report}, markdown)
    logger.info("wrote %s", out / "report.md")


def _require_device(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        raise RequestError("device cuda: torch sees no GPU here; give --device cpu")


def _show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console_for_tables().print(table)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.3g}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
