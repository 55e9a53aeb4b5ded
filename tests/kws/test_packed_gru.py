import numpy as np
import pytest
import torch
from torch import nn

from speechkit.kws.packed_gru import PackedGru


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
        found = torch.from_numpy(PackedGru(gru)(x[0].numpy()))[None]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


def test_it_keeps_its_own_copy_of_the_weights():
    gru = nn.GRU(4, 2, bidirectional=True, batch_first=True)
    packed = PackedGru(gru)
    x = torch.randn(5, 4).numpy()
    before = packed(x)
    with torch.no_grad():
        for parameter in gru.parameters():
            parameter.zero_()
    np.testing.assert_array_equal(packed(x), before)
