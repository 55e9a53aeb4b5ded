import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from lhotse import MonoCut, Recording

from speechkit.audio import (
    StreamResampler,
    as_float,
    chunks,
    files_below,
    load,
    load_cut,
    plain_file,
    resample,
    write_audio,
)
from speechkit.errors import AudioError, JobError, RequestError

RATE = 16000


def tone(seconds=1.0, *, rate=RATE, frequency=440.0, amplitude=0.5):
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * frequency * times)).astype(np.float32)


def correlation(a, b):
    return float(np.dot(a, b) / np.sqrt(np.dot(a, a) * np.dot(b, b)))


def save(path, samples, rate=RATE, **settings):
    soundfile.write(path, samples, rate, **settings)
    return path


# reading


@pytest.mark.parametrize(
    ("name", "settings", "error"),
    [
        ("a.wav", {"subtype": "PCM_16"}, 4e-5),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "FLOAT"}, 0.0),
        ("a.wav", {"subtype": "ULAW"}, 0.02),
        ("a.flac", {}, 4e-5),
        ("a.ogg", {"format": "OGG", "subtype": "VORBIS"}, 0.02),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
    ],
)
def test_formats(tmp_path, name, settings, error):
    audio = load(save(tmp_path / name, tone(), **settings))
    assert audio.dtype == np.float32
    assert audio.shape == (RATE,)
    # lossy codecs have trouble at the ends only
    assert np.abs(audio - tone())[800:-800].max() <= error


def test_mp3_has_padding_and_little_else(tmp_path):
    audio = load(save(tmp_path / "a.mp3", tone(), format="MP3"))
    assert RATE <= len(audio) < RATE + 3000
    best = max(
        correlation(audio[lag : lag + RATE - 3000], tone()[: RATE - 3000]) for lag in range(40)
    )
    assert best > 0.99


def test_the_name_does_not_decide_the_format(tmp_path):
    flac = save(tmp_path / "a.flac", tone())
    flac.rename(tmp_path / "a.wav")
    assert len(load(tmp_path / "a.wav")) == RATE


def test_channels_are_averaged(tmp_path):
    stereo = np.stack([tone(), np.zeros(RATE, np.float32), tone(amplitude=0.25)], axis=1)
    audio = load(save(tmp_path / "a.wav", stereo, subtype="FLOAT"))
    np.testing.assert_allclose(audio, tone(amplitude=0.25), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_other_rates_are_resampled(tmp_path, rate):
    audio = load(save(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT"))
    assert abs(len(audio) - RATE) <= 1
    length = min(len(audio), RATE)
    np.testing.assert_allclose(audio[800 : length - 800], tone()[800 : length - 800], atol=2e-3)


def test_the_wanted_rate_can_be_given(tmp_path):
    path = save(tmp_path / "a.wav", tone(0.5))
    assert len(load(path, sample_rate=8000)) == 4000
    assert len(load(str(path), sample_rate=44100)) == 22050


def test_a_part(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, 4000).astype(np.float32)
    path = save(tmp_path / "a.wav", samples, subtype="FLOAT")
    np.testing.assert_array_equal(load(path, offset_s=0.1), samples[1600:])
    np.testing.assert_array_equal(load(path, duration_s=0.05), samples[:800])
    np.testing.assert_array_equal(load(path, offset_s=0.1, duration_s=0.05), samples[1600:2400])
    # a manifest rounds to milliseconds, so that much may be missing
    np.testing.assert_array_equal(load(path, offset_s=0.1, duration_s=0.151), samples[1600:])


def test_samples_that_last_no_time(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(2000), 100_000_000)
    with pytest.raises(AudioError, match="2000 samples last no time"):
        load(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("offset_s", "duration_s", "reason"),
    [
        (1.5, None, "ends at 1.000 s, wanted is a part from 1.500 s on"),
        (1.0, None, "ends at 1.000 s"),
        (0.0, 0.0, "holds no samples"),
        (0.5, -1.0, "holds no samples"),
        (0.5, 1.0, r"truncated: 1.000 s expected from 0.500 s on, 0.500 s there"),
        (2.0, 0.5, "ends at 1.000 s"),
        (-1.0, 0.5, "from -1.000 s on"),
    ],
)
def test_a_part_that_is_not_there(tmp_path, offset_s, duration_s, reason):
    path = save(tmp_path / "a.wav", tone())
    with pytest.raises(AudioError, match=rf"a\.wav: .*{reason}"):
        load(path, offset_s=offset_s, duration_s=duration_s)


# what is wrong with files


@pytest.mark.parametrize("name", ["a" * 300 + ".wav", "a\0b.wav", "a\ud800b.wav"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(AudioError, match="cannot be opened"):
        load(tmp_path / name)


def test_audio_below_a_folder_is_found_by_name(tmp_path):
    for name in ("b.WAV", "deep/a.aiff", "deep/._a.wav", ".hidden/c.wav", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in/x.wav").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/d.flac").touch()
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    found = [path.relative_to(tmp_path / "in").as_posix() for path in files_below(tmp_path / "in")]
    assert found == ["b.WAV", "deep/a.aiff", "link/d.flac"]


def no_file(path):
    pass


def folder(path):
    path.mkdir()


def zero_bytes(path):
    path.touch()


def text(path):
    path.write_text("this is a text, whatever its name says\n" * 50)


def no_samples(path):
    save(path, np.zeros(0, np.float32))


def header_only(path):
    save(path, tone())
    path.write_bytes(path.read_bytes()[:20])


def not_a_number(path):
    samples = tone()
    samples[777] = np.nan
    save(path, samples, subtype="FLOAT")


def infinite(path):
    samples = np.stack([tone(), tone()], axis=1)
    samples[-1, 1] = np.inf
    save(path, samples, subtype="FLOAT")


def truncated_flac(path):
    rng = np.random.default_rng(1)
    save(path, rng.uniform(-0.5, 0.5, 3 * RATE), format="FLAC")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = [
    (no_file, "no such file"),
    (folder, "is a folder, not an audio file"),
    (zero_bytes, r"is empty \(0 bytes\)"),
    (text, "is not readable as audio"),
    (no_samples, "holds no samples"),
    (header_only, "is not readable as audio"),
    (not_a_number, "holds NaN or infinite samples"),
    (infinite, "holds NaN or infinite samples"),
]


@pytest.mark.parametrize(("make", "reason"), FAULTS)
def test_faults_are_one_line_with_name_and_reason(tmp_path, make, reason):
    path = tmp_path / "a.wav"
    make(path)
    for read in (load, lambda path: list(chunks(path))):
        with pytest.raises(AudioError, match=reason) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


def test_a_truncated_flac_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    truncated_flac(path)
    with pytest.raises(AudioError, match=r"a\.flac: (truncated|cannot be decoded)"):
        load(path)
    with pytest.raises(AudioError, match=r"a\.flac: (truncated|cannot be decoded)"):
        list(chunks(path))


@pytest.mark.parametrize("subtype", ["OPUS", "VORBIS"])
@pytest.mark.parametrize("part", [0.4, 0.7, 0.99])
def test_a_truncated_ogg_is_refused(tmp_path, subtype, part):
    rng = np.random.default_rng(1)
    path = save(tmp_path / "a.ogg", rng.uniform(-0.5, 0.5, 9 * RATE), format="OGG", subtype=subtype)
    assert len(load(path)) == 9 * RATE
    path.write_bytes(path.read_bytes() + b"\0" * 70_000)
    assert len(load(path)) == 9 * RATE
    path.write_bytes(path.read_bytes()[: round(part * (path.stat().st_size - 70_000))])
    for read in (load, lambda path: list(chunks(path))):
        with pytest.raises(AudioError, match=r"a\.ogg: truncated: its last page of Ogg lacks"):
            read(path)


def test_half_of_an_mp3_is_refused(tmp_path):
    """libsndfile's blocks would fill what is missing with what came before."""
    rng = np.random.default_rng(2)
    path = save(tmp_path / "a.mp3", rng.uniform(-0.5, 0.5, 9 * RATE), format="MP3")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (load, lambda path: list(chunks(path, chunk_s=3.0))):
        with pytest.raises(AudioError, match=r"a\.mp3: truncated: 9\.\d+ s expected"):
            read(path)


def test_a_wav_that_was_not_closed_is_refused(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    whole = path.read_bytes()
    path.write_bytes(whole[:40] + bytes(4) + whole[44:])
    for read in (load, lambda path: list(chunks(path))):
        with pytest.raises(AudioError, match=r"promises no samples, but \d+ bytes are there"):
            read(path)


def test_a_flac_without_a_length_is_refused(tmp_path):
    """As an encoder leaves it that writes to a pipe; libsndfile makes up 2**63 samples."""
    path = save(tmp_path / "a.flac", tone())
    flac = bytearray(path.read_bytes())
    # the lower 36 of bits 100 to 136 of STREAMINFO, behind two headers of 4 bytes
    flac[21] &= 0xF0
    flac[22:26] = bytes(4)
    path.write_bytes(flac)
    for read in (load, lambda path: list(chunks(path))):
        with pytest.raises(AudioError, match=r"a\.flac: its header states no length"):
            read(path)


def test_a_wav_whose_header_promises_more_is_refused(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    path.write_bytes(path.read_bytes()[: 44 + 2 * 9000])
    for read in (load, lambda path: list(chunks(path))):
        with pytest.raises(AudioError, match="truncated: 32000 bytes of samples expected, 18000"):
            read(path)


def test_a_wav_from_a_pipe_is_no_truncation(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    whole = path.read_bytes()
    assert whole[36:40] == b"data"
    path.write_bytes(whole[:40] + b"\xff\xff\xff\xff" + whole[44:])
    assert len(load(path)) == 16000


# samples


def test_int16_is_scaled_and_floats_are_taken_as_they_are():
    samples = np.array([-32768, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(as_float(samples) * 32768, samples)
    assert as_float(samples).dtype == np.float32
    for kind in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(as_float(np.array([-1.5, 0.25], kind)), [-1.5, 0.25])
    np.testing.assert_array_equal(as_float([0.5, -0.5]), [0.5, -0.5])
    assert as_float(np.zeros(0)).shape == (0,)


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros((2, 3)), r"samples of shape \(2, 3\): give one channel"),
        (np.float32(0.5), r"samples of shape \(\): give one channel"),
        (np.zeros(3, np.int32), "samples of type int32: give int16, or floats"),
        (np.zeros(3, np.uint8), "samples of type uint8: give int16"),
        (np.zeros(3, bool), "samples of type bool"),
        (np.zeros(3, complex), "samples of type complex128"),
        (["a"], "samples of type"),
        ([0.0, np.nan], "holds NaN or infinite samples"),
        ([np.inf], "holds NaN or infinite samples"),
        # finite, but not in single precision
        (np.array([1e300]), "holds NaN or infinite samples"),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_samples_of_no_use(samples, reason):
    with pytest.raises(AudioError, match=reason):
        as_float(samples)


# resampling


@pytest.mark.parametrize("rates", [(8000, RATE), (48000, RATE), (44100, RATE), (RATE, 11025)])
@given(sizes=st.lists(st.integers(0, 5000), min_size=1, max_size=8), seed=st.integers(0, 9))
def test_a_stream_equals_the_whole(rates, sizes, seed):
    samples = np.random.default_rng(seed).uniform(-1, 1, sum(sizes)).astype(np.float32)
    stream = StreamResampler(*rates)
    pieces = [stream.push(part) for part in np.split(samples, np.cumsum(sizes)[:-1])]
    streamed = np.concatenate([*pieces, stream.flush()])
    whole = resample(samples, *rates)
    assert streamed.dtype == np.float32
    assert streamed.shape == whole.shape
    np.testing.assert_allclose(streamed, whole, atol=1e-5)


def test_equal_rates_change_nothing():
    samples = tone()
    stream = StreamResampler(RATE, RATE)
    assert resample(samples, RATE, RATE) is samples
    np.testing.assert_array_equal(stream.push(samples), samples)
    assert stream.flush().shape == (0,)


@pytest.mark.parametrize("rates", [(0, RATE), (RATE, -1)])
def test_rates_must_be_positive(rates):
    with pytest.raises(RequestError, match=f"sample rates {rates[0]} and {rates[1]}: must be"):
        StreamResampler(*rates)


# chunks


@pytest.mark.parametrize("chunk_s", [0.01, 0.3, 1.0, 100.0])
def test_chunks_are_the_file_in_pieces(tmp_path, rng, chunk_s):
    samples = rng.uniform(-0.5, 0.5, (20011, 2)).astype(np.float32)
    path = save(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    pieces = list(chunks(path, chunk_s=chunk_s))
    assert {rate for _, rate in pieces} == {8000}
    assert max(len(piece) for piece, _ in pieces) <= 8000 * chunk_s
    assert all(len(piece) for piece, _ in pieces)
    whole = np.concatenate([piece for piece, _ in pieces])
    np.testing.assert_allclose(whole, samples.mean(axis=1), atol=1e-7)


def test_the_shortest_chunk_is_a_sample(tmp_path):
    path = save(tmp_path / "a.wav", tone(0.001))
    assert [len(piece) for piece, _ in chunks(path, chunk_s=0.0)] == [1] * 16


# writing


def test_written_audio_is_read_back(tmp_path):
    samples = np.array([0.0, 0.5, -1.0, 1.0, 1.7, -3.0, 1e-9], np.float32)
    write_audio(tmp_path / "new" / "a.wav", samples, sample_rate=8000)
    info = soundfile.info(tmp_path / "new" / "a.wav")
    assert (info.samplerate, info.channels, info.subtype) == (8000, 1, "PCM_16")
    audio = load(tmp_path / "new" / "a.wav", sample_rate=8000)
    np.testing.assert_allclose(audio, np.clip(samples, -1, 1), atol=4e-5)
    assert os.listdir(tmp_path / "new") == ["a.wav"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    write_audio(path, tone())
    before = path.read_bytes()

    def half(file, _):
        raise soundfile.LibsndfileError(2, "disk full? ")

    monkeypatch.setattr(soundfile.SoundFile, "write", half)
    with pytest.raises(JobError, match=r"a\.wav: cannot be written \(disk full"):
        write_audio(path, tone(2.0))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.wav"]


@pytest.mark.parametrize("name", ["a.wav", "a.flac"])
def test_what_does_not_fit_on_the_disk_gets_no_name(tmp_path, name):
    """A limit on the size of files stands for the disk's: writing, or closing, fails beyond it."""
    script = f"""
import resource, signal, sys
import numpy as np
from speechkit.audio import write_audio
from speechkit.errors import JobError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
noise = np.random.default_rng(0).uniform(-0.5, 0.5, 20_000).astype(np.float32)
for samples in range(9_000, 12_000, 25):
    try:
        write_audio({str(tmp_path)!r} + f"/{{samples}}-{name}", noise[:samples])
    except (JobError, OSError):
        pass
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    there = sorted(tmp_path.iterdir())
    assert 0 < len(there) < 120
    for path in there:
        assert len(load(path)) == int(path.name.partition("-")[0])


# cuts


def cut_of(path):
    return Recording.from_file(path).to_cut()


def test_a_cut_is_the_part_that_it_says(tmp_path, rng):
    samples = rng.uniform(-0.5, 0.5, RATE).astype(np.float32)
    cut = cut_of(save(tmp_path / "a.wav", samples, subtype="FLOAT"))
    np.testing.assert_array_equal(load_cut(cut), samples)
    part = cut.truncate(offset=0.25, duration=0.5)
    np.testing.assert_array_equal(load_cut(part), samples[4000:12000])
    assert len(load_cut(part, sample_rate=8000)) == 4000


def test_a_cut_takes_its_channel(tmp_path, rng):
    left, right = 0.1 * rng.standard_normal((2, 8000)).astype(np.float32)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 16000, subtype="FLOAT")
    recording = Recording.from_file(tmp_path / "two.wav")
    both = recording.to_cut()
    np.testing.assert_allclose(load_cut(both), (left + right) / 2, atol=1e-7)
    for channel, audio in enumerate([left, right]):
        cut = MonoCut("c", 0.0, 0.5, channel=channel, recording=recording)
        np.testing.assert_allclose(load_cut(cut), audio, atol=1e-7)
        assert plain_file(cut) is None


def test_cuts_that_lhotse_makes(tmp_path):
    cut = cut_of(save(tmp_path / "a.wav", tone(), subtype="FLOAT"))
    padded = load_cut(cut.pad(duration=1.5))
    assert len(padded) == 24000
    np.testing.assert_allclose(padded[:RATE], tone(), atol=1e-4)
    assert np.abs(padded[RATE:]).max() < 1e-3
    faster = load_cut(cut.perturb_speed(2.0))
    assert len(faster) == 8000
    assert len(load_cut(cut.resample(8000))) == RATE


def test_a_cut_without_its_file(tmp_path):
    path = save(tmp_path / "a.wav", tone())
    cut = cut_of(path)
    path.unlink()
    with pytest.raises(AudioError, match=r"a\.wav: no such file"):
        load_cut(cut)
    with pytest.raises(AudioError, match="cannot be loaded") as caught:
        load_cut(cut.pad(duration=2.0))
    assert "\n" not in str(caught.value)


def test_real_recordings_are_readable(real_data):
    files = sorted(
        path
        for ending in ("wav", "flac", "opus", "ogg", "mp3")
        for path in list(real_data.rglob(f"*.{ending}"))[:5]
    )
    assert files
    for path in files:
        audio = load(path, duration_s=None)
        assert audio.ndim == 1
        assert len(audio) > 0
        assert np.abs(audio).max() <= 1.5
