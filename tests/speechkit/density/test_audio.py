import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechkit import audio
from speechkit.density.audio import (
    AudioConfig,
    mulaw_decode,
    mulaw_encode,
    read_audio,
    write_wav,
)
from speechkit.errors import RequestError

LEVELS = np.arange(256, dtype=np.uint8)


def test_mulaw_is_torchaudios(rng):
    samples = np.concatenate([rng.uniform(-1, 1, 20_000), rng.normal(0, 0.01, 20_000), [0, 1, -1]])
    theirs = mu_law_encoding(torch.from_numpy(samples), 256).numpy()
    np.testing.assert_array_equal(mulaw_encode(samples), theirs)
    decoded = mu_law_decoding(torch.from_numpy(LEVELS.astype(np.float64)), 256).numpy()
    np.testing.assert_allclose(mulaw_decode(LEVELS), decoded, rtol=1e-6, atol=1e-8)


def test_levels_survive_samples():
    np.testing.assert_array_equal(mulaw_encode(mulaw_decode(LEVELS)), LEVELS)
    assert (mulaw_encode([0.0]), *mulaw_encode([-1.0, 1.0, -3.0, 3.0])) == (128, 0, 255, 0, 255)


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_samples_survive_levels_to_half_a_level(samples):
    # half a level is 1 / 255 of the companded scale, whose slope grows with the sample
    x = np.array(samples)
    bound = np.log(256) / 255**2 * (1 + 255 * np.abs(x)) * 256 ** (1 / 255)
    assert (np.abs(mulaw_decode(mulaw_encode(x)) - x) <= bound + 1e-7).all()


def recordings(folder, rng, *, rate=8000, count=12):
    """Write noises of odd lengths; return each one's bytes by name."""
    made = {}
    for number in range(count):
        name = f"s{number % 3}/{number}.wav"
        samples = rng.uniform(-1, 1, 403 + 37 * number).astype(np.float32)
        audio.write_audio(folder / name, samples, sample_rate=rate)
        made[name] = mulaw_encode(audio.load(folder / name, sample_rate=rate)).tobytes()
    return made


def config(tmp_path, **settings):
    return AudioConfig(cache=tmp_path / "cache", **settings)


def test_splits_are_whole_files(tmp_path, rng):
    made = recordings(tmp_path / "noise", rng)
    given_ = config(tmp_path, sample_rate=8000, valid_fraction=0.2, test_fraction=0.1)
    corpus = read_audio(tmp_path / "noise", given_)
    assert (corpus.kind, corpus.sample_rate, corpus.name) == ("audio", 8000, "noise")
    splits = {name: split.data.tobytes() for name, split in corpus.splits.items()}
    homes = {name: [s for s, data in splits.items() if one in data] for name, one in made.items()}
    assert all(len(found) == 1 for found in homes.values())
    total = sum(map(len, made.values()))
    assert sum(map(len, splits.values())) == total
    assert list(splits) == ["train", "valid", "test"]
    for name, part in (("valid", 0.2), ("test", 0.1)):
        assert abs(len(splits[name]) - part * total) < max(map(len, made.values()))


def test_files_keep_their_order_when_others_come(tmp_path, rng):
    recordings(tmp_path / "noise", rng)
    whole = config(tmp_path, sample_rate=8000, valid_fraction=0, test_fraction=0)
    before = read_audio(tmp_path / "noise", whole).split("train").data.tobytes()
    extra = rng.uniform(-1, 1, 1000)
    audio.write_audio(tmp_path / "noise" / "new.wav", extra, sample_rate=8000)
    after = read_audio(tmp_path / "noise", whole).split("train").data.tobytes()
    assert after.replace(mulaw_encode(np.round(extra * 32768) / 32768).tobytes(), b"") == before


def test_audio_is_brought_to_the_rate_asked(tmp_path, rng):
    recordings(tmp_path / "noise", rng)
    corpus = read_audio(tmp_path / "noise", config(tmp_path))
    samples = sum(403 + 37 * number for number in range(12))
    assert corpus.sample_rate == 12_000
    assert sum(split.size for split in corpus.splits.values()) == pytest.approx(
        samples * 1.5, abs=24
    )


def test_a_long_file_in_pieces_is_what_it_is_at_once(tmp_path, rng):
    tone = np.sin(np.arange(25 * 16_000) * 0.05).astype(np.float32)
    audio.write_audio(tmp_path / "a" / "tone.wav", tone)
    whole = config(tmp_path, valid_fraction=0, test_fraction=0)
    data = read_audio(tmp_path / "a", whole).split("train").data
    at_once = mulaw_encode(audio.load(tmp_path / "a" / "tone.wav", sample_rate=12_000))
    assert len(data) == len(at_once)
    assert np.abs(data.astype(int) - at_once).max() <= 1


def test_a_manifest_is_read_like_its_folder(tmp_path, rng):
    made = recordings(tmp_path / "noise", rng)
    settings = config(tmp_path, sample_rate=8000)
    rows = [f'{{"audio_filepath": "{name}", "sample_rate": 8000}}\n' for name in list(made)[:9]]
    (tmp_path / "noise" / "manifest.jsonl").write_text("".join(rows))
    corpus = read_audio(tmp_path / "noise", settings)
    data = b"".join(split.data.tobytes() for split in corpus.splits.values())
    assert [one in data for one in made.values()] == [True] * 9 + [False] * 3


def test_a_broken_file_is_left_out(tmp_path, rng, caplog):
    made = recordings(tmp_path / "noise", rng)
    (tmp_path / "noise" / "s0" / "0.wav").write_bytes(b"RIFF")
    corpus = read_audio(tmp_path / "noise", config(tmp_path, sample_rate=8000))
    total = sum(map(len, made.values())) - len(made["s0/0.wav"])
    assert sum(split.size for split in corpus.splits.values()) == total
    assert "0.wav: is not readable as audio" in caplog.text


def test_every_split_gets_a_file(tmp_path, rng):
    recordings(tmp_path / "noise", rng, count=3)
    settings = config(tmp_path, sample_rate=8000, valid_fraction=0.9, test_fraction=0.01)
    sizes = [split.size for split in read_audio(tmp_path / "noise", settings).splits.values()]
    assert sorted(sizes) == [403, 440, 477]


def test_requests_without_sense(tmp_path, rng):
    with pytest.raises(RequestError, match="holds no audio"):
        read_audio(tmp_path, config(tmp_path))
    recordings(tmp_path / "noise", rng, count=2)
    with pytest.raises(RequestError, match=r"2 audio files for the splits train, valid, test"):
        read_audio(tmp_path / "noise", config(tmp_path))
    with pytest.raises(RequestError, match="less than 1 together"):
        AudioConfig(valid_fraction=0.6, test_fraction=0.4)
    with pytest.raises(RequestError, match="sample rate 0"):
        AudioConfig(sample_rate=0)
    for name in ("0", "1"):
        (tmp_path / "noise" / f"s{name}" / f"{name}.wav").write_bytes(b"")
    with pytest.raises(RequestError, match="none of 2 sources can be used"):
        read_audio(tmp_path / "noise", config(tmp_path))


def test_levels_as_wav(tmp_path, rng):
    levels = rng.integers(0, 256, 1001, dtype=np.uint8)
    write_wav(tmp_path / "a.wav", levels, sample_rate=8000)
    loaded = audio.load(tmp_path / "a.wav", sample_rate=8000)
    np.testing.assert_allclose(loaded, mulaw_decode(levels), atol=1 / 32768)


def test_real_speech_keeps_its_quality(real_data):
    clip = audio.load(real_data / "fsdd" / "0_george_0.flac", sample_rate=8000)
    noise = mulaw_decode(mulaw_encode(clip)) - clip
    assert 10 * np.log10(np.mean(clip**2) / np.mean(noise**2)) > 30
