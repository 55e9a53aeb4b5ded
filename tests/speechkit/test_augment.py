"""Augmentation: levels, places and lengths that the functions promise."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.augment import (
    Span,
    active_power,
    add_noise,
    change_gain,
    change_speed,
    energy_span,
    loop_to,
    noise_gain,
    power,
    reverberate,
)
from speechkit.errors import RequestError

RATE = 16_000


def rng(seed=0):
    return np.random.default_rng(seed)


def white(samples, *, level=0.1, seed=0):
    return (level * rng(seed).standard_normal(samples)).astype(np.float32)


def tone(samples, *, hz=440.0, level=0.3):
    return (level * np.sin(2 * np.pi * hz / RATE * np.arange(samples))).astype(np.float32)


def utterance(*, level=0.3, seed=0):
    """Three syllables of modulated noise with 100 ms pauses: 0.8 s."""
    hump = np.sin(np.linspace(0, np.pi, 3_200)) ** 2
    pause = np.zeros(1_600)
    envelope = np.concatenate([hump, pause, hump, pause, hump])
    return (level * envelope * rng(seed).standard_normal(len(envelope))).astype(np.float32)


def db(ratio):
    return 10 * np.log10(ratio)


@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 5.0, 20.0])
@pytest.mark.parametrize("padding", [0, 1, 50_001])
def test_snr_over_the_span_is_exact_whatever_the_silence_around(snr_db, padding):
    spoken = utterance()
    speech = np.pad(spoken, padding)
    noise = white(len(speech), seed=1)
    span = Span(padding, padding + len(spoken))
    mixed = add_noise(speech, noise, snr_db=snr_db, span=span)
    added = mixed - speech
    assert mixed.dtype == np.float32
    assert db(power(spoken) / power(added)) == pytest.approx(snr_db, abs=1e-3)
    # nothing but a multiple of the noise was added
    assert np.corrcoef(added, noise)[0, 1] == pytest.approx(1, abs=1e-6)


@given(st.integers(0, 40_000), st.integers(0, 40_000))
def test_snr_over_active_steps_does_not_depend_on_silence(before, after):
    spoken = utterance()
    speech = np.pad(spoken, (before // 160 * 160, after))
    added = add_noise(speech, np.ones_like(speech), snr_db=10.0) - speech
    assert db(active_power(spoken) / power(added)) == pytest.approx(10.0, abs=1e-3)


def test_silence_gets_no_noise_and_noise_of_nothing_is_no_error():
    silent = np.zeros(1_000, np.float32)
    assert not add_noise(silent, white(1_000), snr_db=0.0).any()
    assert not add_noise(silent, white(1_000), snr_db=0.0, span=Span(10, 10)).any()
    np.testing.assert_array_equal(add_noise(white(1_000), silent, snr_db=0.0), white(1_000))
    assert noise_gain(0.0, 1.0, 5.0) == noise_gain(1.0, 0.0, 5.0) == 0.0
    empty = np.zeros(0, np.float32)
    assert len(add_noise(empty, empty, snr_db=0.0)) == 0


def test_noise_of_another_length_is_refused():
    with pytest.raises(RequestError, match="999 samples of noise for 1000"):
        add_noise(white(1_000), white(999), snr_db=0.0)


def test_power_is_exact_in_long_and_loud_signals():
    assert power(np.full(5_000_000, 100.1, np.float32)) == pytest.approx(
        float(np.float32(100.1)) ** 2, rel=1e-9
    )
    assert power(np.zeros(0, np.float32)) == 0.0


def test_active_power_leaves_pauses_out():
    loud = tone(1_600)
    assert active_power(np.concatenate([np.zeros(16_000, np.float32), loud])) == pytest.approx(
        power(loud)
    )
    assert active_power(tone(100)) == power(tone(100))


def contains(span, start, end, *, slack=800):
    """Whether the span is [start, end) but for 50 ms."""
    return abs(span.start - start) <= slack and abs(span.end - end) <= slack


@pytest.mark.parametrize("background", [0.0, 1e-4, 1e-3, 0.01])
@pytest.mark.parametrize("at", [0, 8_000, 31_337])
def test_an_utterance_is_found_amid_background(background, at):
    audio = white(48_000 + at, level=background, seed=2)
    spoken = utterance()
    audio[at : at + len(spoken)] += spoken
    span = energy_span(audio)
    # the humps begin and end softly
    assert contains(span, at, at + len(spoken), slack=1_300)


def test_a_pause_inside_is_kept_and_a_distant_click_is_not():
    spoken = utterance()
    audio = white(64_000, level=1e-4, seed=3)
    audio[20_000 : 20_000 + len(spoken)] += spoken
    clicked = audio.copy()
    clicked[2_000:2_040] += 0.9
    clicked[60_000:60_040] -= 0.9
    assert contains(energy_span(clicked), 20_000, 20_000 + len(spoken), slack=1_300)
    plain = energy_span(audio)
    assert contains(energy_span(clicked), plain.start, plain.end, slack=320)


def test_a_click_louder_than_the_word_is_not_the_word():
    audio = white(64_000, level=3e-3, seed=3)
    audio[30_000:38_000] += tone(8_000)
    plain = energy_span(audio)
    audio[2_000:3_000] += 4 * tone(1_000)
    assert contains(energy_span(audio), plain.start, plain.end, slack=320)
    # of clicks alone, the loudest
    assert contains(energy_span(np.pad(tone(1_000), 8_000)), 8_000, 9_000, slack=800)


def test_the_stretch_with_more_energy_is_taken():
    audio = np.zeros(64_000, np.float32)
    audio[5_000:8_000] = tone(3_000)
    audio[40_000:50_000] = tone(10_000)
    assert contains(energy_span(audio), 40_000, 50_000)


@pytest.mark.parametrize("length", [0, 1, 159, 799, 800, 960])
def test_a_very_short_clip_is_all_speech(length):
    assert energy_span(tone(length)) == Span(0, length)


def test_silence_and_steady_sound_are_taken_whole():
    for audio in (np.zeros(16_000, np.float32), tone(16_000)):
        span = energy_span(audio)
        assert contains(span, 0, 16_000)
    faded = np.pad(tone(16_000), 8_000)
    assert contains(energy_span(faded), 8_000, 24_000)


@given(st.integers(0, 2**31), st.integers(8_000, 20_000), st.floats(-20, 0))
def test_a_span_lies_in_the_clip_and_does_not_depend_on_the_level(seed, length, gain_db):
    audio = white(length, seed=seed) * np.sin(np.arange(length) / 3_000).astype(np.float32) ** 8
    span = energy_span(audio)
    assert 0 <= span.start < span.end <= length
    quieter = energy_span(change_gain(audio, gain_db))
    assert abs(quieter.start - span.start) <= 160
    assert abs(quieter.end - span.end) <= 160


def response(direct=0, *, length=4_000, seed=4):
    room = 0.2 * rng(seed).standard_normal(length) * np.exp(-np.arange(length) / 800)
    room[: direct + 1] = 0
    room[direct] = 1.0
    return room.astype(np.float32)


@pytest.mark.parametrize("direct", [0, 37, 2_000])
def test_a_room_leaves_the_direct_sound_in_its_place(direct):
    click = np.zeros(10_000, np.float32)
    click[3_000] = 1.0
    wet = reverberate(click, response(direct))
    assert wet.shape == click.shape
    assert wet.dtype == np.float32
    assert np.argmax(np.abs(wet)) == 3_000
    assert np.abs(wet[:3_000]).max() < 1e-6


def test_a_room_keeps_the_level_of_noise():
    dry = white(200_000)
    for scale in (1e-3, 1.0, 50.0):
        wet = reverberate(dry, response(5) * np.float32(scale))
        assert db(power(wet) / power(dry)) == pytest.approx(0, abs=0.1)


def test_a_room_without_a_tap_is_no_room():
    np.testing.assert_array_equal(reverberate(tone(100), np.zeros(10, np.float32)), tone(100))


def test_a_single_tap_changes_nothing():
    click = np.array([0, 0, -0.5, 0], np.float32)
    np.testing.assert_allclose(reverberate(tone(999), click), -tone(999), atol=1e-6)


@pytest.mark.parametrize("factor", [0.88, 0.95, 1.0, 1.12])
def test_speed_scales_duration_pitch_and_span(factor):
    spoken = np.pad(tone(16_000, hz=1_000), 8_000)
    faster = change_speed(spoken, factor)
    assert faster.dtype == np.float32
    assert len(faster) == pytest.approx(len(spoken) / factor, abs=2)
    span = Span(8_000, 24_000).scaled(1 / factor)
    assert contains(energy_span(faster), span.start, span.end)
    spectrum = np.abs(np.fft.rfft(faster))
    assert np.argmax(spectrum) * RATE / len(faster) == pytest.approx(1_000 * factor, rel=0.003)
    assert power(faster[span.start : span.end]) == pytest.approx(power(tone(16_000)), rel=0.02)


def test_speed_one_is_the_very_same_audio():
    audio = white(100)
    assert change_speed(audio, 1.0) is audio


def test_gain_is_in_decibels():
    assert db(power(change_gain(tone(1_000), -6.0)) / power(tone(1_000))) == pytest.approx(-6.0)
    assert change_gain(tone(10), 3.0).dtype == np.float32


@pytest.mark.parametrize("length", [1, 7, 100])
@pytest.mark.parametrize("samples", [0, 1, 7, 99, 100, 250])
def test_looping_cuts_or_repeats(length, samples):
    audio = np.arange(length, dtype=np.float32)
    starts = set()
    for seed in range(30):
        looped = loop_to(audio, samples, rng(seed))
        assert len(looped) == samples
        if samples:
            starts.add(looped[0])
            np.testing.assert_array_equal(looped, (looped[0] + np.arange(samples)) % length)
            # what is long enough is cut, not wrapped
            assert samples > length or looped[0] + samples <= length
    if samples and (samples > length or samples < length - 5):
        assert len(starts) >= min(4, length)


def test_looping_nothing_gives_silence():
    assert loop_to(np.zeros(0, np.float32), 5, rng()).tolist() == [0.0] * 5


def test_spans():
    span = Span(100, 350)
    assert span.samples == 250
    assert span.shifted(-50) == Span(50, 300)
    assert span.scaled(2) == Span(200, 700)
