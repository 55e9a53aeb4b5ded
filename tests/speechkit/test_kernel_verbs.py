"""The verbs of `speechkit kernels`: tables, reports, exit status."""

import json
import time
from dataclasses import replace

import pytest
import torch

from speechkit import kernel_verbs
from speechkit.errors import JobError, RequestError
from speechkit.kernels import bench, bench_speed, conformance, retune
from speechkit.kernels.errors import KernelError
from speechkit.kernels.patterns import Columns, Dense, Dilated, Fixed, Local, Merged, Strided

SMALL = {"lengths": [64, 130], "heads": 2, "head_size": 16, "repeats": 1}


@pytest.fixture
def few(monkeypatch):
    """Check one small case of each type, and nothing under the interpreter."""
    whole = conformance.cases

    def cases(backend, device, *, quick):
        every = whole(backend, device, quick=quick)
        return [case for case in every if case.length == 65 and case.causal]

    monkeypatch.setattr(conformance, "cases", cases)
    monkeypatch.setattr(kernel_verbs, "find_spec", lambda name: None)


def test_check_prints_the_largest_errors(few, capsys, tmp_path):
    assert kernel_verbs.check(quick=True, out=tmp_path) == 0
    printed = capsys.readouterr().out
    assert "dense" in printed
    assert "bfloat16" in printed
    (first, *_) = json.loads((tmp_path / "report.json").read_text())["largest errors"]
    assert first["failed"] == "0"
    assert "| backend |" in (tmp_path / "report.md").read_text()


def test_check_fails_on_an_error(few, monkeypatch, capsys):
    right = conformance.run

    def wrong(case):
        row = right(case)
        return replace(row, errors={**row.errors, "dk": float("nan")})

    monkeypatch.setattr(conformance, "run", wrong)
    assert kernel_verbs.check(quick=True) == 1


def test_triton_runs_under_the_interpreter():
    pytest.importorskip("triton")
    cases = conformance.cases("triton", "cpu")
    (row,) = conformance.run_interpreted([next(case for case in cases if case.length == 65)])
    assert row.passed
    assert set(row.errors) == set(conformance.QUANTITIES)


def test_a_difference_of_infinities_is_infinite():
    found = torch.tensor([0.0, -torch.inf])
    assert conformance._difference(found, torch.zeros(2)) == float("inf")
    assert conformance._difference(found, found) == 0


def test_bench_writes_a_report(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "peak_bytes", lambda case: 1 << 20)
    patterns = ["Local(16)", "Fixed(16, 2)"]
    assert kernel_verbs.bench(patterns=patterns, out=tmp_path, **SMALL) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert [(m["case"]["pattern"], m["case"]["length"]) for m in report["measured"]] == [
        (pattern, length)
        for pattern in ("Local(window=16)", str(Fixed(16, 2)))
        for length in (64, 130)
    ]
    assert all(m["both_s"] > 0 and m["dense_s"] > 0 for m in report["measured"])
    assert "Local(window=16)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "times.png").stat().st_size > 1000


def test_a_profile_names_the_operators(tmp_path, capsys):
    patterns = ["Local(16)"]
    assert kernel_verbs.bench(patterns=patterns, profile=True, out=tmp_path, **SMALL) == 0
    profiles = json.loads((tmp_path / "report.json").read_text())["profiles"]
    assert len(profiles) == 2
    for one in profiles:
        times = [x["seconds"] for x in one["spent"]]
        assert times == sorted(times, reverse=True)
        assert "speechkit::sparse_attention" in {x["operator"] for x in one["spent"]}
    assert "Local(window=16), T = 130, float32" in (tmp_path / "report.md").read_text()
    assert "share" in capsys.readouterr().out


def test_times_in_turn_are_those_of_each():
    case = bench.Case(pattern=Local(16), length=512, heads=1, head_size=16)

    def often(q, k, v):
        for _ in range(8):
            found = bench.sparse(case, "cpu")(q, k, v)
        return found

    one, many = bench.seconds_in_turn(
        case, [bench.sparse(case, "cpu"), often], repeats=3, backward=False
    )
    assert 0 < one < many


def test_the_first_round_is_not_measured_however_long(monkeypatch):
    monkeypatch.setattr(bench, "_PATIENCE_S", 0.05)
    case = bench.Case(pattern=Local(16), length=16, heads=1, head_size=16)
    calls = []

    def compiled_at_first(q, k, v):
        time.sleep(0.0 if calls else 0.5)
        calls.append(1)
        return q

    assert bench.seconds(case, compiled_at_first, repeats=3, backward=False) < 0.1
    assert len(calls) == 4


def test_bench_does_not_measure_what_is_wrong(monkeypatch):
    # what `auto` takes in place of the sparse kernel is checked as well
    for code in ("cpu", "dense"):
        with monkeypatch.context() as patch:
            patch.setattr(bench, "_chosen", lambda case: "dense")
            patch.setattr(
                conformance.Row, "passed", property(lambda row, code=code: row.case.backend != code)
            )
            with pytest.raises(JobError, match=f"by {code} is wrong on cpu"):
                kernel_verbs.bench(patterns=["Local(16)"], **SMALL)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"patterns": ["Local(0)"]}, KernelError, "window is 0"),
        ({"patterns": ["PerHead(Local(1))"]}, KernelError, "1 patterns, but there are 2 heads"),
        ({"dtypes": ["int8"]}, RequestError, "unknown type 'int8'; there are float32"),
        ({"lengths": [0]}, RequestError, "length 0: give at least 1"),
        ({"lengths": []}, RequestError, "lengths: is empty"),
        ({"patterns": []}, RequestError, "patterns: is empty"),
        ({"dtypes": []}, RequestError, "dtypes: is empty"),
        ({"head_size": 0}, RequestError, "head-size 0"),
    ],
)
def test_requests_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        kernel_verbs.bench(**{**SMALL, **options})


def test_memory_beyond_the_inputs():
    case = bench.Case(pattern=Local(16), length=20_000, heads=1)
    grown = bench.peak_bytes(case)
    assert 3 * 20_000 * 64 * 4 <= grown <= 20 * 20_000 * 64 * 4


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 30, 64, 100])
@pytest.mark.parametrize(
    "pattern",
    [
        Dense(),
        Fixed(16, 3),
        Columns(16, 3),
        Dilated(4, 3),
        Merged(Local(9), Strided(4)),
        Merged(Local(16), Strided(16)),
        Merged(Strided(4), Strided(6)),
    ],
    ids=str,
)
def test_pairs_are_those_of_the_mask(pattern, length, causal):
    case = bench.Case(pattern=pattern, length=length, causal=causal, heads=3, batch=2)
    assert case.pairs == 6 * int(pattern.mask(length, causal=causal).sum())


def test_the_exponent_is_the_slope():
    lengths = [100, 400, 1600]
    assert bench.exponent(lengths, [3 * n**1.5 for n in lengths]) == pytest.approx(1.5)


def test_a_choice_is_compared_with_the_better():
    case = bench.Case(pattern=Local(16), length=64, heads=2, head_size=8)
    found = bench_speed.choice(case, 1)
    assert found.code in ("cpu", "dense")
    assert found.ratio == found.auto_s / min(found.sparse_s, found.dense_s)


def test_costs_that_made_the_times_are_found_again(monkeypatch):
    costs = {name: 10.0**-n for n, name in enumerate((*retune._SPARSE, *retune._DENSE), 3)}

    def seconds(case, backend, repeats):
        names = retune._SPARSE if backend == "cpu" else retune._DENSE
        counted = (retune._work if backend == "cpu" else retune._pairs)(case, 1)
        return sum(costs[name] * number for name, number in zip(names, counted, strict=True))

    monkeypatch.setattr(retune, "_seconds", seconds)
    found = retune.measure((64, 256))
    assert set(found) == {"full", "half"}
    assert found["full"] == pytest.approx(costs, rel=0.02)


@pytest.mark.parametrize("quantity", conformance.QUANTITIES)
def test_an_error_of_a_ten_thousandth_is_not_borne(quantity, monkeypatch):
    """The limits are what README's table says, and far below any mistake."""
    outcome = conformance._outcome
    case = next(
        case
        for case in conformance.cases("cpu", "cpu")
        if case.dtype == torch.float32 and case.length == 65
    )
    assert conformance.run(case).passed

    def wrong(one, given, attend):
        found = outcome(one, given, attend)
        if attend.__qualname__.startswith("_by_backend"):
            found[quantity] = found[quantity] * (1 + 1e-4)
        return found

    monkeypatch.setattr(conformance, "_outcome", wrong)
    assert not conformance.run(case).passed
    assert conformance._FACTORS == {"output": 2, "lse": 2, "dq": 3, "dk": 3, "dv": 3}
    floors = [1e-12, 1e-6, pytest.approx(7.8e-3, rel=0.01), pytest.approx(9.8e-4, rel=0.01)]
    assert list(conformance._FLOORS.values()) == floors
