import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.errors import RequestError
from speechkit.specaugment import SpecAugmentConfig, change_speed, spec_augment


def ones(*lengths, bands=12):
    x = torch.zeros(len(lengths), max(lengths), bands)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = 1.0
    return x, torch.tensor(lengths)


def widest_run(zero):
    runs = "".join("x" if z else " " for z in zero.tolist()).split()
    return max(map(len, runs), default=0)


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=4),
    config=st.builds(
        SpecAugmentConfig,
        frequency_masks=st.integers(0, 2),
        frequency_share=st.floats(0, 1),
        time_masks=st.integers(0, 2),
        time_width=st.integers(0, 40),
        time_share=st.floats(0, 1),
        warp=st.integers(0, 10),
    ),
    seed=st.integers(0, 2**63 - 1),
)
def test_masks_lie_within_their_limits(lengths, config, seed):
    x, n = ones(*lengths, 3)
    seeds = [seed + i for i in range(len(n))]
    out = spec_augment(x, n, seeds=seeds, config=config)
    assert out.shape == x.shape
    for row, length in zip(out, n.tolist(), strict=True):
        inside = row[:length]
        # ones stay ones when warped, up to rounding
        kept = inside.round()
        assert torch.allclose(inside, kept, atol=1e-5)
        times = (kept.sum(1) == 0) if kept.sum() else torch.zeros(length, dtype=torch.bool)
        widest = min(config.time_width, int(config.time_share * length))
        assert int(times.sum()) <= config.time_masks * widest
        bands = kept[~times].sum(0) == 0
        if kept.sum():
            assert int(bands.sum()) <= config.frequency_masks * int(config.frequency_share * 12)
        assert (row[length:] == 0).all()


def test_an_utterance_is_masked_alike_in_any_batch():
    x, lengths = ones(80, 31, 55)
    x = x * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    config = SpecAugmentConfig(warp=6)
    out = spec_augment(x, lengths, seeds=[7, 8, 9], config=config)
    for i, length in enumerate(lengths.tolist()):
        alone = spec_augment(
            x[i : i + 1, :length], lengths[i : i + 1], seeds=[7 + i], config=config
        )
        torch.testing.assert_close(out[i, :length], alone[0])
    assert not torch.equal(out, spec_augment(x, lengths, seeds=[1, 2, 3], config=config))


def test_the_input_is_left_alone_and_padding_too():
    x, lengths = ones(60, 40)
    x[1, 40:] = 5.0
    before = x.clone()
    out = spec_augment(x, lengths, seeds=[3, 4], config=SpecAugmentConfig(warp=8))
    assert torch.equal(x, before)
    assert torch.equal(out[1, 40:], x[1, 40:])


def test_stripes_are_as_often_and_as_wide_as_asked():
    x, lengths = ones(*[200] * 400, bands=40)
    config = SpecAugmentConfig(
        frequency_masks=1, frequency_share=0.25, time_masks=1, time_width=99, time_share=0.1
    )
    out = spec_augment(x, lengths, seeds=range(400), config=config)
    in_time = torch.tensor([widest_run(row.sum(1) == 0) for row in out])
    in_band = torch.tensor([widest_run(row.sum(0) == 0) for row in out])
    assert in_time.max() == 20
    assert in_band.max() == 10
    assert abs(float(in_time.float().mean()) - 10) < 1
    assert abs(float(in_band.float().mean()) - 5) < 0.6
    # anywhere, so each frame is masked equally often but for the ends
    share = (out.sum(2) == 0).float().mean(0)
    assert share[30:-30].max() < 2.5 * share[30:-30].mean()


def test_deltas_are_masked_in_the_same_bands():
    x, lengths = ones(50, bands=39)
    config = SpecAugmentConfig(time_masks=0, frequency_share=0.7)
    out = spec_augment(x, lengths, seeds=[5], config=config, repeats=3)
    zero = out[0].sum(0) == 0
    assert zero.any()
    assert torch.equal(zero[:13], zero[13:26])
    assert torch.equal(zero[:13], zero[26:])


def test_a_warp_moves_time_but_not_the_ends():
    ramp = torch.arange(50.0)[None, :, None].expand(1, 50, 2)
    config = SpecAugmentConfig(frequency_masks=0, time_masks=0, warp=10)
    moved = 0.0
    for seed in range(20):
        out = spec_augment(ramp, torch.tensor([50]), seeds=[seed], config=config)[0, :, 0]
        assert (out[0], out[-1]) == (0, 49)
        assert (out.diff() > 0).all()
        shift = float((out - ramp[0, :, 0]).abs().max())
        assert shift <= 10.01
        moved = max(moved, shift)
    assert moved > 5


def test_gradients_pass():
    x, lengths = ones(30, 20)
    x.requires_grad_()
    out = spec_augment(x, lengths, seeds=[1, 2], config=SpecAugmentConfig(warp=4))
    out.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert x.grad[0].sum() > 0
    assert (x.grad == 0).any()


def test_speed():
    x = torch.arange(100.0)[:, None].repeat(1, 3)
    for factor, frames in ((0.9, 111), (1.1, 91), (2.0, 50)):
        out = change_speed(x, factor)
        assert out.shape == (frames, 3)
        inner = out[2:-2, 0].diff()
        torch.testing.assert_close(inner, torch.full_like(inner, 100 / frames), atol=1e-3, rtol=0)
    assert change_speed(x, 1.0) is x
    assert change_speed(x[:0], 1.1).shape == (0, 3)
    assert change_speed(x[:1], 3.0).shape == (1, 3)
    with pytest.raises(RequestError, match="speed 0"):
        change_speed(x, 0)


def test_wrong_settings():
    for setting in ({"time_masks": -1}, {"frequency_share": -2}, {"time_share": 1.5}, {"warp": -1}):
        with pytest.raises(RequestError, match=next(iter(setting))):
            SpecAugmentConfig(**setting)
    x, lengths = ones(9, 9)
    with pytest.raises(RequestError, match="1 seeds"):
        spec_augment(x, lengths, seeds=[1])
    with pytest.raises(RequestError, match="5 repeats"):
        spec_augment(x, lengths, seeds=[1, 2], repeats=5)
    assert np.isfinite(spec_augment(x, lengths, seeds=[1, 2]).numpy()).all()
