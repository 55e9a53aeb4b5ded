import pytest
import torch

from speechkit.kws.models import Crnn, CrnnConfig
from speechkit.kws.packed_crnn import PackedCrnn
from tests.kws.helpers import ODD_CRNN


@pytest.mark.parametrize("config", [CrnnConfig(), ODD_CRNN], ids=["paper", "odd sizes"])
def test_it_equals_the_network(config):
    torch.manual_seed(0)
    network = Crnn(config, classes=3).eval()
    packed = PackedCrnn(network)
    with torch.inference_mode():
        for scale in (0.1, 5.0):
            window = scale * torch.randn(1, config.frames, config.bands)
            torch.testing.assert_close(packed(window), network(window), rtol=1e-5, atol=2e-6)


def test_it_takes_a_view_along_a_stream():
    network = Crnn(ODD_CRNN, classes=2).eval()
    features = torch.randn(60, ODD_CRNN.bands)
    window = features.unfold(0, ODD_CRNN.frames, 10).transpose(1, 2)[1:2]
    with torch.inference_mode():
        torch.testing.assert_close(
            PackedCrnn(network)(window), network(window), rtol=1e-5, atol=2e-6
        )


def test_it_keeps_its_own_copy_of_the_weights():
    network = Crnn(ODD_CRNN, classes=2).eval()
    packed = PackedCrnn(network)
    window = torch.randn(1, ODD_CRNN.frames, ODD_CRNN.bands)
    before = packed(window)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(packed(window), before)
