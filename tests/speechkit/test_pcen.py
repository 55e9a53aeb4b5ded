"""PCEN: the smoother against its loop and librosa, and what normalisation is for."""

import librosa
import numpy as np
import pytest
import torch

from speechkit.frontend import LogMel, Pcen, PcenConfig
from speechkit.pcen import smooth, smooth_reference


def energies(frames, *, bands=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, frames, bands, generator=generator, dtype=dtype).exp()


def bursts(seconds=6.0, seed=0):
    """Noise bursts with pauses, over a steady noise 40 dB below."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * 16_000)) / 16_000
    envelope = 0.1 * (np.sin(2 * np.pi * 1.1 * time) > 0.3) + 1e-3
    return torch.tensor(envelope * rng.standard_normal(len(time)), dtype=torch.float32)[None]


@pytest.mark.parametrize("frames", [1, 2, 63, 64, 65, 1000, 4097])
@pytest.mark.parametrize("per_band", [False, True])
@pytest.mark.parametrize("with_carry", [False, True])
def test_the_smoother_and_its_gradients_equal_the_loop(frames, per_band, with_carry):
    weight = energies(frames, seed=1)
    results = []
    for smoother in (smooth, smooth_reference):
        given = energies(frames).requires_grad_()
        s = torch.tensor([0.025, 0.9, 1e-4], dtype=torch.float64) if per_band else torch.tensor(0.1)
        s = s.double().requires_grad_()
        carry = energies(1, seed=2)[:, 0].requires_grad_() if with_carry else None
        levels = smoother(given, s, carry=carry)
        (levels * weight).sum().backward()
        leaves = [given, s, carry] if with_carry else [given, s]
        results.append([levels, *(leaf.grad for leaf in leaves)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_gradcheck_of_the_smoother():
    given = energies(70, bands=2).requires_grad_()
    s = torch.tensor([0.3, 0.6], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(smooth, (given, s), fast_mode=True)


def test_single_precision_is_enough():
    given = energies(5000, dtype=torch.float32) * 1e6
    exact = smooth_reference(given.double(), 0.025)
    torch.testing.assert_close(smooth(given, 0.025).double(), exact, rtol=1e-5, atol=0)


def test_no_frames_give_no_levels():
    assert smooth(energies(0), 0.025).shape == (2, 0, 3)


def test_pcen_equals_librosa():
    audio = bursts(2.0)
    frontend = Pcen()
    mel = frontend.mel(torch.nn.functional.pad(audio, (200, 200)))[0].double().numpy().T
    s = frontend.config.s
    expected = librosa.pcen(
        mel, gain=0.98, bias=2, power=0.5, b=s, eps=1e-6, zi=(1 - s) * mel[:, :1]
    )
    np.testing.assert_allclose(frontend(audio)[0][0].T, expected, rtol=1e-4, atol=1e-5)


def test_a_change_of_level_moves_pcen_far_less_than_log_mel():
    audio = bursts()
    moved = {}
    for frontend in (Pcen(), LogMel()):
        features, softer = frontend(audio)[0], frontend(audio * 0.1)[0]
        moved[frontend.name] = ((features - softer).abs().mean() / features.std()).item()
    assert moved["pcen"] < moved["logmel"] / 5


def test_the_trainable_form_starts_as_the_fixed_one_and_learns():
    audio = bursts(1.0)
    trainable = Pcen(PcenConfig(trainable=True))
    torch.testing.assert_close(trainable(audio)[0], Pcen()(audio)[0], rtol=1e-4, atol=1e-5)
    before = trainable(audio)[0].square().mean()
    before.backward()
    parameters = dict(trainable.named_parameters())
    assert set(parameters) == {"s_logit", "log_alpha", "log_delta", "log_r"}
    for parameter in parameters.values():
        assert parameter.shape == (40,)
        assert parameter.grad.ne(0).all()
    torch.optim.SGD(parameters.values(), lr=0.1).step()
    assert trainable(audio)[0].square().mean() < before


def test_trained_constants_stay_positive():
    frontend = Pcen(PcenConfig(trainable=True))
    for parameter in frontend.parameters():
        parameter.data.fill_(-5.0)
    constants = frontend.constants()
    assert all((value > 0).all() for value in constants.values())
    assert (constants["s"] < 1).all()


def test_only_trained_constants_are_stored():
    assert not Pcen().state_dict()
    assert len(Pcen(PcenConfig(trainable=True)).state_dict()) == 4
