"""Subsampling: lengths, padding without influence, chunks that change nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr.subsampling import Subsampling, SubsamplingConfig
from speechkit.errors import RequestError

KINDS = ["1d", "2d"]


def make(kind, factor, features=7):
    torch.manual_seed(0)
    return Subsampling(SubsamplingConfig(kind=kind, factor=factor, channels=3), features, 6).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("frames", [1, 2, 3, 7, 8, 9, 41])
def test_it_gives_a_frame_for_each_factor_begun(kind, factor, frames):
    out, lengths = make(kind, factor)(torch.randn(2, frames, 7), torch.tensor([frames, 1]))
    expected = (frames + factor - 1) // factor
    assert out.shape == (2, expected, 6)
    assert lengths.tolist() == [expected, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_a_frame_out_hears_as_much_before_as_behind_its_frame_in(kind, factor):
    """So times need no shift: frame u is in the middle of what it hears at u times the factor."""
    x = torch.randn(1, 160, 7, requires_grad=True)
    out, _ = make(kind, factor)(x, torch.tensor([160]))
    out[0, 80 // factor].sum().backward()
    heard = x.grad[0].abs().sum(dim=1).nonzero()[:, 0]
    assert (int(heard[0]) + int(heard[-1])) / 2 == 80


@given(
    kind=st.sampled_from(KINDS),
    factor=st.sampled_from([1, 2, 4, 8]),
    frames=st.integers(1, 60),
    chunk=st.integers(1, 40),
    short=st.integers(0, 59),
)
@settings(max_examples=60, deadline=None)
def test_chunks_give_what_one_piece_gives(kind, factor, frames, chunk, short):
    module = make(kind, factor)
    x = torch.randn(2, frames, 7)
    lengths = torch.tensor([frames, min(short, frames)])
    with torch.no_grad():
        whole, _ = module(x, lengths)
        chunked = module.in_chunks(x, lengths, frames=chunk)
    torch.testing.assert_close(chunked, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 5, 13, 20])
def test_padding_has_no_influence(kind, length):
    module = make(kind, 4)
    x = torch.randn(1, length, 7)
    alone, lengths = module(x, torch.tensor([length]))
    padded = torch.cat([x, torch.full((1, 9, 7), 1e4)], dim=1)
    beside, _ = module(padded, torch.tensor([length]))
    count = int(lengths[0])
    torch.testing.assert_close(beside[:, :count], alone[:, :count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changes", [{"factor": 3}, {"channels": 0}])
def test_a_wrong_size_is_refused(changes):
    with pytest.raises(RequestError, match=next(iter(changes))):
        SubsamplingConfig(**changes)
