"""Encoders: one protocol, no influence of padding or company, descriptions that rebuild them."""

import dataclasses

import pytest
import torch

from speechkit.asr.encoders import Network, build_network
from speechkit.errors import RequestError
from tests.asr.speech import SMALL, SMALL_RECURRENT

CONFIGS = {
    "local": SMALL,
    "dense": dataclasses.replace(SMALL, patterns=("Dense()",)),
    "mixed": dataclasses.replace(SMALL, patterns=("Fixed(8, 2)", "Strided(5)"), convolution=0),
    "recurrent": SMALL_RECURRENT,
}


@pytest.fixture(params=CONFIGS)
def network(request):
    torch.manual_seed(0)
    return Network(CONFIGS[request.param], 9, 5).eval()


def test_it_returns_logits_lengths_and_what_the_output_layer_read(network):
    encoded = network(torch.randn(2, 31, 9), torch.tensor([31, 18]))
    logits, lengths, hidden = encoded
    assert lengths.tolist() == network.output_lengths(torch.tensor([31, 18])).tolist()
    assert logits.shape == (2, int(lengths.max()), 5)
    torch.testing.assert_close(network.output(hidden), logits)


@pytest.mark.parametrize("shape", [(0, 31, 9), (2, 0, 9)])
def test_of_nothing_there_is_nothing(network, shape):
    logits, lengths, _ = network(torch.randn(shape), torch.zeros(shape[0], dtype=torch.long))
    assert logits.shape == (shape[0], 0, 5)
    assert not lengths.any()


def test_an_utterance_is_encoded_alike_in_any_company(network):
    x = torch.randn(3, 40, 9)
    lengths = torch.tensor([23, 40, 0])
    together = network(x, lengths).logits
    for index, length in enumerate(lengths.tolist()):
        if length:
            alone = network(x[index : index + 1, :length], torch.tensor([length]))
            count = int(alone.lengths[0])
            torch.testing.assert_close(
                together[index, :count], alone.logits[0, :count], atol=1e-4, rtol=1e-4
            )


def test_gradients_reach_every_weight(network):
    network.train()
    network(torch.randn(2, 31, 9), torch.tensor([31, 18])).logits.square().sum().backward()
    # the softmax of attention does not see the keys' bias
    silent = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all("key.bias" in name for name in silent)


def test_a_description_rebuilds_it(network):
    twin = build_network(network.describe(), 9, 5)
    assert twin.config == network.config
    twin.load_state_dict(network.state_dict())
    x, lengths = torch.randn(1, 20, 9), torch.tensor([20])
    torch.testing.assert_close(twin.eval()(x, lengths).logits, network(x, lengths).logits)


def test_only_dense_attention_needs_chunks():
    passes = {name: Network(config, 9, 5).in_one_pass for name, config in CONFIGS.items()}
    assert passes == {"local": True, "dense": False, "mixed": True, "recurrent": True}
    # a layout reaches as far as it has blocks
    blocks = dataclasses.replace(SMALL, patterns=("Blocks([[1, 0], [1, 1]], 64)",))
    assert not Network(blocks, 9, 5).in_one_pass


def test_the_blank_starts_where_it_is_told():
    bias = Network(SMALL, 9, 5, blank_bias=-2.0).output.bias
    assert bias.tolist() == [-2.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "description",
    [
        {"type": "conformer"},
        {"type": "sparse", "depth": 3},
        {"type": "sparse", "patterns": ("Local(0)",)},
        {"type": "recurrent", "layers": 0},
    ],
)
def test_a_wrong_description_is_refused(description):
    with pytest.raises(RequestError):
        build_network(description, 9, 5)
