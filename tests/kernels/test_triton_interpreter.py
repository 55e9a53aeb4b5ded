"""The Triton backend: its kernels under the interpreter in other processes, its tables here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from speechkit.kernels.errors import KernelError
from speechkit.kernels.parts import Summaries, parts
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    Strided,
)
from speechkit.kernels.triton_backend import Plan, forward
from speechkit.kernels.triton_tables import SIDE, table, visible

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
LAYOUT = ((1, 0, 1), (0, 0, 0), (1, 1, 0))
PATTERNS = [
    Dense(),
    Local(20),
    Strided(7),
    Dilated(5, 3),
    Columns(16, 3),
    Merged(Local(9), Strided(7), OwnBlock(13)),
    Merged(Local(70), Columns(40, 2), Dilated(3, 50)),
    Merged(Blocks(LAYOUT, 70), Strided(33)),
    Merged(Blocks(LAYOUT, 70), Blocks(((0, 1, 0), (1, 0, 0), (0, 0, 1)), 70)),
]


# the halves take about as long, for two workers
@pytest.mark.parametrize("half", ["every_pattern", "not every_pattern"])
def test_kernels_under_the_interpreter(half):
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, "tests/kernels/triton_process.py", "-k", half],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**clean_environment(), "TRITON_INTERPRET": "1"},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def clean_environment():
    """Return the environment without what the outer pytest left for its workers."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_rules_of_the_parts_make_the_mask(pattern, causal):
    i, j = torch.arange(180)[:, None], torch.arange(180)[None, :]
    times = sum(visible(part, i, j, causal=causal).int() for part in parts(pattern))
    assert torch.equal(times, pattern.mask(180, causal=causal)[0].int())


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_tables_hold_the_rule(pattern, causal):
    for part in parts(pattern):
        i, j = torch.arange(256)[:, None], torch.arange(256)[None, :]
        expected = visible(part, i, j, causal=causal)
        found = table(part, 180, causal=causal, device=CPU)
        assert torch.equal(unpacked(found.queries, found.words), expected)
        assert torch.equal(unpacked(found.keys, found.words, of_keys=True), expected)


def unpacked(walks, words, of_keys=False):
    """Return the mask (T, T) that the walks describe."""
    blocks = len(walks.start) - 1
    mask = torch.zeros(blocks, blocks, SIDE, SIDE, dtype=torch.bool)
    for own in range(blocks):
        for other, which in walks.entries[walks.start[own] : walks.start[own + 1]].tolist():
            bits = words[which, :, None] >> torch.arange(SIDE) & 1
            place = (other, own) if of_keys else (own, other)
            assert not mask[place].any()
            mask[place] = bits.bool() if which >= 0 else True
    return mask.transpose(1, 2).reshape(blocks * SIDE, blocks * SIDE)


def test_tables_of_neighbouring_lengths_are_one():
    (part,) = parts(Blocks(LAYOUT, 70))
    tables = [table(part, length, causal=True, device=CPU) for length in (129, 200, 256, 257)]
    assert tables[0] is tables[1] is tables[2] is not tables[3]


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        (Merged(Local(128), Strided(128)), ["band", "band"]),
        (Fixed(128, 8), ["band", "summaries"]),
        (Columns(128, 8), ["summaries", "table"]),
        (Merged(Strided(4), Strided(6)), ["band", "table"]),
    ],
    ids=str,
)
def test_the_patterns_of_the_paper_need_no_tables(pattern, kinds):
    assert [Plan.of(part, 1000).kind for part in parts(pattern)] == kinds


def test_a_plan_counts_its_keys():
    plan = Plan.of(Summaries(16, 13, 3), 46)
    assert (plan.max_rows, plan.max_keys) == (46, 2 * 3 + 1)


def test_the_cpu_needs_the_interpreter():
    pytest.importorskip("triton")
    q = torch.ones(1, 4, 16)
    with pytest.raises(KernelError, match="run on GPUs, not on cpu"):
        forward(q, q, q, parts(Dense()), causal=True, scale=1.0)
