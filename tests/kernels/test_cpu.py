"""The tiled CPU path against float64: values, log-sum-exps, gradients, memory."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from speechkit.kernels import conformance, reference, sparse_attention
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    PerHead,
    Strided,
)

LAYOUT = ((0, 1, 0), (1, 0, 1), (1, 1, 1))
PATTERNS = [
    Dense(),
    Local(1),
    Local(20),
    Local(130),
    Strided(1),
    Strided(7),
    Strided(64),
    Dilated(5, 3),
    OwnBlock(23),
    Columns(16, 3),
    Fixed(16, 3),
    Fixed(24, 4, spread_heads=True),
    Merged(Local(64), Strided(64)),
    Merged(Local(9), Strided(7), OwnBlock(13)),
    Merged(Dilated(4, 9), Columns(11, 11)),
    PerHead(Local(20), Fixed(16, 3)),
    Blocks(LAYOUT, 334),
]
SOME = [Merged(Local(20), Strided(16)), Fixed(16, 3), Columns(16, 3), PerHead(Local(5), Strided(9))]
LENGTHS = [1, 2, 63, 64, 65, 127, 200, 1000]
TYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ways = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def inputs(length, dtype=torch.float64, batch=3, sizes=(6, 6, 5, 5)):
    generator = torch.Generator().manual_seed(length)
    shapes = [(batch, 2, length, size) for size in sizes]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def results(given, pattern, **options):
    """Return output, log-sum-exp and gradients of a loss of both."""
    *leaves, gradient = given
    leaves = [x.detach().requires_grad_() for x in leaves]
    output, lse = sparse_attention(*leaves, pattern, return_lse=True, **options)
    weight = torch.linspace(-1, 1, lse.shape[-1], dtype=lse.dtype)
    loss = (output * gradient).sum() + (lse.masked_fill(lse == -torch.inf, 0.0) * weight).sum()
    return output, lse, *torch.autograd.grad(loss, leaves)


@ways
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_every_pattern_and_length_with_ragged_keys(pattern, length, causal):
    given = inputs(length)
    options = {"causal": causal, "key_lengths": torch.tensor([length, length // 2, 0])}
    found = results(given, pattern, backend="cpu", **options)
    expected = results(given, pattern, backend="reference", **options)
    assert torch.equal(found[1] == -torch.inf, expected[1] == -torch.inf)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=2e-12)


@ways
@pytest.mark.parametrize("dtype", TYPES[1:], ids=str)
@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_errors_are_those_of_plain_attention_in_the_type(pattern, dtype, causal):
    case = conformance.Case(
        backend="cpu",
        device="cpu",
        pattern=pattern,
        dtype=dtype,
        length=190,
        causal=causal,
        ragged=True,
    )
    row = conformance.run(case)
    assert row.passed, (row.errors, row.limits)


@ways
@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_gradcheck(pattern, causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 2, 21, size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (3, 3, 2)
    )

    def attend(q, k, v):
        options = {"causal": causal, "key_lengths": torch.tensor([21, 8]), "backend": "cpu"}
        output, lse = sparse_attention(q, k, v, pattern, return_lse=True, **options)
        return output, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(attend, (q, k, v), fast_mode=True)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_two_runs_are_bit_identical(pattern, dtype):
    runs = [results(inputs(300, dtype), pattern, backend="cpu") for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_strides_do_not_matter(pattern):
    given = inputs(100, sizes=(6, 6, 6, 6))
    wide = torch.stack(given, dim=3).transpose(1, 2).contiguous().transpose(1, 2)
    strided = [wide[..., n, :] for n in range(4)]
    assert not any(x.is_contiguous() for x in strided)
    expected = results(given, pattern, backend="cpu")
    for x, y in zip(results(strided, pattern, backend="cpu"), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("pattern", SOME, ids=str)
def test_nothing_is_read_that_was_not_written(pattern):
    expected = results(inputs(130), pattern, backend="cpu")
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()  # fresh memory holds NaN in this mode
        found = results(inputs(130), pattern, backend="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize("pattern", SOME, ids=str)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_padded_keys_do_not_matter(pattern, backend):
    q, k, v, gradient = inputs(90, batch=1)
    options = {"key_lengths": torch.tensor([40]), "causal": False, "backend": backend}
    clean = results((q, k, v, gradient), pattern, **options)
    for padding in (1e4, torch.nan, torch.inf):
        k[:, :, 40:], v[:, :, 40:] = padding, -padding
        found = results((q, k, v, gradient), pattern, **options)
        assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))
        assert not found[3][:, :, 40:].any()
        assert not found[4][:, :, 40:].any()


@pytest.mark.parametrize("magnitude", [1e3, 1e-3])
def test_large_and_small_scores(magnitude):
    q, k, v, _ = inputs(150)
    pattern = Merged(Local(20), Strided(16))
    found = sparse_attention(q * magnitude, k, v, pattern, backend="cpu")
    expected, _ = reference.attention(q * magnitude, k, v, pattern, causal=True, scale=6**-0.5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


class Largest(TorchDispatchMode):
    """Note how many numbers the largest tensor holds that anything makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return found


@ways
@pytest.mark.parametrize(
    "pattern",
    [Dense(), Local(256), Strided(32), Merged(Local(64), Strided(64)), Fixed(64, 8)],
    ids=str,
)
def test_no_tensor_holds_every_pair(pattern, causal):
    length, size = 4096, 8
    q, k, v, gradient = (x[:1, :1] for x in inputs(length, torch.float32, 1, (size,) * 4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with Largest() as largest:
        output = sparse_attention(*leaves, pattern, causal=causal, backend="cpu")
        torch.autograd.grad(output, leaves, gradient)
    assert length * size <= largest.numbers <= length * length // 8
