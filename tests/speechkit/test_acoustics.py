import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.acoustics import NOISES, babble, noise, room_impulse_response
from speechkit.audio import SAMPLE_RATE
from speechkit.errors import RequestError


@pytest.mark.parametrize("kind", NOISES)
@pytest.mark.parametrize("duration_s", [0.0371, 1.3])
def test_noise_is_finite_and_normalized(kind, duration_s):
    audio = noise(kind, duration_s, np.random.default_rng(3))
    assert audio.shape == (round(duration_s * SAMPLE_RATE),)
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert np.abs(audio).max() == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("kind", NOISES)
def test_noise_follows_its_generator(kind):
    first, same, other = (noise(kind, 0.5, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(("kind", "slope"), [("white", 0), ("pink", 1), ("brown", 2)])
def test_colours_have_their_spectral_slope(kind, slope):
    power = np.abs(np.fft.rfft(noise(kind, 20.0, np.random.default_rng(0)))) ** 2
    octaves = [power[n : 2 * n].mean() for n in 20 * 100 * 2 ** np.arange(6)]
    fitted = -np.polyfit(np.arange(6), np.log2(octaves), 1)[0]
    assert fitted == pytest.approx(slope, abs=0.1)


def test_wrong_noise_names_the_kinds():
    with pytest.raises(RequestError, match="white, pink"):
        noise("green", 1.0, np.random.default_rng(0))
    with pytest.raises(RequestError, match="duration_s"):
        noise("white", 0.0, np.random.default_rng(0))


def test_babble_mixes_all_voices():
    rng = np.random.default_rng(5)
    time_s = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tones_hz = (200, 700, 1900)
    voices = [np.sin(2 * np.pi * hz * time_s).astype(np.float32) for hz in tones_hz]
    audio = babble(voices, 2.0, rng)
    spectrum = np.abs(np.fft.rfft(audio))
    assert np.abs(audio).max() == pytest.approx(0.5, rel=1e-5)
    assert set(np.argsort(spectrum)[-3:]) == {2 * hz for hz in tones_hz}
    with pytest.raises(RequestError, match="no voices"):
        babble([], 1.0, rng)


@settings(max_examples=30, deadline=None)
@given(t60_s=st.floats(0.15, 1.2), seed=st.integers(0, 10_000))
def test_room_begins_with_the_direct_path_and_decays(t60_s, seed):
    response = room_impulse_response(t60_s, np.random.default_rng(seed))
    assert np.isfinite(response).all()
    assert response[0] == 1.0
    assert np.argmax(np.abs(response)) == 0
    halves = np.array_split(response.astype(np.float64) ** 2, 2)
    assert halves[1].sum() < 1e-2 * halves[0].sum()


def test_room_has_its_reverberation_time():
    response = room_impulse_response(0.6, np.random.default_rng(1)).astype(np.float64)
    remaining = np.cumsum(response[::-1] ** 2)[::-1]  # Schroeder's backward integral
    level_db = 10 * np.log10(remaining / remaining[0])
    time_s = np.arange(len(response)) / SAMPLE_RATE
    part = (time_s > 0.1) & (time_s < 0.4)
    slope_db = np.polyfit(time_s[part], level_db[part], 1)[0]
    assert -60 / slope_db == pytest.approx(0.6, rel=0.1)


def test_room_refuses_no_reverberation_time():
    with pytest.raises(RequestError, match="t60_s"):
        room_impulse_response(0.0, np.random.default_rng(0))
