"""The contract of every front-end, and what is particular to log-mel and MFCC."""

import json
from itertools import pairwise

import kaldi_native_fbank as knf
import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio import INT16_SCALE, resample
from speechkit.errors import AudioError, RequestError
from speechkit.frontend import LogMel, LogMelConfig, Mfcc, MfccConfig, build

# every form of every front-end; a new one gets all the tests of the contract by a line here
FORMS = {
    "logmel": {"type": "logmel"},
    "logmel-kaldi": {"type": "logmel", "kaldi": True},
    "logmel-slaney": {"type": "logmel", "mel_scale": "slaney", "mel_norm": "slaney"},
    "logmel-wide-hop": {"type": "logmel", "hop_s": 0.02},
    "logmel-odd-window": {"type": "logmel", "window_s": 401 / 16_000},
    "mfcc": {"type": "mfcc", "use_energy": True},
    "mfcc-kaldi": {"type": "mfcc", "kaldi": True, "mels": 23},
    "pcen": {"type": "pcen"},
    "pcen-kaldi": {"type": "pcen", "kaldi": True},
    "pcen-trainable": {"type": "pcen", "trainable": True},
    "pcen-8k": {"type": "pcen", "sample_rate": 8000, "mels": 24},
    "pcen-48k": {"type": "pcen", "sample_rate": 48_000},
}


@pytest.fixture(params=FORMS, name="frontend")
def _frontend(request):
    return build(FORMS[request.param])


def speech_like(samples, *, seed=0, batch=1):
    """Noise through a slow envelope: bands, levels and near-silence as in speech."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples) / 16_000
    envelope = 0.2 * np.sin(2 * np.pi * 1.3 * time) ** 4 + 1e-4
    noise = rng.standard_normal((batch, samples))
    noise[:, 1:] += 0.9 * noise[:, :-1]
    return torch.tensor((envelope * noise).clip(-1, 1), dtype=torch.float32)


def streamed(stream, audio, cuts):
    """Features of (samples,) audio pushed in the pieces between the cuts."""
    edges = [0, *sorted(cuts), len(audio)]
    pieces = [stream.push(audio[a:b]) for a, b in pairwise(edges)]
    return torch.cat([*pieces, stream.flush()])


def assert_close(actual, expected, tolerance=1e-5):
    """Agreement relative to the scale of the expected features."""
    assert actual.shape == expected.shape
    if expected.numel():
        scale = max(1.0, expected.abs().max().item())
        assert (actual - expected).abs().max().item() <= tolerance * scale


# --- the contract ---------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [0, 1, 159, 160, 161, 399, 400, 401, 12_345])
def test_shape_follows_the_frame_count(frontend, samples):
    features, lengths = frontend(speech_like(samples, batch=2))
    frames = frontend.config.frame_count(samples)
    assert features.shape == (2, frames, frontend.bands)
    assert features.dtype == torch.float32
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [frames, frames]


def test_a_padded_batch_equals_one_by_one(frontend):
    lengths = torch.tensor([9000, 0, 1, 399, 400, 6543])
    audio = speech_like(9000, batch=6)
    # what lies beyond a length must not matter, whatever it is
    beyond = torch.arange(9000) >= lengths[:, None]
    features, frame_lengths = frontend(audio.masked_fill(beyond, float("nan")), lengths)
    for row, (samples, frames) in enumerate(
        zip(lengths.tolist(), frame_lengths.tolist(), strict=True)
    ):
        alone, _ = frontend(audio[row : row + 1, :samples])
        assert_close(features[row, :frames], alone[0], 1e-6)
        assert features[row, frames:].eq(0).all()


@settings(max_examples=10, deadline=None)
@given(samples=st.integers(0, 9000), data=st.data())
@pytest.mark.parametrize("form", FORMS)
def test_streaming_equals_offline_for_any_chunks(form, samples, data):
    frontend = build(FORMS[form])
    cuts = data.draw(st.lists(st.integers(0, samples), max_size=12))
    audio = speech_like(samples, seed=samples)
    with torch.no_grad():
        offline, _ = frontend(audio)
    assert_close(streamed(frontend.stream(), audio[0], cuts), offline[0])


def test_a_stream_sample_by_sample_emits_as_early_as_promised(frontend):
    stream = frontend.stream()
    hop, centre = frontend.hop_samples, frontend.centre_samples
    emitted = 0
    for count, sample in enumerate(speech_like(1300)[0].numpy(), start=1):
        emitted += len(stream.push(sample[None]))
        due = (count - frontend.lookahead_samples - centre) // hop + 1
        assert emitted == max(0, due)


def test_a_stream_starts_afresh_after_reset_and_flush(frontend):
    audio = speech_like(4000)[0]
    stream = frontend.stream()
    first = streamed(stream, audio, [700])
    again = streamed(stream, audio, [1234])
    stream.push(audio[:999] * 0.1)
    stream.reset()
    after_reset = streamed(stream, audio, [])
    assert_close(again, first)
    assert_close(after_reset, first)


def test_the_state_of_a_stream_is_bounded(frontend):
    stream = frontend.stream()
    stream.push(speech_like(50_000)[0])
    config = frontend.config
    assert len(stream._held) < config.window_samples + config.hop_samples
    assert stream._held.untyped_storage().nbytes() == 4 * len(stream._held)
    assert not stream.push(speech_like(4000)[0]).requires_grad


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_a_stream_at_another_rate_equals_resampling_first(frontend, rate):
    audio = speech_like(rate // 2)[0].numpy()
    resampled = resample(audio, rate, frontend.config.sample_rate)
    with torch.no_grad():
        offline, _ = frontend(torch.from_numpy(resampled)[None])
    assert_close(streamed(frontend.stream(sample_rate=rate), audio, [1, 999, 1700]), offline[0])


def test_a_stream_takes_int16_and_refuses_nan(frontend):
    audio = (speech_like(4000)[0].numpy() * 32_767).astype(np.int16)
    floats = audio.astype(np.float32) / np.float32(INT16_SCALE)
    expected = streamed(frontend.stream(), floats, [1000])
    assert_close(streamed(frontend.stream(), audio, [1000]), expected, 0)
    half = torch.from_numpy(floats).bfloat16()
    rounded = streamed(frontend.stream(), half.float().numpy(), [1000])
    assert_close(streamed(frontend.stream(), half, [1000]), rounded, 0)
    with pytest.raises(AudioError, match="NaN"):
        frontend.stream().push(np.full(100, np.nan, dtype=np.float32))


@pytest.mark.parametrize("level", [0.0, 1e-30, 1e-5, 1.0])
def test_features_and_gradients_are_finite_at_any_level(frontend, level):
    audio = (speech_like(5000) * level).requires_grad_()
    features, _ = frontend(audio)
    assert features.isfinite().all()
    features.square().sum().backward()
    assert audio.grad.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in frontend.parameters())


def test_gradients_with_respect_to_audio_match_finite_differences(frontend):
    frontend = frontend.double()
    audio = speech_like(900).double()
    direction = speech_like(900, seed=1).double()
    audio.requires_grad_()
    frontend(audio)[0].sum().backward()
    step = 1e-6
    with torch.no_grad():
        up, down = (frontend(audio + sign * step * direction)[0].sum() for sign in (1, -1))
    along = (audio.grad * direction).sum().item()
    assert along == pytest.approx(((up - down) / (2 * step)).item(), rel=1e-4)


def test_slabs_do_not_show(frontend, monkeypatch):
    audio = speech_like(20_000, batch=3)
    whole, _ = frontend(audio)
    monkeypatch.setattr("speechkit.mel._CPU_SLAB_FRAMES", 7)
    in_slabs, _ = frontend(audio)
    assert_close(in_slabs, whole, 1e-6)


def test_the_spectra_in_memory_are_bounded(frontend, monkeypatch):
    rows = []
    energies = frontend.mel._energies
    monkeypatch.setattr(
        frontend.mel, "_energies", lambda slab: rows.append(slab[..., 0].numel()) or energies(slab)
    )
    features, _ = frontend(torch.zeros(3, 1_000_000))
    assert sum(rows) == 3 * features.shape[1]
    assert max(rows) <= 2048


def test_autocast_does_not_spoil_the_features(frontend):
    audio = speech_like(8000)
    with torch.autocast("cpu", torch.bfloat16):
        features, _ = frontend(audio)
    assert_close(features, frontend(audio)[0], 0)


def test_a_description_is_json_and_builds_the_same_front_end(frontend):
    described = json.loads(json.dumps(frontend.describe()))
    twin = build(described)
    assert twin.describe() == frontend.describe()
    assert None not in described.values()
    audio = speech_like(3000)
    assert_close(twin(audio)[0], frontend(audio)[0], 0)


# --- configuration --------------------------------------------------------------------------


def test_the_default_is_that_of_the_paper():
    frontend = LogMel()
    features, lengths = frontend(torch.zeros(1, 24_000))
    assert features.shape == (1, 151, 40)
    assert lengths.item() == 151
    assert (frontend.hop_samples, frontend.lookahead_samples, frontend.bands) == (160, 200, 40)
    assert (frontend.config.fft_size, frontend.config.low_hz, frontend.config.high_hz) == (
        512,
        60.0,
        7600.0,
    )


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("pcen", "give a dictionary"),
        ({}, "type None: choose from logmel, mfcc, pcen"),
        ({"type": "gammatone"}, "type 'gammatone': choose from logmel, mfcc, pcen"),
        ({"type": ["pcen"]}, "choose from logmel, mfcc, pcen"),
        ({"type": "logmel", "alpha": 1.0}, "unknown alpha; allowed are sample_rate, window_s"),
        ({"type": "logmel", "mels": "forty"}, "mels 'forty': give a value of type int"),
        ({"type": "logmel", "mels": None}, "mels None: give a value of type int"),
        ({"type": "logmel", "kaldi": 1}, "kaldi 1: give a value of type bool"),
        ({"type": "logmel", "mel_scale": "bark"}, "'bark': give one of htk, slaney"),
        ({"type": "logmel", "mels": 0}, "mels 0: give at least 1"),
        ({"type": "logmel", "sample_rate": 0}, "sample_rate 0: must be positive"),
        ({"type": "logmel", "sample_rate": 22_050}, "window_s 0.025 at 22050 Hz is 551.25 samples"),
        ({"type": "logmel", "hop_s": float("nan")}, "hop_s nan"),
        ({"type": "logmel", "hop_s": 0.03}, "no longer than the window"),
        ({"type": "logmel", "hop_s": 0.0}, "the hop must be positive"),
        ({"type": "logmel", "fft_size": 256}, "fft_size 256: must hold the window of 400"),
        ({"type": "logmel", "high_hz": 9000.0}, "must rise within 0 to 8000 Hz"),
        ({"type": "logmel", "low_hz": 7700}, "must rise within 0 to 8000 Hz"),
        ({"type": "logmel", "mels": 200}, r"band \d+ \(\d+ to \d+ Hz\) holds no bin"),
        ({"type": "logmel", "kaldi": True, "mel_norm": "slaney"}, "kaldi goes with htk and none"),
        ({"type": "logmel", "log_floor": 0.0}, "log_floor 0.0: give more than 0"),
        ({"type": "mfcc", "coefficients": 41}, "coefficients 41: give 1 to 40"),
        ({"type": "mfcc", "lifter": -1.0}, "lifter -1.0"),
        ({"type": "pcen", "s": 1.0}, "s 1.0: give more than 0 and less than 1"),
        ({"type": "pcen", "delta": 0.0}, "delta 0.0: give more than 0"),
    ],
)
def test_a_wrong_description_is_refused_with_what_is_allowed(description, message):
    with pytest.raises(RequestError, match=message):
        build(description)


def test_null_stands_for_a_derived_value():
    assert build({"type": "logmel", "low_hz": None}).describe() == LogMel().describe()


@pytest.mark.parametrize(
    ("audio", "lengths", "message"),
    [
        (torch.zeros(100), None, r"shape \(100,\).*give floats in \[-1, 1\]"),
        (torch.zeros(1, 100, dtype=torch.int16), None, "torch.int16: give floats"),
        (torch.zeros(2, 100), torch.tensor([100]), "give 2 whole numbers"),
        (torch.zeros(1, 100), torch.tensor([50.0]), "give 1 whole numbers"),
        (torch.zeros(1, 100), torch.tensor([101]), "must lie within 0 to 100"),
        (torch.zeros(1, 100), torch.tensor([-1]), "must lie within 0 to 100"),
    ],
)
def test_wrong_audio_or_lengths_are_refused(audio, lengths, message):
    with pytest.raises(RequestError, match=message):
        LogMel()(audio, lengths)


# --- the numbers ----------------------------------------------------------------------------


def librosa_mel(audio, config):
    """Mel energies (F, K) by librosa, at the scale of int16 samples."""
    return librosa.feature.melspectrogram(
        y=audio.numpy()[0].astype(np.float64) * INT16_SCALE,
        sr=config.sample_rate,
        n_fft=config.fft_size,
        win_length=config.window_samples,
        hop_length=config.hop_samples,
        center=True,
        pad_mode="constant",
        power=2.0,
        n_mels=config.mels,
        fmin=config.low_hz,
        fmax=config.high_hz,
        htk=config.mel_scale == "htk",
        norm=None if config.mel_norm == "none" else "slaney",
    ).T


@pytest.mark.parametrize("samples", [1, 161, 12_345])
@pytest.mark.parametrize("rate", [8000, 16_000, 48_000])
@pytest.mark.parametrize(
    "scale", [("htk", "none"), ("htk", "slaney"), ("slaney", "none"), ("slaney", "slaney")]
)
@pytest.mark.filterwarnings("ignore:n_fft")
def test_log_mel_equals_librosa(scale, rate, samples):
    config = LogMelConfig(
        sample_rate=rate, mels=24, mel_scale=scale[0], mel_norm=scale[1], log_floor=1e-3
    )
    audio = speech_like(samples)
    expected = np.log(np.maximum(librosa_mel(audio, config), 1e-3))
    np.testing.assert_allclose(LogMel(config)(audio)[0][0], expected, atol=2e-4)


def test_mfcc_equals_librosa():
    config = MfccConfig(lifter=0.0, coefficients=20)
    audio = speech_like(12_345)
    logs = np.log(np.maximum(librosa_mel(audio, config), 1.0))
    expected = librosa.feature.mfcc(S=logs.T, n_mfcc=20).T
    np.testing.assert_allclose(Mfcc(config)(audio)[0][0], expected, atol=1e-3)


def test_frame_energy_takes_the_place_of_c0():
    audio = speech_like(4000)
    with_energy = Mfcc(MfccConfig(use_energy=True))(audio)[0][0]
    padded = np.pad(audio[0].numpy() * INT16_SCALE, 200)
    energy = [np.log(np.sum(padded[t * 160 : t * 160 + 400] ** 2)) for t in range(26)]
    np.testing.assert_allclose(with_energy[:, 0], energy, rtol=1e-5)
    torch.testing.assert_close(with_energy[:, 1:], Mfcc()(audio)[0][0][:, 1:])


def kaldi(online, audio, rate):
    online.accept_waveform(rate, (audio[0].numpy() * INT16_SCALE).tolist())
    online.input_finished()
    frames = [online.get_frame(index) for index in range(online.num_frames_ready)]
    return np.stack(frames) if frames else np.zeros((0, online.dim))


def kaldi_options(options, *, rate, mels, low_hz=20.0, high_hz=0.0):
    options.frame_opts.dither = 0.0
    options.frame_opts.samp_freq = rate
    options.mel_opts.num_bins = mels
    options.mel_opts.low_freq = low_hz
    options.mel_opts.high_freq = high_hz
    return options


@pytest.mark.parametrize("samples", [399, 400, 559, 560, 12_345])
@pytest.mark.parametrize(("rate", "mels"), [(8000, 23), (16_000, 40), (16_000, 80), (48_000, 40)])
def test_log_mel_equals_kaldi(rate, mels, samples):
    audio = speech_like(samples) + 0.01
    options = kaldi_options(knf.FbankOptions(), rate=rate, mels=mels)
    expected = kaldi(knf.OnlineFbank(options), audio, rate)
    config = LogMelConfig(kaldi=True, sample_rate=rate, mels=mels)
    actual = LogMel(config)(audio)[0][0]
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_log_mel_within_a_range_equals_kaldi():
    audio = speech_like(8000)
    options = kaldi_options(knf.FbankOptions(), rate=16_000, mels=40, low_hz=64, high_hz=7600)
    config = LogMelConfig(kaldi=True, low_hz=64.0, high_hz=7600.0)
    expected = kaldi(knf.OnlineFbank(options), audio, 16_000)
    np.testing.assert_allclose(LogMel(config)(audio)[0][0], expected, atol=1e-3)


@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize(("mels", "coefficients"), [(23, 13), (40, 40)])
def test_mfcc_equals_kaldi(mels, coefficients, use_energy):
    audio = speech_like(12_345) + 0.01
    options = kaldi_options(knf.MfccOptions(), rate=16_000, mels=mels)
    options.num_ceps = coefficients
    options.use_energy = use_energy
    expected = kaldi(knf.OnlineMfcc(options), audio, 16_000)
    config = MfccConfig(kaldi=True, mels=mels, coefficients=coefficients, use_energy=use_energy)
    np.testing.assert_allclose(Mfcc(config)(audio)[0][0], expected, atol=1e-3)


def test_silence_is_the_floor():
    assert LogMel()(torch.zeros(1, 1600))[0].eq(0).all()
    silent = LogMel(LogMelConfig(kaldi=True))(torch.zeros(1, 1600))[0]
    np.testing.assert_allclose(silent, np.log(np.finfo(np.float32).eps), rtol=1e-6)
