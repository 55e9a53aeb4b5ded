import dataclasses
import math

import pytest
import torch

from speechkit.density.memory import count_parameters
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.density.presets import PRESETS, preset
from speechkit.errors import RequestError
from speechkit.kernels.patterns import Local, Merged, Strided

PARAMETERS = {
    "cifar10": 59_196_928,
    "enwik8": 94_949_888,
    "imagenet64": 151_645_184,
    "music_65k": 151_840_256,
    "music_262k": 25_666_304,
    "music_1m": 3_815_168,
    "tiny_text": 867_200,
    "tiny_image": 861_184,
    "tiny_audio": 249_280,
}
CONTEXT = {
    "cifar10": 3072,
    "enwik8": 12_288,
    "imagenet64": 12_288,
    "music_65k": 65_536,
    "music_262k": 262_144,
    "music_1m": 1_048_576,
    "tiny_audio": 16_384,
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name):
    assert count_parameters(preset(name).model) == PARAMETERS[name]


@pytest.mark.parametrize("name", CONTEXT)
def test_context(name):
    assert preset(name).model.context == CONTEXT[name]


def test_the_papers_settings():
    cifar, enwik8, imagenet = (preset(name) for name in ("cifar10", "enwik8", "imagenet64"))
    patterns = [cifar.model.stack.pattern(layer) for layer in range(8)]
    assert patterns == [Strided(96), Local(96), Local(96), Local(96)] * 2
    assert cifar.recipe.learning_rate == 0.00035
    assert isinstance(enwik8.model.stack.pattern(0), Merged)
    assert [p.model.stack.dropout for p in (cifar, enwik8, imagenet)] == [0.25, 0.4, 0.01]
    assert [p.recipe.epochs for p in (cifar, enwik8, imagenet)] == [120, 80, 70]
    assert {p.recipe.warmup_steps for p in (cifar, enwik8, imagenet)} == {5000}


@pytest.mark.parametrize("name", ["cifar10", "enwik8", "imagenet64", "tiny_text", "tiny_audio"])
def test_two_blocks_of_each_take_a_training_step(name):
    model = preset(name).model
    small = dataclasses.replace(model.stack, layers=2, width=32, heads=2)
    torch.manual_seed(0)
    tiny = DensityModel(DensityConfig(stack=small, shape=model.shape))
    tokens = torch.randint(256, (1, 301))
    loss = tiny.loss(tokens)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(256), rel=1e-5)
    assert tiny.output.weight.grad.abs().sum() > 0


def test_unknown_presets_are_named():
    with pytest.raises(RequestError, match=r"'cifar': choose one of cifar10"):
        preset("cifar")
