"""Consistency between views, and other vocal tracts."""

import numpy as np
import pytest
import torch

from speechkit.asr.consistency import divergence
from speechkit.asr.utterances import AugmentConfig
from speechkit.asr.vocal_tract import change_vocal_tract
from speechkit.errors import RequestError

BANDS = 40


def test_the_divergence_is_that_of_the_definition():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 3, requires_grad=True)
    lengths = torch.tensor([5, 3, 5, 3])
    found = divergence(logits, lengths)
    p = logits.softmax(-1)
    kl = (p * (p.log() - p.roll(2, 0).log())).sum(-1)
    expected = [(kl[b, :n] + kl[b + 2, :n]).sum().item() / 2 for b, n in enumerate([5, 3])]
    torch.testing.assert_close(found.detach(), torch.tensor(expected))
    found.sum().backward()
    assert logits.grad[0].any()
    assert not logits.grad[1, 3:].any()


def test_equal_views_cost_nothing():
    logits = torch.randn(2, 5, 3)
    assert divergence(logits.repeat(2, 1, 1), torch.tensor([5, 4, 5, 4])).abs().max() < 1e-5


def cepstra_of(log_mel, coefficients=13):
    from scipy.fft import dct

    return torch.tensor(dct(log_mel, norm="ortho")[..., :coefficients], dtype=torch.float32)


def spectrum_of(cepstra):
    from scipy.fft import idct

    padded = np.pad(cepstra.numpy(), [(0, 0), (0, BANDS - cepstra.shape[1])])
    return idct(padded, norm="ortho")


@pytest.mark.parametrize(("factor", "direction"), [(0.85, -1), (1.15, 1)])
def test_resonances_move(factor, direction):
    band = np.arange(BANDS)
    peak = np.exp(-0.5 * ((band - 18) / 3) ** 2)[None]
    moved = spectrum_of(change_vocal_tract(cepstra_of(peak), factor)).argmax()
    assert np.sign(moved - 18) == direction
    top_mel = np.log1p(8000 / 700)
    hertz = 700 * np.expm1((np.array([18, moved]) + 0.5) / BANDS * top_mel)
    assert hertz[1] / hertz[0] == pytest.approx(factor, rel=0.07)


def test_level_stays_and_no_change_changes_nothing():
    flat = cepstra_of(np.full((3, BANDS), 2.5))
    torch.testing.assert_close(change_vocal_tract(flat, 1.12), flat, atol=1e-4, rtol=1e-4)
    some = torch.randn(4, 13)
    torch.testing.assert_close(change_vocal_tract(some, 1.0), some, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"speeds": ()}, {"noise_probability": 2.0}, {"vocal_tract": 0.7}, {"speeds": (9.0,)}]
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        AugmentConfig(**wrong)
