"""The entry: what it refuses, which code it runs, and compilers."""

import pytest
import torch

from speechkit.kernels import KernelError, explain, reference, sparse_attention, use_backend
from speechkit.kernels import operator as operators
from speechkit.kernels.dispatch import VARIABLE, choose, request_of
from speechkit.kernels.encoding import encode
from speechkit.kernels.operator import sparse_attention as operator
from speechkit.kernels.patterns import Blocks, Dense, Fixed, Local, Merged, PerHead, Strided
from speechkit.kernels.portable import exportable

PATTERN = Merged(Local(8), Strided(8))


def inputs(length=40, dtype=torch.float32, heads=2, sizes=(4, 4, 3)):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, heads, length, n, generator=generator).to(dtype) for n in sizes]


def expected(q, k, v, pattern=PATTERN, causal=True):
    return reference.attention(q, k, v, pattern, causal=causal, scale=q.shape[3] ** -0.5)[0]


@pytest.mark.parametrize("backend", ["auto", "reference", "dense", "cpu"])
@pytest.mark.parametrize("causal", [True, False])
def test_backends_agree(backend, causal):
    q, k, v = inputs()
    found = sparse_attention(q, k, v, PATTERN, causal=causal, backend=backend)
    torch.testing.assert_close(found, expected(q, k, v, causal=causal))


@pytest.mark.parametrize("backend", ["auto", "reference", "dense", "cpu"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_no_scores(backend, dtype):
    """Scores of 40 * 40 * 64 are beyond float16, and bfloat16 has eight bits for them."""
    large = [40 * torch.ones_like(x) for x in inputs(dtype=dtype, sizes=(64, 64, 64))]
    spread = inputs(dtype=dtype)
    found, wanted = [], []
    for given in (large, spread):
        leaves = [x.requires_grad_() for x in given]
        wanted.append(sparse_attention(*leaves, PATTERN, scale=1.0, backend=backend))
        with torch.autocast("cpu", dtype):
            found.append(sparse_attention(*leaves, PATTERN, scale=1.0, backend=backend))
        found += torch.autograd.grad(found[-1].sum(), leaves)
        wanted += torch.autograd.grad(wanted[-1].sum(), leaves)
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("pattern", [Dense(), PATTERN, PerHead(Local(5), Strided(8))], ids=str)
def test_the_dense_path_masks_sequences_of_other_lengths(pattern, causal):
    leaves = [x.requires_grad_() for x in inputs(dtype=torch.float64)]
    options = {"causal": causal, "key_lengths": torch.tensor([40, 9]), "scale": 0.5}
    found = sparse_attention(*leaves, pattern, backend="dense", **options)
    wanted = sparse_attention(*leaves, pattern, backend="reference", **options)
    torch.testing.assert_close(found, wanted)
    gradient = torch.randn_like(wanted)
    pairs = (torch.autograd.grad(x, leaves, gradient) for x in (found, wanted))
    for x, y in zip(*pairs, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("backend", ["auto", "reference", "dense", "cpu"])
def test_no_positions_with_gradients(backend):
    leaves = [x.requires_grad_() for x in inputs(length=0)]
    output = sparse_attention(*leaves, PATTERN, backend=backend)
    assert output.shape == (2, 2, 0, 3)
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [x.shape for x in gradients] == [x.shape for x in leaves]


@pytest.mark.parametrize("elements", [1, 100, 1 << 25])
def test_row_products_elsewhere_are_those_on_a_cpu(monkeypatch, elements):
    monkeypatch.setattr(operators, "_DOT_ELEMENTS", elements)
    a, b = torch.randn(2, 2, 3, 37, 5)
    found = operators._dots(a, b, torch.float64)
    wanted = torch.stack(
        [operators._dots_on_cpu(*pair, torch.float64) for pair in zip(a, b, strict=True)]
    )
    torch.testing.assert_close(found, wanted)


def test_the_dense_path_returns_no_log_sum_exp():
    with pytest.raises(KernelError, match='give "cpu"'):
        sparse_attention(*inputs(), PATTERN, backend="dense", return_lse=True)


@pytest.mark.parametrize("backend", ["auto", "reference", "cpu"])
def test_no_positions(backend):
    q, k, v = inputs(length=0)
    output, lse = sparse_attention(q, k, v, PATTERN, return_lse=True, backend=backend)
    assert (output.shape, lse.shape) == ((2, 2, 0, 3), (2, 2, 0))
    with exportable():
        output, lse = sparse_attention(q, k, v, PATTERN, return_lse=True)
    assert (output.shape, lse.shape) == ((2, 2, 0, 3), (2, 2, 0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, k, v: (q[0], k, v), r"q \(2, 40, 4\), k .*: give q and k as \(B, H, T, D\)"),
        (lambda q, k, v: (q, k[:, :, :30], v), r"k \(2, 2, 30, 4\)"),
        (lambda q, k, v: (q, k, v[:1]), r"v \(1, 2, 40, 3\)"),
        (lambda q, k, v: (q[..., :0], k[..., :0], v), "must be at least 1; only T may be 0"),
        (lambda q, k, v: (q, k.double(), v), "types torch.float32, torch.float64"),
        (lambda q, k, v: (q.int(), k.int(), v.int()), "give all three in one of torch.float64"),
        (lambda q, k, v: (q, k, v.to("meta")), "devices cpu, cpu, meta"),
    ],
)
def test_tensors_that_do_not_fit(change, message):
    with pytest.raises(KernelError, match=message):
        sparse_attention(*change(*inputs()), PATTERN)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        (torch.tensor([5, 41]), "from 5 to 41: each must be between 0 and T = 40"),
        (torch.tensor([-1, 3]), "from -1 to 3"),
        (torch.tensor([5.0, 4.0]), "of torch.float32: give 2 whole numbers"),
        (torch.tensor([5]), r"key_lengths \(1,\)"),
        (torch.tensor([True, False]), "of torch.bool: give 2 whole numbers"),
        ([5, 4], r"key_lengths \[5, 4\]: give a tensor of 2"),
    ],
)
def test_key_lengths_that_do_not_fit(lengths, message):
    with pytest.raises(KernelError, match=message):
        sparse_attention(*inputs(), PATTERN, key_lengths=lengths)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (PerHead(Local(1), Local(2), Local(3)), "3 patterns, but there are 2 heads"),
        (Blocks(((1,),), 39), "covers 39 positions, but the length is 40"),
        ("Local(4)", r"pattern 'Local\(4\)': is no pattern; give such as"),
    ],
)
def test_patterns_that_do_not_fit(pattern, message):
    with pytest.raises(KernelError, match=message):
        sparse_attention(*inputs(), pattern)


def test_a_forced_backend_that_cannot_serve():
    with pytest.raises(KernelError, match="backend 'triton' cannot serve this: the tensors are on"):
        sparse_attention(*inputs(), PATTERN, backend="triton")
    with pytest.raises(KernelError, match="unknown backend 'cuda'; there are auto, reference"):
        sparse_attention(*inputs(), PATTERN, backend="cuda")
    with pytest.raises(KernelError, match="unknown backend 'gpu'"), use_backend("gpu"):
        pass


def chosen(backend="auto", pattern=PATTERN, length=40):
    q, _, v = inputs(length)
    return choose(backend, pattern, request_of(q, v, causal=True, has_lengths=False))[0]


def test_who_forces_a_backend(monkeypatch):
    monkeypatch.setenv(VARIABLE, "reference")
    assert chosen() == "reference"
    with use_backend("cpu"):
        assert chosen() == "cpu"
        with use_backend("dense"):
            assert chosen() == "dense"
            assert chosen("cpu") == "cpu"
        assert chosen() == "cpu"
    assert chosen() == "reference"
    monkeypatch.setenv(VARIABLE, "fast")
    with pytest.raises(KernelError, match="unknown backend 'fast'"):
        chosen()
    monkeypatch.delenv(VARIABLE)
    assert chosen() in ("cpu", "dense")


def test_auto_holds_no_large_mask():
    assert chosen(length=2049, pattern=Dense()) == "cpu"
    assert chosen(length=4096, pattern=Local(4000)) == "cpu"


def test_explain_says_what_runs_and_why():
    q, _, _ = inputs()
    code, _, reason = explain(q, PATTERN).partition(": ")
    assert code in ("cpu", "dense")
    assert "predicted" in reason
    assert explain(torch.zeros(1, 1, 4096, 4), PATTERN).startswith("cpu: 4096 positions")


def test_the_scale():
    q, k, v = inputs()
    found = sparse_attention(q, k, v, PATTERN, scale=0.25)
    torch.testing.assert_close(found, sparse_attention(q * 0.5, k, v, PATTERN, scale=0.5))


@pytest.mark.parametrize("backend", ["cpu", "dense"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 9])], ids=["all", "ragged"])
def test_opcheck(backend, lengths):
    q, k, v = (x.requires_grad_() for x in inputs())
    options = {"pattern": encode(PATTERN), "causal": True, "scale": 0.5, "backend": backend}
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, (q, k, v, lengths), options, test_utils=tests)


class Layer(torch.nn.Module):
    """Attention between two linear maps."""

    def __init__(self, pattern):
        super().__init__()
        self.pattern = pattern
        self.inner, self.outer = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x):
        q, k, v = self.inner(x).unflatten(-1, (6, 4)).transpose(1, 2).chunk(3, dim=1)
        return self.outer(sparse_attention(q, k, v, self.pattern).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", ["cpu", "dense"])
@pytest.mark.parametrize("lengths", [None, torch.tensor([40, 9])], ids=["all", "ragged"])
def test_many_backward_passes_at_once(backend, lengths):
    q, k, v = (x.requires_grad_() for x in inputs())
    output = sparse_attention(q, k, v, PATTERN, key_lengths=lengths, backend=backend)
    signals = torch.randn(5, *output.shape, generator=torch.Generator().manual_seed(3))

    def backward(signal):
        return torch.autograd.grad(output, (q, k, v), signal, retain_graph=True)

    each = [torch.stack(found) for found in zip(*map(backward, signals), strict=True)]
    for one, other in zip(torch.func.vmap(backward)(signals), each, strict=True):
        torch.testing.assert_close(one, other)


def test_vmap_of_the_forward_pass():
    many = [torch.stack([x, 2 * x]) for x in inputs()]
    found = torch.func.vmap(lambda q, k: sparse_attention(q, k, many[2][0], PATTERN))(*many[:2])
    for place in range(2):
        wanted = sparse_attention(many[0][place], many[1][place], many[2][0], PATTERN)
        torch.testing.assert_close(found[place], wanted)


def test_compiled_layers_have_the_same_gradients():
    torch.manual_seed(1)
    layer, x = Layer(PATTERN), torch.randn(2, 33, 8)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("pattern", [PATTERN, Fixed(8, 2)], ids=str)
def test_export_holds_the_operator(pattern):
    layer = Layer(pattern)
    time = torch.export.Dim("time", min=2, max=4096)
    program = torch.export.export(layer, (torch.randn(2, 33, 8),), dynamic_shapes=({1: time},))
    names = [str(node.target) for node in program.graph.nodes]
    assert "speechkit.sparse_attention.default" in names
    x = torch.randn(2, 57, 8)
    torch.testing.assert_close(program.module()(x), layer(x))


@pytest.mark.parametrize("backend", ["cpu", "dense"])
def test_autocast_does_not_round_what_is_computed_inside(backend):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 70, 16, generator=generator) for _ in range(3))
    pattern = Merged(Local(8), Strided(8))

    def results():
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        output = sparse_attention(*inputs, pattern, backend=backend)
        return (output, *torch.autograd.grad(output.square().sum(), inputs))

    plain = results()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = results()
    assert all(map(torch.equal, plain, under_autocast))
