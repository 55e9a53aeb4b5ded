"""Decoding: a step equals the same row of the whole computation; what is kept and read."""

import pytest
import torch

from speechkit.kernels import reference
from speechkit.kernels.decoding import DecodingCache
from speechkit.kernels.errors import KernelError
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

LAYOUT = ((0, 0, 0), (1, 0, 0), (1, 0, 1))
PATTERNS = [
    Dense(),
    Local(1),
    Local(7),
    Strided(5),
    Dilated(4, 3),
    OwnBlock(8),
    Columns(8, 3),
    Columns(8, 2, spread_heads=True),
    Fixed(8, 2),
    Fixed(8, 2, spread_heads=True),
    Merged(Local(9), Strided(6)),
    Merged(Local(3), Columns(8, 2), Columns(5, 1), Dilated(2, 7)),
    PerHead(Local(4), Strided(4), Local(4)),
    Blocks(LAYOUT, 17),
]
LENGTH = 50


def inputs(dtype=torch.float64, heads=3, length=LENGTH, value_size=5):
    generator = torch.Generator().manual_seed(7)
    sizes = (4, 4, value_size)
    return [torch.randn(2, heads, length, n, generator=generator).to(dtype) for n in sizes]


def whole(q, k, v, pattern):
    wide = [x.double() for x in (q, k, v)]
    return reference.attention(*wide, pattern, causal=True, scale=0.5)[0]


def stepped(cache, q, k, v, start=0):
    steps = [
        cache.append_and_attend(*(x[:, :, t : t + 1] for x in (q, k, v)))
        for t in range(start, q.shape[2])
    ]
    return torch.cat(steps, dim=2)


def cache_for(pattern, dtype=torch.float64):
    return DecodingCache(pattern, batch=2, heads=3, head_size=4, value_size=5, dtype=dtype)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_steps_equal_the_whole(pattern):
    q, k, v = inputs()
    found = stepped(cache_for(pattern), q, k, v)
    torch.testing.assert_close(found, whole(q, k, v, pattern), rtol=0, atol=1e-12)


@pytest.mark.parametrize("start", [1, 23, 49])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_steps_after_a_prefill(pattern, start):
    q, k, v = inputs()
    cache = cache_for(pattern)
    middle = start // 2
    cache.prefill(k[:, :, :middle], v[:, :, :middle])
    cache.prefill(k[:, :, middle:start], v[:, :, middle:start])
    found = stepped(cache, q, k, v, start)
    torch.testing.assert_close(found, whole(q, k, v, pattern)[:, :, start:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype):
    q, k, v = inputs(dtype)
    pattern = Merged(Local(9), Strided(6))
    with torch.autocast("cpu", dtype):
        found = stepped(cache_for(pattern, dtype), q, k, v)
    expected = whole(q, k, v, pattern)
    assert found.dtype == dtype
    assert (found.double() - expected).abs().max() <= torch.finfo(dtype).eps * expected.abs().max()


def test_products_beyond_float16_do_not_overflow():
    q, k, v = inputs(torch.float16)
    with torch.autocast("cpu", torch.float16):
        found = stepped(cache_for(Local(9), torch.float16), q * 300, k * 300, v)
    assert found.isfinite().all()


@pytest.mark.parametrize(
    ("pattern", "rows"),
    [
        (Local(7), 7),
        (Dilated(4, 3), 10),
        (OwnBlock(8), 8),
        (Columns(8, 2), 1 + 256),
        (Fixed(8, 2), 8 + 256),
        (Strided(5), 1024),
    ],
    ids=str,
)
def test_memory_is_what_the_pattern_needs(pattern, rows):
    cache = cache_for(pattern)
    _, k, v = inputs(length=1000)
    for start in range(0, 1000, 100):
        cache.prefill(k[:, :, start : start + 100], v[:, :, start : start + 100])
    assert cache.nbytes == rows * 2 * 3 * (4 + 5) * 8


@pytest.mark.parametrize(
    ("pattern", "read"), [(Local(7), 7), (Strided(50), 20), (Merged(Local(50), Strided(50)), 69)]
)
def test_a_step_reads_only_what_it_sees(pattern, read, monkeypatch):
    cache = cache_for(pattern)
    q, k, v = inputs(length=1000)
    cache.prefill(k[:, :, :-1], v[:, :, :-1])
    widths = []
    products = torch.bmm
    monkeypatch.setattr(torch, "bmm", lambda a, b: widths.append(b.shape) or products(a, b))
    cache.append_and_attend(q[:, :, -1:], k[:, :, -1:], v[:, :, -1:])
    assert [shape[1] for shape in widths[1:]] == [read]


def test_an_empty_prefill_changes_nothing():
    cache = cache_for(Local(3))
    _, k, v = inputs()
    cache.prefill(k[:, :, :0], v[:, :, :0])
    assert (cache.length, cache.nbytes) == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[:, :2], k, v), r"q is \(2, 2, 1, 4\); this cache takes \(2, 3, N, 4\)"),
        (lambda q, k, v: (q, k.float(), v), "k is torch.float32 on cpu; this cache takes"),
        (lambda q, k, v: (q, k, v[..., :3]), r"v is \(2, 3, 1, 3\)"),
        (lambda q, k, v: (q.repeat(1, 1, 2, 1), k, v), "q has 2 positions; give one"),
        (lambda q, k, v: (q, k.repeat(1, 1, 2, 1), v), "k is .*; give one position"),
    ],
)
def test_what_a_step_does_not_take(change, message):
    q, k, v = (x[:, :, :1] for x in inputs())
    with pytest.raises(KernelError, match=message):
        cache_for(Local(3)).append_and_attend(*change(q, k, v))


def test_a_layout_ends():
    q, k, v = inputs(length=52)
    with pytest.raises(KernelError, match="covers 51 positions, but the length is 52"):
        stepped(cache_for(Blocks(LAYOUT, 17)), q, k, v)


def test_sizes_below_one():
    with pytest.raises(KernelError, match="batch is 0"):
        DecodingCache(Local(3), batch=0, heads=1, head_size=4)
