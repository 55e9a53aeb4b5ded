"""Clips: spans from the manifest or from energy, and broken files named."""

import logging

import numpy as np
import pytest
from lhotse import MonoCut, Recording, SupervisionSegment

from speechkit.audio import write_audio
from speechkit.augment import Span
from speechkit.errors import AudioError, JobError
from speechkit.kws.clips import load_clip, load_clips
from tests.kws.helpers import samples, tone


@pytest.fixture
def clip_file(tmp_path):
    """Half a second of a tone between 0.75 s of silence."""
    path = tmp_path / "tone.wav"
    write_audio(path, np.pad(tone(0.5), samples(0.75)))
    return path


def cut_of(path, *, id_="a", speech=None, start=0.0, duration=None):
    recording = Recording.from_file(path, recording_id=id_)
    duration = recording.duration - start if duration is None else duration
    supervisions = []
    if speech is not None:
        supervisions = [
            SupervisionSegment(
                id=id_, recording_id=id_, start=speech[0], duration=speech[1] - speech[0]
            )
        ]
    return MonoCut(
        id=id_, start=start, duration=duration, channel=0, recording=recording,
        supervisions=supervisions,
    )  # fmt: skip


def near(span, start_s, end_s):
    return abs(span.start / 16_000 - start_s) < 0.05 and abs(span.end / 16_000 - end_s) < 0.05


def test_a_clip_is_kept_as_16_bit(clip_file):
    clip = load_clip(cut_of(clip_file))
    assert clip.samples.dtype == np.int16
    assert clip.audio.dtype == np.float32
    assert clip.duration_s == 2.0
    np.testing.assert_allclose(clip.audio[12_000:20_000], tone(0.5), atol=1 / 32_768)


def test_too_loud_audio_is_clipped_not_wrapped(tmp_path):
    import soundfile

    soundfile.write(tmp_path / "loud.wav", 3 * tone(0.2), 16_000, subtype="FLOAT")
    clip = load_clip(cut_of(tmp_path / "loud.wav"))
    assert (clip.samples.min(), clip.samples.max()) in {(-29_491, 29_491), (-32_768, 32_767)}
    assert np.sign(clip.samples[5]) == np.sign(tone(0.2)[5])
    soundfile.write(tmp_path / "louder.wav", 30 * tone(0.2), 16_000, subtype="FLOAT")
    clip = load_clip(cut_of(tmp_path / "louder.wav"))
    assert (clip.samples.min(), clip.samples.max()) == (-32_768, 32_767)


def test_times_of_the_supervision_win_over_energy(clip_file):
    assert near(load_clip(cut_of(clip_file)).span, 0.75, 1.25)
    assert load_clip(cut_of(clip_file, speech=(0.2, 0.4))).span == Span(3_200, 6_400)
    # they count from the start of the cut
    later = cut_of(clip_file, speech=(0.2, 0.4), start=0.5)
    assert load_clip(later).span == Span(3_200, 6_400)
    assert near(load_clip(cut_of(clip_file, start=0.5)).span, 0.25, 0.75)


def test_a_supervision_over_all_of_the_clip_says_nothing(clip_file):
    for speech in ((0.0, 2.0), (0.0, 1.985)):
        assert near(load_clip(cut_of(clip_file, speech=speech)).span, 0.75, 1.25)


def test_times_outside_the_clip_are_clamped_or_passed_over(clip_file):
    assert load_clip(cut_of(clip_file, speech=(-0.5, 0.5))).span == Span(0, 8_000)
    assert load_clip(cut_of(clip_file, speech=(1.5, 2.5))).span == Span(24_000, 32_000)
    assert near(load_clip(cut_of(clip_file, speech=(2.5, 3.0))).span, 0.75, 1.25)


def test_a_silent_clip_is_all_span(tmp_path):
    write_audio(tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    assert load_clip(cut_of(tmp_path / "silent.wav")).span == Span(0, 16_000)


def test_broken_clips_are_named_and_left_out(tmp_path, clip_file, caplog):
    good, bad, gone = (cut_of(clip_file, id_=name) for name in ("good", "bad", "gone"))
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    bad.recording.sources[0].source = str(tmp_path / "bad.wav")
    gone.recording.sources[0].source = str(tmp_path / "gone.wav")
    with caplog.at_level(logging.WARNING):
        loaded = load_clips([good, bad, gone], what="positives")
    assert [clip.id for clip in loaded.clips] == ["good"]
    assert loaded.hours == pytest.approx(2 / 3600)
    assert set(loaded.broken) == {"bad", "gone"}
    assert "bad.wav" in loaded.broken["bad"]
    assert "no such file" in loaded.broken["gone"]
    assert caplog.text.count("positives left out") == 2
    with pytest.raises(JobError, match=r"positives: none of 2 clips can be used, as .*\.wav"):
        load_clips([bad, gone], what="positives")
    with pytest.raises(AudioError):
        load_clip(bad)


def test_no_cuts_give_no_clips():
    loaded = load_clips([], what="noises")
    assert (loaded.clips, loaded.broken, loaded.hours) == ([], {}, 0.0)
