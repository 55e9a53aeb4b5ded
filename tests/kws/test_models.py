"""Networks: the paper's parameter counts, shapes, and descriptions."""

import json

import pytest
import torch

from speechkit.errors import RequestError
from speechkit.kws.models import (
    Cnn,
    CnnConfig,
    Crnn,
    CrnnConfig,
    build_network,
    count_parameters,
    describe_network,
)

TINY = {"filters": 3, "recurrent_layers": 1, "recurrent_units": 4, "hidden": 5}


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 229_090),
        ({"recurrent_units": 8, "hidden": 32}, 45_410),
        ({"recurrent_units": 8, "recurrent_layers": 3, "hidden": 32}, 46_610),
        ({"recurrent_units": 8, "hidden": 64}, 55_234),
        ({"recurrent_layers": 1}, 210_466),
        ({"recurrent_layers": 3}, 247_714),
        ({"unit": "lstm"}, 278_370),
        ({"filters": 16}, 166_034),
        ({"filters": 64}, 355_202),
        ({"hidden": 128}, 307_106),
        ({"recurrent_units": 64}, 503_906),
        ({"filter_size": (40, 10)}, 238_690),
        ({"filter_stride": (12, 2)}, 204_514),
        ({"filter_stride": (4, 2)}, 306_914),
        ({"filter_stride": (8, 4)}, 167_650),
    ],
)
def test_parameter_counts_are_those_of_the_paper(changes, parameters):
    config = CrnnConfig(**changes)
    network = Crnn(config, 2)
    assert count_parameters(network, paper=True) == parameters
    gates = {"gru": 3, "lstm": 4}[config.unit]
    second_biases = gates * config.recurrent_units * 2 * config.recurrent_layers
    assert count_parameters(network) == parameters + second_biases


def test_the_chosen_model_in_the_counting_of_torch():
    assert count_parameters(Crnn(CrnnConfig(), 2)) == 229_474


def test_the_baseline_keeps_to_the_cap_of_the_paper():
    assert 200_000 < count_parameters(Cnn(CnnConfig(), 2)) <= 250_000


@pytest.mark.parametrize("kind", ["crnn", "cnn"])
@pytest.mark.parametrize("classes", [2, 12])
def test_windows_become_one_logit_a_class(kind, classes):
    network = build_network({"type": kind}, classes)
    assert network(torch.randn(3, 151, 40)).shape == (3, classes)
    assert network(torch.randn(0, 151, 40)).shape == (0, classes)


@pytest.mark.parametrize("frames", [1, 7, 8, 9, 100, 152])
@pytest.mark.parametrize("stride", [(8, 2), (3, 7), (1, 1)])
def test_padding_gives_a_step_for_every_started_stride(frames, stride):
    config = CrnnConfig(frames=frames, bands=13, filter_stride=stride, **TINY)
    network = Crnn(config, 2)
    maps = []
    network.convolution.register_forward_hook(lambda *parts: maps.append(parts[-1].shape))
    assert network(torch.randn(2, frames, 13)).shape == (2, 2)
    assert maps == [(2, 3, -(-frames // stride[0]), -(-13 // stride[1]))]


def test_the_paper_gets_maps_of_19_steps_by_20_rows():
    network = Crnn(CrnnConfig(), 2)
    maps = []
    network.convolution.register_forward_hook(lambda *parts: maps.append(parts[-1].shape))
    network(torch.randn(1, 151, 40))
    assert maps == [(1, 32, 19, 20)]
    assert network.recurrent.input_size == 640
    assert network.hidden.in_features == 1216


@pytest.mark.parametrize("kind", ["crnn", "cnn"])
def test_every_frame_and_band_counts(kind):
    torch.manual_seed(0)
    network = build_network({"type": kind}, 2)
    x = torch.randn(4, 151, 40, requires_grad=True)
    network(x)[:, 1].sum().backward()
    assert (x.grad.abs().sum(dim=(0, 2)) > 0).all()
    assert (x.grad.abs().sum(dim=(0, 1)) > 0).all()


def test_the_hidden_layer_sees_every_step_directly():
    torch.manual_seed(0)
    network = Crnn(CrnnConfig(), 2)
    steps = []

    def keep(module, inputs, outputs):
        outputs[0].retain_grad()
        steps.append(outputs[0])

    network.recurrent.register_forward_hook(keep)
    network(torch.randn(4, 151, 40))[:, 1].sum().backward()
    assert steps[0].shape == (4, 19, 64)
    assert (steps[0].grad.abs().sum(dim=(0, 2)) > 0).all()


def test_a_window_does_not_depend_on_its_neighbours_in_the_batch():
    network = build_network({"type": "crnn"}, 2).eval()
    x = torch.randn(5, 151, 40)
    torch.testing.assert_close(network(x)[2:3], network(x[2:3]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "description",
    [
        {"type": "crnn", "unit": "lstm", "filter_size": (21, 4), "bands": 23, **TINY},
        {"type": "cnn", "filters": 5, "second_size": (3, 2), "hidden": 7},
    ],
)
def test_a_description_survives_json(description):
    network = build_network(description, 3).eval()
    told = json.loads(json.dumps(describe_network(network)))
    twin = build_network(told, 3).eval()
    assert twin.config == network.config
    assert describe_network(twin) == describe_network(network)
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, network.config.frames, network.config.bands)
    assert torch.equal(twin(x), network(x))


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({}, "None.*crnn, cnn"),
        ({"type": "transformer"}, "'transformer'.*crnn, cnn"),
        ({"type": "crnn", "layers": 3, "depth": 1}, "depth, layers.*recurrent_layers"),
        ({"type": "cnn", "unit": "gru"}, "unit.*pool_bands"),
        ({"type": "crnn", "unit": "rnn"}, "'rnn'.*gru or lstm"),
        ({"type": "crnn", "hidden": 0}, "hidden 0.*from 1"),
        ({"type": "crnn", "filters": 2.5}, r"filters 2\.5.*whole"),
        ({"type": "crnn", "recurrent_layers": -1}, "recurrent_layers -1"),
        ({"type": "crnn", "filter_stride": [0, 2]}, r"filter_stride \(0, 2\).*two"),
        ({"type": "crnn", "filter_size": [20]}, "filter_size.*two"),
        ({"type": "cnn", "pool_bands": True}, "pool_bands True"),
        ({"type": "cnn", "first_size": [20, 50]}, r"leave 0 of 40 bands.*takes 4"),
        ({"type": "cnn", "pool_bands": 40}, r"pool_bands 40: leave 0 of 40 bands"),
        ({"type": "cnn", "second_size": [5, 20]}, r"leave 11 of 40 bands.*takes 20"),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_allowed(description, named):
    with pytest.raises(RequestError, match=named):
        build_network(description, 2)


def test_a_description_is_not_consumed():
    description = {"type": "crnn", **TINY}
    build_network(description, 2)
    assert description == {"type": "crnn", **TINY}


def test_the_network_can_still_be_cast():
    network = build_network({"type": "crnn", **TINY}, 2).type(torch.float64)
    assert network(torch.randn(1, 151, 40, dtype=torch.float64)).dtype == torch.float64
