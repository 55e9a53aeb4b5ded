"""The Triton kernels under Triton's interpreter; test_triton_interpreter.py runs this file.

In a process of its own: TRITON_INTERPRET must be set before the kernels are imported, and would
change them for every other test.
"""

import math

import pytest
import torch

from speechkit.kernels import triton_backend
from speechkit.kernels.errors import KernelError
from speechkit.kernels.parts import parts
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
from speechkit.kernels.triton_tiles import arithmetic_of

LAYOUT = ((1, 0, 1), (0, 0, 0), (1, 1, 0))
PATTERNS = [
    Dense(),
    Local(20),
    Strided(7),
    Dilated(5, 3),
    OwnBlock(23),
    Columns(16, 3),
    Fixed(16, 3),
    Fixed(24, 1),
    Merged(Local(20), Strided(16)),
    Merged(Local(9), Strided(7), OwnBlock(13)),
    Merged(Local(5), Columns(40, 2)),
    Merged(Dilated(4, 9), Columns(11, 11)),
    Blocks(LAYOUT, 50),
    Merged(Blocks(LAYOUT, 64), Strided(33)),
]
SOME = [Merged(Local(20), Strided(16)), Fixed(16, 3), Columns(16, 3)]


@pytest.fixture(autouse=True)
def _uninitialised_memory_holds_nan():
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


def inputs(sequences, length, head_size, dtype):
    generator = torch.Generator().manual_seed(length + head_size)
    shape = (sequences, length, head_size)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(4)]


def reference(q, k, v, gradient, seen, scale):
    """Return output, log-sum-exp and gradients in float64, for a loss with both in it."""
    q, k, v = (x.double().requires_grad_() for x in (q, k, v))
    scores = (q @ k.transpose(1, 2) * scale).masked_fill(~seen, -math.inf)
    empty = ~seen.any(-1)
    lse = torch.logsumexp(scores.masked_fill(empty[..., None], 0), -1)
    output = (scores - lse[..., None]).exp() @ v
    ((output * gradient).sum() + (lse * lse_gradient(lse))[~empty].sum()).backward()
    return output.detach(), lse.detach().masked_fill(empty, -math.inf), q.grad, k.grad, v.grad


def lse_gradient(lse):
    return torch.linspace(-1, 1, lse.shape[1], dtype=torch.float64).expand_as(lse)


def computed(q, k, v, gradient, pattern, settings):
    """Return what the kernels make of it."""
    output, lse = triton_backend.forward(q, k, v, parts(pattern), **settings)
    delta = (output.float() * gradient.float()).sum(-1) - lse_gradient(lse).float()
    gradients = triton_backend.backward(gradient, q, k, v, lse, delta, parts(pattern), **settings)
    return output, lse, *gradients


def errors(pattern, *, causal, length, head_size=16, dtype=torch.float32, lengths=(None,)):
    """Return the largest differences from the reference, relative to the largest value."""
    q, k, v, gradient = inputs(len(lengths), length, head_size, dtype)
    scale = 1.3 / math.sqrt(head_size)
    limits = None if lengths == (None,) else torch.tensor(lengths, dtype=torch.int32)
    settings = {"causal": causal, "scale": scale, "key_lengths": limits}
    found = computed(q, k, v, gradient, pattern, settings)
    seen = pattern.mask(length, causal=causal).expand(len(lengths), length, length)
    if limits is not None:
        seen = seen & (torch.arange(length) < limits[:, None])[:, None, :]
    expected = reference(q, k, v, gradient, seen, scale)
    assert [x.dtype for x in found] == [dtype, torch.float32, dtype, dtype, dtype]
    assert torch.equal(found[1] == -math.inf, expected[1] == -math.inf)
    return {
        name: difference(x, y)
        for name, x, y in zip(("output", "lse", "dq", "dk", "dv"), found, expected, strict=True)
    }


def difference(found, expected):
    both = torch.stack((found.double(), expected))
    both = both.masked_fill(both == -math.inf, 0)
    return float((both[0] - both[1]).abs().max() / both[1].abs().max().clamp(min=1))


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern_with_ragged_keys(pattern, causal):
    found = errors(pattern, causal=causal, length=150, lengths=(150, 67, 0))
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("length", [1, 2, 63, 65, 127])
@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_lengths_that_divide_nothing(pattern, length):
    found = errors(pattern, causal=length % 4 != 1, length=length)
    assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("head_size", [1, 20, 64, 128])
def test_head_sizes(head_size):
    for pattern in SOME[::2]:
        found = errors(pattern, causal=True, length=70, head_size=head_size)
        assert max(found.values()) < 1e-5, found


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_float16(pattern):
    found = errors(pattern, causal=False, length=130, dtype=torch.float16, lengths=(130, 40))
    assert max(found.values()) < 3e-3, found


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_two_runs_are_bit_identical(pattern):
    settings = {"causal": True, "scale": 0.2}
    runs = [computed(*inputs(1, 90, 16, torch.float32), pattern, settings) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("shape", [(0, 5, 16), (2, 0, 16)])
def test_nothing_to_do(shape):
    q = torch.ones(shape)
    output, lse = triton_backend.forward(q, q, q, parts(Local(2)), causal=True, scale=1.0)
    gradients = triton_backend.backward(
        q, q, q, q, lse, lse, parts(Local(2)), causal=True, scale=1.0
    )
    assert {x.shape for x in (output, *gradients)} == {shape}


def test_products_of_float32_are_as_exact_as_those_of_torch(monkeypatch):
    asked = []

    def asking(size, how):
        asked.append(how)
        return arithmetic_of(size, how)

    monkeypatch.setattr(triton_backend, "arithmetic_of", asking)
    for setting, precision in (("highest", "ieee"), ("high", "tf32")):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda setting=setting: setting)
        found = errors(SOME[0], causal=True, length=70)
        assert max(found.values()) < 1e-5, found  # the interpreter knows no tf32
        assert set(asked) == {precision}
        asked.clear()


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (torch.ones(1, 4, 16, dtype=torch.float64), "float64"),
        (torch.ones(1, 4, 16, dtype=torch.bfloat16), "bfloat16"),
        (torch.ones(1, 4, 129), "129"),
        (torch.ones(1, 1, 1).expand(1, 1 << 25, 64), "2\\^31"),
        (torch.ones(1, 4, 16, device="meta"), "meta"),
    ],
)
def test_what_the_kernels_do_not_take(q, message):
    with pytest.raises(KernelError, match=message):
        triton_backend.forward(q, q, q, parts(Dense()), causal=True, scale=1.0)
