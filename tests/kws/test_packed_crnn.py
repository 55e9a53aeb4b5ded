import pytest
import torch

from speechkit.kws.models import Crnn, CrnnConfig
from speechkit.kws.packed_crnn import PackedCrnn

ODD = CrnnConfig(
    frames=37,
    bands=11,
    filters=5,
    filter_size=(4, 3),
    filter_stride=(3, 2),
    recurrent_layers=1,
    recurrent_units=7,
    hidden=9,
)


@pytest.mark.parametrize("config", [CrnnConfig(), ODD], ids=["paper", "odd sizes"])
def test_it_equals_the_network(config):
    torch.manual_seed(0)
    network = Crnn(config, classes=3).eval()
    packed = PackedCrnn(network)
    with torch.inference_mode():
        for scale in (0.1, 5.0):
            window = scale * torch.randn(1, config.frames, config.bands)
            torch.testing.assert_close(packed(window), network(window), rtol=1e-5, atol=2e-6)


def test_it_takes_a_view_along_a_stream():
    network = Crnn(ODD, classes=2).eval()
    features = torch.randn(60, ODD.bands)
    window = features.unfold(0, ODD.frames, 10).transpose(1, 2)[1:2]
    with torch.inference_mode():
        torch.testing.assert_close(
            PackedCrnn(network)(window), network(window), rtol=1e-5, atol=2e-6
        )


def test_it_keeps_its_own_copy_of_the_weights():
    network = Crnn(ODD, classes=2).eval()
    packed = PackedCrnn(network)
    window = torch.randn(1, ODD.frames, ODD.bands)
    before = packed(window)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(packed(window), before)
