import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from speechkit.active_learning.factored_gradients import squared_product
from speechkit.active_learning.gradient_norms import record
from speechkit.active_learning.parameters import choose
from speechkit.active_learning.per_clip_autograd import per_clip_autograd
from speechkit.errors import RequestError

SIZES = st.integers(1, 4)


def check(model: nn.Module, x: Tensor, *, hypotheses: int = 3, limit: int = 2**18) -> None:
    """Compare with one backward pass per hypothesis and clip, parameter by parameter."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        shape = model.eval()(x).shape
    cotangents = torch.randn(hypotheses, *shape, dtype=torch.float64)
    with record(model, hypotheses_at_once=2, limit_elements=limit) as norms:
        found = norms.by_parameter(model(x), cotangents)
    clips = [cotangents[:, i : i + 1] for i in range(len(x))]
    for name, squares in found.items():
        expected = per_clip_autograd(
            model, lambda i: model(x[i : i + 1]), clips, parameters=f"{name}"
        )
        torch.testing.assert_close(squares, expected, rtol=1e-9, atol=1e-18, msg=name)


@settings(max_examples=12, deadline=None)
@given(axes=st.lists(SIZES, max_size=3), inputs=SIZES, outputs=SIZES, bias=st.booleans())
def test_linear_with_inputs_of_any_rank(axes, inputs, outputs, bias):
    torch.manual_seed(len(axes))
    x = torch.randn(3, *axes, inputs, dtype=torch.float64)
    check(nn.Linear(inputs, outputs, bias=bias), x)


@settings(max_examples=40, deadline=None)
@given(
    planar=st.booleans(),
    groups=st.integers(1, 3),
    widths=st.tuples(SIZES, SIZES),
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.one_of(st.integers(0, 2), st.sampled_from(["same", "valid"])),
    mode=st.sampled_from(["zeros", "circular", "replicate", "reflect"]),
    bias=st.booleans(),
    limit=st.sampled_from([1, 300, 2**18]),
)
def test_convolutions(planar, groups, widths, kernel, stride, dilation, padding, mode, bias, limit):
    torch.manual_seed(kernel)
    kind = nn.Conv2d if planar else nn.Conv1d
    layer = kind(
        groups * widths[0],
        groups * widths[1],
        (kernel, 3) if planar else kernel,
        stride=1 if padding == "same" else stride,
        dilation=dilation,
        padding=padding,
        groups=groups,
        padding_mode=mode,
        bias=bias,
    )
    size = (13, 11) if planar else (13,)
    check(layer, torch.randn(3, groups * widths[0], *size, dtype=torch.float64), limit=limit)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.LayerNorm(6), (5, 6)),
        (nn.LayerNorm((4, 6), bias=False), (5, 4, 6)),
        (nn.LayerNorm(6), (6,)),
        (nn.RMSNorm(6), (5, 2, 6)),
        (nn.RMSNorm((2, 6), eps=0.1), (5, 2, 6)),
        (nn.GroupNorm(3, 6), (6, 7)),
        (nn.GroupNorm(1, 6), (6, 4, 3)),
        (nn.BatchNorm1d(6), (6, 7)),
        (nn.BatchNorm1d(6), (6,)),
        (nn.BatchNorm2d(6, eps=0.1), (6, 3, 5)),
    ],
)
def test_normalisations(layer, shape):
    torch.manual_seed(0)
    if isinstance(layer, nn.modules.batchnorm._BatchNorm):
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
    check(layer, torch.randn(4, *shape, dtype=torch.float64))


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("shape", [(9,), (3, 4), ()])
def test_embedding_rows_are_grouped_by_token(padding_idx, shape):
    torch.manual_seed(1)
    check(nn.Embedding(5, 3, padding_idx=padding_idx), torch.randint(5, (4, *shape)))


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(0, 9)] * 3),
    inputs=st.integers(1, 30),
    outputs=st.integers(1, 30),
    limit=st.integers(1, 500),
)
def test_both_forms_of_a_product_in_blocks_of_any_size(sizes, inputs, outputs, limit):
    hypotheses, matrices, positions = sizes
    torch.manual_seed(inputs)
    left = torch.randn(matrices, positions, inputs, dtype=torch.float64)
    right = torch.randn(hypotheses, matrices, positions, outputs, dtype=torch.float64)
    expected = (left.mT @ right).square().sum((-2, -1))
    torch.testing.assert_close(squared_product(left, right, limit), expected, rtol=1e-9, atol=0)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, seen[:, None, None])
        return self.out(mixed.transpose(1, 2).flatten(2))


class Recogniser(nn.Module):
    """Strided convolutions, one attention block with a depthwise convolution, an output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.project = nn.Linear(4 * 3, 8)
        self.attention, self.depthwise = Attention(8, 2), nn.Conv1d(8, 8, 5, padding=2, groups=8)
        self.norms = nn.ModuleList([nn.LayerNorm(8), nn.RMSNorm(8), nn.LayerNorm(8)])
        self.batch_norm, self.dropout = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.feed, self.back = nn.Linear(8, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        x = x[:, None]
        for layer in (self.first, self.second):
            x = layer(x * inside(lengths, x.shape[2])[:, None, :, None]).relu_()
            lengths = (lengths + 1) // 2
        seen = inside(lengths, x.shape[2])
        h = self.project(x.transpose(1, 2).flatten(2))
        h = h + self.attention(self.norms[0](h), seen)
        local = self.depthwise((self.norms[1](h) * seen[..., None]).mT)
        h = h + self.dropout(functional.silu(self.batch_norm(local))).mT
        h = h + self.back(functional.gelu(self.feed(self.norms[2](h))))
        return self.head(self.norms[2](h))  # the last norm is used twice


def inside(lengths: Tensor, frames: int) -> Tensor:
    return torch.arange(frames) < lengths[:, None]


@pytest.fixture
def recogniser() -> Recogniser:
    torch.manual_seed(3)
    model = Recogniser().double()
    model(torch.randn(4, 40, 10, dtype=torch.float64), torch.full((4,), 40))  # running statistics
    return model


def ragged_batch(hypotheses: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, lengths and cotangents (K, B, T, V) that are zero behind the lengths."""
    lengths = torch.tensor([37, 12, 24])
    x = torch.randn(3, 37, 10, dtype=torch.float64)
    cotangents = torch.randn(hypotheses, 3, 10, 5, dtype=torch.float64)
    return x, lengths, cotangents * inside((lengths + 3) // 4, 10)[..., None]


@pytest.mark.parametrize("parameters", ["all", "head", ["first", r".*attention\..*bias"]])
def test_a_padded_batch_gives_what_each_clip_alone_gives(recogniser, parameters):
    x, lengths, cotangents = ragged_batch(5)
    with record(recogniser, parameters, hypotheses_at_once=2, limit_elements=500) as norms:
        logits = recogniser(x, lengths)
        found = norms.squared(logits, cotangents)
        again = torch.stack([norms.squared(logits, one) for one in cotangents])
    expected = per_clip_autograd(
        recogniser,
        lambda i: recogniser(x[i : i + 1, : lengths[i]], lengths[i : i + 1]),
        [cotangents[:, i : i + 1, : (n + 3) // 4] for i, n in enumerate(lengths.tolist())],
        parameters=parameters,
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(again, expected, rtol=1e-9, atol=0)


def test_modes_and_requirements_are_put_back_also_after_an_error(recogniser):
    recogniser.attention.eval()
    recogniser.first.weight.requires_grad_(False)
    with pytest.raises(ZeroDivisionError), record(recogniser, "first"):
        fail_in_scoring_mode(recogniser)
    assert recogniser.training
    assert recogniser.dropout.training
    assert not recogniser.attention.training
    assert not recogniser.first.weight.requires_grad
    assert recogniser.head.weight.requires_grad
    assert not any(module._forward_hooks for module in recogniser.modules())
    assert all(parameter.grad is None for parameter in recogniser.parameters())


def fail_in_scoring_mode(model: Recogniser) -> None:
    assert not any(module.training for module in model.modules())
    assert model.first.weight.requires_grad
    assert not model.head.weight.requires_grad
    raise ZeroDivisionError


def test_a_frozen_parameter_and_no_grad_outside_make_no_difference(recogniser):
    x, lengths, cotangents = ragged_batch(1)
    with record(recogniser) as norms:
        expected = norms.squared(recogniser(x, lengths), cotangents)
    recogniser.requires_grad_(False)
    with torch.no_grad(), record(recogniser) as norms:
        assert torch.equal(norms.squared(recogniser(x, lengths), cotangents), expected)


def test_requests_for_parameters():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    assert len(choose(model)) == 24
    assert list(choose(model, "1")) == ["1.weight", "1.bias"]
    assert list(choose(model, [r"1.*\.bias", "3.weight"])) == [
        "1.bias",
        "3.weight",
        "10.bias",
        "11.bias",
    ]
    for request in ("2.gain", "12", "(", []):
        with pytest.raises(RequestError):
            record(model, request).__enter__()


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int = 4) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = (
            self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        )
        return self.head(out[0] if isinstance(out, tuple) else out)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def weight_normed() -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    "layer",
    [
        nn.GRU(4, 4, batch_first=True),
        nn.LSTM(4, 4, batch_first=True),
        nn.MultiheadAttention(4, 2, batch_first=True),
        nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
        nn.Bilinear(4, 4, 4),
        nn.BatchNorm1d(6, track_running_stats=False),
        Scaled(4, 4),
        weight_normed(),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_uncovered_layers_raise_and_can_be_left_out(layer):
    if isinstance(layer, nn.Bilinear):
        layer = nn.Sequential(Twice(), Pairwise(layer))
    model = Recurrent(layer).double()
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    cotangent = torch.randn(2, 6, 3, dtype=torch.float64)
    with record(model) as norms:
        out = model(x)
        with pytest.raises(RequestError, match=r"layer\..*per_clip_autograd"):
            norms.squared(out, cotangent)
    with record(model, "head") as norms:
        assert norms.squared(model(x), cotangent).shape == (2,)
    clips = [cotangent[None, i : i + 1] for i in range(2)]
    assert per_clip_autograd(model, lambda i: model(x[i : i + 1]), clips).shape == (1, 2)


class Twice(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Pairwise(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.inner(*pair)


def test_a_tied_parameter_raises():
    model = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    with pytest.raises(RequestError, match=r"0\.weight is shared"), record(model):
        pass
    with record(model, "2.bias") as norms:
        assert norms.squared(model(torch.randn(2, 3)), torch.ones(2, 3)).tolist() == [3, 3]


class Outside(nn.Module):
    """Uses a layer, and the same weight once more by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.layer(x), self.layer.weight)


class Folded(Outside):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(0, 1)).view_as(x)


class Overwritten(Outside):
    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        out = self.layer(x)
        x.zero_()
        return out


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Outside(), "layer.weight is used outside"),
        (Folded(), r"\(8, 3\) in a batch of 2 clips"),
        (Overwritten(), "overwritten in place"),
    ],
)
def test_what_would_give_wrong_norms_raises(model, message):
    with record(model) as norms:
        out = model(torch.randn(2, 4, 3))
        with pytest.raises(RequestError, match=message):
            norms.squared(out, torch.ones(2, 4, 3))


def test_wrong_cotangents_and_outputs_without_a_graph_raise():
    model = nn.Linear(3, 2)
    with record(model) as norms:
        out = model(torch.randn(4, 3))
        with pytest.raises(RequestError, match="cotangents"):
            norms.squared(out, torch.ones(4, 3))
        with pytest.raises(RequestError, match="inside"):
            norms.squared(out.detach(), torch.ones(4, 2))


def test_a_layer_that_does_not_reach_the_outputs_counts_nothing():
    model = nn.ModuleDict(
        {"used": nn.Linear(3, 2), "unused": nn.Linear(3, 2), "never": nn.GRU(2, 2)}
    )
    x = torch.randn(4, 3)
    with record(model) as norms:
        model["unused"](x)
        squares = norms.by_parameter(model["used"](x), torch.ones(4, 2))
    assert all(bool((squares[name] > 0).all()) == name.startswith("used") for name in squares)
    assert len(squares) == 8


def test_temporaries_stay_within_the_limit():
    """A long clip's Gram matrix (16M elements) and a wide product (4M) are never whole."""
    limit = 2**16
    shapes = [(2, 4096, 3, 2, 1), (1, 40, 2000, 2000, 2)]
    for matrices, positions, inputs, outputs, hypotheses in shapes:
        left = torch.randn(matrices, positions, inputs)
        right = torch.randn(hypotheses, matrices, positions, outputs)
        assert largest_temporary(left, right, limit) <= 2 * limit


def largest_temporary(left: Tensor, right: Tensor, limit: int) -> int:
    with _Largest() as mode:
        squared_product(left, right, limit)
    return mode.elements


class _Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Remembers the largest tensor that is not a view of another."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out._base is None and not func.is_view:
            self.elements = max(self.elements, out.numel())
        return out
