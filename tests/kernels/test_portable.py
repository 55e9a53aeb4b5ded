"""The form for exporters: equal to the reference, and to itself after an export."""

import numpy as np
import pytest
import torch

from speechkit.kernels import portable, reference, sparse_attention
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

LAYOUT = ((0, 0, 1), (1, 0, 0), (1, 0, 1))
PATTERNS = [
    Dense(),
    Local(1),
    Local(9),
    Local(200),
    Strided(7),
    Dilated(4, 3),
    OwnBlock(16),
    Columns(16, 3),
    Fixed(16, 3, spread_heads=True),
    Merged(Local(9), Strided(7)),
    Merged(Local(9), Strided(7), OwnBlock(13), Columns(11, 2)),
    PerHead(Local(5), Strided(6), Local(5)),
    Blocks(LAYOUT, 50),
]
PAPER = [
    Local(8),
    Local(100),
    OwnBlock(16),
    Strided(7),
    Columns(16, 3),
    Fixed(16, 3),
    Merged(Local(16), Strided(16)),
]


def inputs(length, dtype=torch.float64, batch=3):
    generator = torch.Generator().manual_seed(length)
    return [torch.randn(batch, 3, length, n, generator=generator).to(dtype) for n in (4, 4, 6, 6)]


def results(module, q, k, v, gradient, pattern, **options):
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    output, lse = module.attention(*leaves, pattern, scale=0.4, **options)
    loss = (output * gradient).sum() + lse.masked_fill(lse == -torch.inf, 0.0).sum()
    return output, lse, *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 127, 150])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_equals_the_reference(pattern, length, causal):
    lengths = torch.tensor([length, length // 2, 0])
    options = {"causal": causal, "key_lengths": lengths}
    found = results(portable, *inputs(length), pattern, **options)
    expected = results(reference, *inputs(length), pattern, **options)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


def test_padding_may_hold_anything():
    q, k, v, gradient = inputs(90)
    options = {"causal": False, "key_lengths": torch.tensor([40] * len(q))}
    clean = results(portable, q, k, v, gradient, Local(9), **options)
    k[:, :, 40:], v[:, :, 40:] = torch.nan, torch.inf
    found = results(portable, q, k, v, gradient, Local(9), **options)
    assert all(torch.equal(*pair) for pair in zip(found, clean, strict=True))


def test_half_precision_is_rounded_once():
    q, k, v, _ = inputs(90, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, lse = portable.attention(q, k, v, Local(9), causal=True, scale=0.4)
    expected, _ = reference.attention(q, k, v, Local(9), causal=True, scale=0.4)
    assert (found.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("pattern", PAPER, ids=str)
def test_no_tensor_holds_every_pair(pattern):
    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                Largest.numbers = max(Largest.numbers, found.numel())
            return found

    q, k, v, _ = inputs(1024, batch=1)
    with Largest():
        portable.attention(q, k, v, pattern, causal=True, scale=0.4)
    # of three heads the columns are the most, an eighth of all pairs for each
    assert Largest.numbers <= 1024 * 1024 * 5 // 8


class Attend(torch.nn.Module):
    """Some patterns over the same queries."""

    def __init__(self, *cases):
        super().__init__()
        self.cases = cases

    def forward(self, q, k, v, key_lengths):
        options = {"scale": 0.4, "key_lengths": key_lengths}
        return tuple(
            portable.attention(q, k, v, pattern, causal=causal, **options)[0]
            for pattern, causal in self.cases
        )


EVERY = Attend(*((pattern, n % 2 == 1) for n, pattern in enumerate(PAPER)))
SOME = Attend((Merged(Local(16), Strided(16)), True), (Columns(16, 3), True), (Local(100), False))


def dynamic_axes():
    batch = torch.export.Dim("batch", min=2, max=100)
    time = torch.export.Dim("time", min=2, max=100_000)
    return (*[{0: batch, 2: time}] * 3, {0: batch})


def exported_inputs(length, batch=3):
    q, k, v, _ = inputs(length, torch.float32, batch)
    return q, k, v, torch.tensor([length, length // 2 + 1, 0, 1][:batch])


def exported(model):
    # shorter than the longest window: the example's length must not show in what is exported
    return torch.export.export(model, exported_inputs(50), dynamic_shapes=dynamic_axes())


def test_export_keeps_the_length_dynamic():
    program = exported(EVERY).module()
    for length, batch in ((2, 3), (33, 2), (131, 4)):
        given = exported_inputs(length, batch)
        torch.testing.assert_close(program(*given), EVERY(*given))


def test_onnx_agrees_at_other_lengths(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "attention.onnx"
    torch.onnx.export(exported(SOME), f=path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    for length in (37, 212):
        given = exported_inputs(length)
        found = session.run(None, {n: x.numpy() for n, x in zip(names, given, strict=True)})
        for x, y in zip(found, SOME(*given), strict=True):
            np.testing.assert_allclose(x, y.numpy(), rtol=0, atol=2e-6)


def test_sparse_attention_uses_it_where_told():
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return sparse_attention(q, k, v, Local(8))

    q, k, v, _ = inputs(50, torch.float32)
    with portable.exportable():
        exported = torch.export.export(Layer(), (q, k, v))
    used = {str(node.target) for node in exported.graph.nodes}
    assert not any("speechkit" in name for name in used)
    torch.testing.assert_close(exported.module()(q, k, v), Layer()(q, k, v))
