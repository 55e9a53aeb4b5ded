"""The Triton kernels compile for every device of the budget and keep to it."""

import dataclasses

import pytest

from speechkit.kernels import aot

pytest.importorskip("triton")

# every type and head size for the kind that most patterns run; for the others the largest programs
CASES = [
    case
    for case in aot.cases()
    if case.kind == "band" or (case.numbers == "bfloat16" and case.head_size == 128)
]
GROUPS = sorted({(case.device, case.kernel, case.head_size) for case in CASES})


@pytest.mark.parametrize(("device", "kernel", "head_size"), GROUPS)
def test_kernels_keep_to_their_budget(device, kernel, head_size):
    budget, triton = aot.Budget.read(), aot.triton_version()
    for case in CASES:
        if (case.device, case.kernel, case.head_size) == (device, kernel, head_size):
            assert budget.problems(case, aot.measure(case), triton=triton) == []


def test_the_budget_holds_all_cases_and_no_other():
    assert set(aot.Budget.read().kernels) == {case.name for case in aot.cases()}


def test_what_breaks_the_budget():
    case = aot.cases()[0]
    kept = aot.Usage(registers=255, spilled=16, shared=1000)
    budget = aot.Budget("3.8.0", {case.name: kept})
    assert budget.problems(case, kept, triton="3.8.0") == []
    spilled = dataclasses.replace(kept, spilled=17)
    (message,) = budget.problems(case, spilled, triton="3.8.0")
    assert "17 bytes spilled, the budget allows 16" in message
    assert budget.problems(case, spilled, triton="3.9.0") == []
    large = dataclasses.replace(kept, shared=aot.SHARED_MEMORY[case.device] + 1)
    (message,) = budget.problems(case, large, triton="3.8.0")
    assert "bytes of shared memory, the device has" in message
    (message,) = aot.Budget("3.8.0", {}).problems(case, kept, triton="3.8.0")
    assert "not in the budget" in message


def test_rewriting_reads_back(tmp_path, monkeypatch):
    monkeypatch.setattr(aot, "BUDGET", tmp_path / "budget.json")
    usage = aot.Usage(registers=1, spilled=2, shared=3)
    aot.rewrite([(case, usage) for case in aot.cases()])
    assert aot.Budget.read() == aot.Budget(
        aot.triton_version(), dict.fromkeys((case.name for case in aot.cases()), usage)
    )
