"""Windows along a stream, their shared work done once, against the network on each of them."""

import dataclasses

import pytest
import torch

from speechkit.kws.models import Cnn, CnnConfig, Crnn, CrnnConfig
from speechkit.kws.shared_steps import shared_neighbours, shared_steps
from speechkit.kws.spotter import windows_along
from speechkit.kws.streamed_cnn import StreamedCnn
from speechkit.kws.streamed_crnn import StreamedCrnn
from tests.kws.helpers import ODD_CRNN, bursts, tiny_spotter

# steps that overlap nowhere, and a filter that is nearly all padding at both ends
SPARSE = dataclasses.replace(ODD_CRNN, filter_size=(2, 3), filter_stride=(5, 4), unit="lstm")
WIDE = dataclasses.replace(ODD_CRNN, filter_size=(36, 11), filter_stride=(4, 1), recurrent_layers=3)
# sizes that divide nowhere, an even second filter, and one that is longer than the steps
ODD_CNN = CnnConfig(
    frames=37,
    bands=11,
    filters=5,
    first_size=(4, 3),
    first_stride=(3, 2),
    pool_bands=2,
    second_size=(4, 2),
    projection=3,
    hidden=9,
)
LONG_CNN = dataclasses.replace(ODD_CNN, first_stride=(9, 1), second_size=(7, 3), pool_bands=1)
BY_PARTS = {Crnn: StreamedCrnn, Cnn: StreamedCnn}


def networks():
    for config in (CrnnConfig(), ODD_CRNN, SPARSE, WIDE):
        yield Crnn(config, classes=3).eval()
    for config in (CnnConfig(), ODD_CNN, LONG_CNN):
        yield Cnn(config, classes=3).eval()


@pytest.mark.parametrize("network", networks())
@pytest.mark.parametrize(("shift", "windows"), [(10, 1), (10, 9), (7, 40), (1, 5), (50, 3)])
def test_it_equals_the_network_on_each_window(network, shift, windows):
    torch.manual_seed(shift)
    config = network.config
    # frames behind the last window belong to none
    frames = (windows - 1) * shift + config.frames + shift - 1
    features = 2 * torch.randn(frames, config.bands)
    streamed = BY_PARTS[type(network)](network, shift)
    with torch.inference_mode():
        wanted = network(windows_along(features, config.frames, shift))
        torch.testing.assert_close(streamed(features), wanted, rtol=1e-5, atol=2e-6)


def test_most_steps_are_shared():
    steps = shared_steps(151 + 63 * 10, window=151, shift=10, size=20, stride=8)
    assert steps.places.shape == (64, 19)
    assert len(steps.rows) < 0.45 * steps.places.numel()
    around = shared_neighbours(steps, size=5)
    assert around.places.shape == (64, 19)
    assert len(around.rows) < 0.7 * around.places.numel()


def test_windows_that_overlap_nowhere_share_nothing():
    steps = shared_steps(40, window=10, shift=10, size=4, stride=2)
    assert len(steps.rows) == steps.places.numel()
    around = shared_neighbours(steps, size=3)
    assert len(around.rows) == around.places.numel()


@pytest.mark.parametrize("network", [Crnn(ODD_CRNN, classes=2), Cnn(ODD_CNN, classes=2)])
def test_it_keeps_its_own_copy_of_the_weights(network):
    streamed = BY_PARTS[type(network)](network.eval(), 5)
    features = torch.randn(60, network.config.bands)
    before = streamed(features)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(streamed(features), before)


@pytest.mark.parametrize("network", [{}, {"unit": "lstm"}, {"type": "cnn", "filters": 4}])
@pytest.mark.parametrize("windows", [1, 2, 30])
def test_scores_along_a_stream_are_those_of_its_windows(network, windows):
    spotter = tiny_spotter(network=network)
    features, _ = spotter.frontend(torch.from_numpy(bursts(5.0))[None])
    features = features[0, : 151 + 10 * windows - 1]
    with torch.inference_mode():
        wanted = spotter.keyword_scores(windows_along(features, 151, 10))
        found = spotter.along_streams()(features)
    assert found.shape == (windows, 1)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7)
