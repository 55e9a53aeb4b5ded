import copy
import dataclasses
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from speechkit.attention_layers import SelfAttention, activation
from speechkit.errors import RequestError
from speechkit.initialisation import linear_std
from speechkit.kernels.dispatch import use_backend
from speechkit.kernels.errors import KernelError
from speechkit.sparse_transformer import Block, Stack, StackConfig


def config(**changes):
    return StackConfig(**{"layers": 3, "width": 24, "heads": 2, **changes})


def stack(seed=0, **changes):
    torch.manual_seed(seed)
    return Stack(config(**changes)).double()


def noise(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_the_paper(model, x, lengths=None):
    """Equations 9 to 14 with a dense matrix of scores and the patterns' definition as a mask."""
    c = model.config
    steps = x.shape[1]
    for layer, block in enumerate(model.blocks):
        n = functional.layer_norm(
            x, x.shape[-1:], block.attention_norm.weight, block.attention_norm.bias, 1e-5
        )
        a = block.attention
        q, k, v = (
            (n @ m.weight.T + m.bias).view(*x.shape[:2], c.heads, -1).transpose(1, 2)
            for m in (a.query, a.key, a.value)
        )
        mask = c.pattern(layer).mask(steps, causal=c.causal, heads=c.heads)[None]
        if lengths is not None:
            mask = mask & (torch.arange(steps) < lengths[:, None])[:, None, None]
        scores = (q @ k.transpose(-1, -2)) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0.0)
        gathered = (weights @ v).transpose(1, 2).reshape(x.shape)
        h = x + gathered @ a.output.weight.T + a.output.bias
        f = block.feed_forward
        n = functional.layer_norm(
            h, x.shape[-1:], block.feed_forward_norm.weight, block.feed_forward_norm.bias, 1e-5
        )
        y = n @ f.hidden.weight.T + f.hidden.bias
        x = h + (y * torch.sigmoid(1.702 * y)) @ f.output.weight.T + f.output.bias
    return functional.layer_norm(x, x.shape[-1:], model.norm.weight, model.norm.bias, 1e-6)


WAYS = {
    "interleaved": ("Strided(5)", "Local(5)", "Local(5)"),
    "merged": ("Merged(Local(5), Strided(5))",),
    "fixed": ("Fixed(6, 2, True)",),
    "per-head": ("PerHead(Local(5), Strided(5))",),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("causal", [True, False])
def test_equals_the_papers_equations(way, causal):
    model = stack(patterns=WAYS[way], causal=causal, half_keys=way == "fixed")
    x = noise(2, 23, 24).requires_grad_()
    y, expected = model(x), by_the_paper(model, x)
    torch.testing.assert_close(y, expected)
    cotangent = noise(2, 23, 24, seed=3)
    inputs = [x, *model.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(y, inputs, cotangent), torch.autograd.grad(expected, inputs, cotangent)
    )


@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 40), stride=st.integers(1, 9), way=st.sampled_from(sorted(WAYS)))
def test_any_length_and_stride(length, stride, way):
    patterns = tuple(
        text.replace("(5)", f"({stride})").replace("(6, 2", f"({stride}, {min(2, stride)}")
        for text in WAYS[way]
    )
    model = stack(patterns=patterns, layers=2, width=8)
    x = noise(1, length, 8)
    torch.testing.assert_close(model(x), by_the_paper(model, x))


def test_padding_changes_nothing():
    model = stack(causal=False, patterns=("Strided(4)", "Local(3)"), convolution=5, width=24)
    long, short = noise(1, 19, 24), noise(1, 11, 24, seed=2)
    batch = torch.cat([long, functional.pad(short, (0, 0, 0, 8), value=1e3)])
    y = model(batch, torch.tensor([19, 11]))
    torch.testing.assert_close(y[:1], model(long))
    torch.testing.assert_close(y[1:, :11], model(short))


@pytest.mark.parametrize(
    "changes", [{}, {"convolution": 4}, {"positions": "rotary"}, {"feed_forward_steps": 4}]
)
def test_causal_stacks_do_not_look_ahead(changes):
    model = stack(patterns=("Fixed(4, 1)",), **changes)
    x = noise(1, 17, 24)
    y = model(x)
    x[:, 9:] = noise(1, 8, 24, seed=2)
    z = model(x)
    torch.testing.assert_close(y[:, :9], z[:, :9])
    assert not torch.allclose(y[:, 9:], z[:, 9:])


@pytest.mark.parametrize("kernel", [4, 5])
@pytest.mark.parametrize("causal", [True, False])
def test_convolution_keeps_the_length(kernel, causal):
    model = stack(convolution=kernel, causal=causal)
    assert model(noise(2, 7, 24)).shape == (2, 7, 24)


def test_rotary_attention_depends_on_distance_only():
    attention = SelfAttention(16, 2, pattern=config(patterns=("Dense()",)).pattern(0)).double()
    model = stack(positions="rotary", width=16)
    x = noise(1, 9, 16)
    near = attention(x, turn=model.turn(torch.arange(9)))
    far = attention(x, turn=model.turn(torch.arange(9) + 100_000))
    torch.testing.assert_close(near, far, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(near, attention(x), atol=1e-3)


def test_positions_reach_a_rotary_encoder():
    x = (
        noise(1, 1, 24).expand(1, 6, 24)
        + noise(1, 6, 24) * torch.tensor([1, 0, 0, 0, 0, 0])[:, None]
    )
    plain = stack(causal=False, layers=1)(x)
    turned = stack(causal=False, layers=1, positions="rotary")(x)
    torch.testing.assert_close(plain[:, 1], plain[:, 5])
    assert not torch.allclose(turned[:, 1], turned[:, 5])


def test_activation():
    x = noise(50) * 5
    torch.testing.assert_close(activation(x), x * torch.sigmoid(1.702 * x))


@pytest.mark.parametrize("changes", [{}, {"feed_forward_steps": 5}, {"convolution": 3}])
@pytest.mark.parametrize("half", [False, True])
def test_recomputation_gives_the_same_bits(changes, half):
    model = stack(dropout=0.3, patterns=("Local(4)", "Strided(4)"), **changes).float()
    twin = Stack(dataclasses.replace(model.config, recompute=True))
    twin.load_state_dict(model.state_dict())
    gradients = []
    for each in (model, twin):
        x = noise(2, 21, 24).float().requires_grad_()
        torch.manual_seed(7)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = each(x)
        y.square().sum().backward()
        gradients.append([y, x.grad, *(p.grad for p in each.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert twin.recomputes
    assert not twin.eval().recomputes


def test_recomputation_takes_the_backend_that_was_forced():
    model = stack(recompute=True)
    gradients = []
    for backend in ("reference", "cpu"):
        x = noise(2, 21, 24).requires_grad_()
        with use_backend(backend):
            y = model(x)
        (found,) = torch.autograd.grad(y.square().sum(), x)  # where nothing is forced
        gradients.append(found)
    torch.testing.assert_close(*gradients)


def test_recomputation_keeps_the_blocks_inputs_alone():
    kept = {}
    for recompute in (False, True):
        model = stack(layers=6, recompute=recompute)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t
        ):
            model(noise(1, 50, 24).requires_grad_())
        kept[recompute] = sum(size for size in sizes if size >= 50 * 24)
    assert kept[True] == (6 + 1) * 50 * 24  # and the last norm's input
    assert kept[False] > 6 * 10 * 50 * 24


def test_steps_of_the_feed_forward_layer_change_nothing():
    whole, split = stack(), stack(feed_forward_steps=4)
    x = noise(2, 11, 24)
    torch.testing.assert_close(whole(x), split(x))


def test_the_three_steps_of_a_block_are_its_forward_pass():
    torch.manual_seed(0)
    block = Block(config(patterns=("Local(3)",), half_keys=True), 0)
    x = noise(2, 7, 24).float()
    q, k, v = block.project(x)
    assert q.shape == k.shape == (2, 2, 7, 6)
    assert v.shape == (2, 2, 7, 12)
    assert torch.equal(block.finish(x, block.attend(q, k, v)), block(x))


@pytest.mark.parametrize(
    ("reading", "std"), [("code", math.sqrt(0.125 / 256)), ("paper", 0.125 / 16)]
)
def test_initial_weights(reading, std):
    torch.manual_seed(0)
    c = config(width=256, layers=8, initialisation=reading)
    block = Block(c, 0)
    ends = std / math.sqrt(2 * 8)
    assert linear_std(256, reading) == pytest.approx(std)
    assert block.attention.query.weight.std().item() == pytest.approx(std, rel=0.02)
    assert block.feed_forward.hidden.weight.std().item() == pytest.approx(std, rel=0.02)
    assert block.attention.output.weight.std().item() == pytest.approx(ends, rel=0.02)
    w2 = linear_std(1024, reading) / math.sqrt(16)
    assert block.feed_forward.output.weight.std().item() == pytest.approx(w2, rel=0.02)
    assert all((m.bias == 0).all() for m in block.modules() if isinstance(m, nn.Linear))


def growth(layers, **changes):
    """How much larger the stream's variance is behind the blocks than before them."""
    torch.manual_seed(0)
    model = Stack(config(layers=layers, width=64, initialisation="code", **changes))
    outputs = []
    model.norm.register_forward_pre_hook(lambda _, inputs: outputs.append(inputs[0]))
    x = torch.randn(1, 64, 64)
    with torch.no_grad():
        model(x)
    return (outputs[0] - x).var().item()


def test_depth_scaling_keeps_the_stream_as_deep_stacks_grow():
    scaled = [growth(layers) for layers in (4, 64)]
    unscaled = [growth(layers, depth_scaling=False) for layers in (4, 64)]
    assert scaled[1] < 2 * scaled[0]
    assert unscaled[1] > 8 * unscaled[0]


def test_every_linear_layer_sees_the_batch_first():
    model = stack(convolution=3, causal=False).float()
    shapes = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda _, inputs, __: shapes.append(inputs[0].shape[:2]))
    model(torch.zeros(3, 7, 24))
    assert len(shapes) == 3 * 8
    assert set(shapes) == {(3, 7)}


def test_autocast_keeps_the_stream_and_norms_in_float32():
    model = stack().float()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(noise(1, 9, 24).float())
        q, _, _ = model.blocks[0].project(noise(1, 9, 24).float())
    assert (y.dtype, q.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(y, model(noise(1, 9, 24).float()), rtol=0.05, atol=0.05)


def test_config_is_json():
    c = config(patterns=("Fixed(4, 1, True)", "Local(3)"), dropout=0.1)
    assert StackConfig(**json.loads(json.dumps(dataclasses.asdict(c)))) == c


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"width": 25}, "width 25"),
        ({"heads": 8, "half_keys": True}, "halved"),
        ({"layers": 0}, "layers 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"positions": "absolute"}, "rotary"),
        ({"positions": "rotary", "heads": 8}, "even"),
        ({"patterns": ()}, "at least one"),
        ({"patterns": ("Lokal(3)",)}, "not a pattern"),
        ({"patterns": ("PerHead(Local(3))",)}, "2 heads"),
        ({"initialisation": "xavier"}, "code or paper"),
        ({"feed_forward_steps": -1}, "feed_forward_steps"),
    ],
)
def test_wrong_configurations(changes, problem):
    with pytest.raises((RequestError, KernelError), match=problem):
        config(**changes)


def test_a_copy_is_independent():
    model = stack()
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.blocks[0].attention.query.weight)
    assert model.blocks[0].attention.query.weight.abs().sum() > 0
