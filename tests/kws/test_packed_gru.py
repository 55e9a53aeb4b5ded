import pytest
import torch
from torch import nn

from speechkit.kws.packed_gru import PackedGru
from tests.kws.helpers import bursts, tiny_spotter


@pytest.mark.parametrize(
    ("inputs", "units", "layers", "steps"),
    [(640, 32, 2, 19), (5, 3, 1, 1), (7, 8, 3, 2), (1, 1, 2, 13)],
)
def test_it_equals_torch(inputs, units, layers, steps):
    torch.manual_seed(inputs)
    gru = nn.GRU(inputs, units, layers, batch_first=True, bidirectional=True)
    x = 3 * torch.randn(1, steps, inputs)
    with torch.no_grad():
        expected, _ = gru(x)
        found, _ = PackedGru(gru)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_it_keeps_its_own_copy_of_the_weights():
    gru = nn.GRU(4, 2, bidirectional=True, batch_first=True)
    packed = PackedGru(gru)
    x = torch.randn(1, 5, 4)
    before, _ = packed(x)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
    assert torch.equal(packed(x)[0], before)


def test_a_spotter_for_single_windows_gives_the_same_scores():
    spotter = tiny_spotter()
    features, _ = spotter.frontend(torch.from_numpy(bursts(4.0))[None])
    quick = spotter.for_single_windows()
    with torch.inference_mode():
        for start in (0, 37, 200):
            window = features[:, start : start + spotter.window_frames]
            torch.testing.assert_close(
                quick.keyword_scores(window), spotter.keyword_scores(window), rtol=1e-5, atol=1e-7
            )
