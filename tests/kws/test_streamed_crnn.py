"""Windows along a stream, their shared work done once, against the network on each of them."""

import dataclasses

import pytest
import torch

from speechkit.kws.models import Crnn, CrnnConfig
from speechkit.kws.spotter import windows_along
from speechkit.kws.streamed_crnn import StreamedCrnn
from tests.kws.helpers import ODD_CRNN, bursts, tiny_spotter

# steps that overlap nowhere, and a filter that is nearly all padding at both ends
SPARSE = dataclasses.replace(ODD_CRNN, filter_size=(2, 3), filter_stride=(5, 4), unit="lstm")
WIDE = dataclasses.replace(ODD_CRNN, filter_size=(36, 11), filter_stride=(4, 1), recurrent_layers=3)


@pytest.mark.parametrize("config", [CrnnConfig(), ODD_CRNN, SPARSE, WIDE])
@pytest.mark.parametrize(("shift", "windows"), [(10, 1), (10, 9), (7, 40), (1, 5), (50, 3)])
def test_it_equals_the_network_on_each_window(config, shift, windows):
    torch.manual_seed(shift)
    network = Crnn(config, classes=3).eval()
    # frames behind the last window belong to none
    frames = (windows - 1) * shift + config.frames + shift - 1
    features = 2 * torch.randn(frames, config.bands)
    streamed = StreamedCrnn(network, shift)
    with torch.inference_mode():
        wanted = network(windows_along(features, config.frames, shift))
        torch.testing.assert_close(streamed(features), wanted, rtol=1e-5, atol=2e-6)


def test_most_steps_are_shared():
    streamed = StreamedCrnn(Crnn(CrnnConfig(), classes=2), 10)
    rows, places = streamed._steps(151 + 63 * 10)
    assert places.shape == (64, 19)
    assert len(rows) < 0.45 * places.numel()


def test_it_keeps_its_own_copy_of_the_weights():
    network = Crnn(ODD_CRNN, classes=2).eval()
    streamed = StreamedCrnn(network, 5)
    features = torch.randn(60, ODD_CRNN.bands)
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
