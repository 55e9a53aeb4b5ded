import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from speechkit.density import model as density
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.errors import RequestError
from speechkit.sparse_transformer import StackConfig


def config(shape=(7, 6), **stack):
    stack = {"layers": 2, "width": 16, "heads": 2, "patterns": ("Local(6)", "Strided(6)"), **stack}
    return DensityConfig(shape=shape, stack=StackConfig(**stack))


def trained(seed=0, **changes):
    """A model whose output layer is not zero any more."""
    torch.manual_seed(seed)
    model = DensityModel(config(**changes))
    nn.init.normal_(model.output.weight, std=0.3)
    return model


def some_bytes(batch, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (batch, steps), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("half", [False, True])
def test_untrained_gives_eight_bits_per_byte(half):
    model = DensityModel(config())
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits, loss = model(some_bytes(3, 41)), model.loss(some_bytes(3, 41))
    assert logits.dtype == loss.dtype == torch.float32
    assert (logits == 0).all()
    assert f"{loss.item() / math.log(2):.6f}" in ("8.000000", "8.000001")  # float32's log(256)
    assert f"{model.double().loss(some_bytes(3, 41)).item() / math.log(2):.12f}" == "8.000000000000"


def test_logits_at_t_see_the_bytes_before_t_alone():
    model = trained()
    tokens = some_bytes(1, 30)
    before = model(tokens)
    tokens[0, 12] += 1
    after = model(tokens)
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.allclose(before[:, 13], after[:, 13])


def test_loss_is_the_cross_entropy_in_pieces(monkeypatch):
    model, tokens = trained(), some_bytes(2, 41)
    expected = functional.cross_entropy(model(tokens).transpose(1, 2), tokens.long())
    monkeypatch.setattr(density, "LOSS_STEPS", 20)
    torch.testing.assert_close(model.loss(tokens), expected)
    assert model.nats(tokens).shape == (2, 41)


@pytest.mark.parametrize("half", [False, True])
def test_recomputation_gives_the_same_bits(half, monkeypatch):
    monkeypatch.setattr(density, "LOSS_STEPS", 20)
    tokens, results = some_bytes(2, 41), []
    for recompute in (False, True):
        model = trained(recompute=recompute, dropout=0.2, half_keys=True)
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = model.loss(tokens)
        loss.backward()
        results.append([loss, *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_learns_a_periodic_sequence():
    torch.manual_seed(0)
    model = DensityModel(config(recompute=True, width=32))
    tokens = torch.arange(6, dtype=torch.uint8).repeat(7)[None]
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimiser.zero_grad()
        loss = model.loss(tokens)
        loss.backward()
        optimiser.step()
    assert loss.item() / math.log(2) < 1.0


def test_weights_stay_in_float32_under_autocast():
    model = trained()
    with torch.autocast("cpu", torch.bfloat16):
        model.loss(some_bytes(2, 9)).backward()
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_config_is_json():
    c = config()
    assert DensityConfig.of(json.loads(json.dumps(dataclasses.asdict(c)))) == c


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"vocabulary": 257}, "vocabulary 257"),
        ({"vocabulary": 1}, "vocabulary 1"),
        ({"shape": ()}, "shape"),
        ({"shape": (3, 0)}, "shape"),
        ({"stack": StackConfig(layers=1, width=8, heads=1, causal=False)}, "causal"),
    ],
)
def test_wrong_configurations(changes, problem):
    with pytest.raises(RequestError, match=problem):
        dataclasses.replace(config(), **changes)
