import dataclasses
import itertools
import json
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import soundfile

from speechkit import manifests
from speechkit.audio import load, load_cut, write_audio
from speechkit.errors import AudioError, RequestError
from speechkit.joining import JoinConfig, join

DIGITS = ["zero", "one", "two", "three", "four"]


@pytest.fixture
def digits(tmp_path):
    """Return 20 clips at 8 kHz of two speakers, each a tone."""
    rng = np.random.default_rng(8)
    rows = []
    for i in range(20):
        samples = int(rng.integers(800, 3000))
        tone = 0.3 * np.sin(2 * np.pi * (200 + 50 * i) * np.arange(samples) / 8000)
        write_audio(tmp_path / "in" / f"{i}.wav", tone.astype(np.float32), sample_rate=8000)
        text = DIGITS[i % 5]
        rows.append(
            {
                "audio_filepath": f"{i}.wav",
                "text": text.upper(),
                "text_norm": text,
                "speaker": f"s{i % 2}",
            }
        )
    (tmp_path / "in" / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return list(manifests.read(tmp_path / "in"))


def test_every_clip_once_at_its_time(digits, tmp_path):
    config = JoinConfig(clips=(2, 4), gap_s=(0.05, 0.3), sample_rate=8000)
    join(digits, tmp_path / "out", config)
    (tmp_path / "out").rename(tmp_path / "moved")
    whole = manifests.read(tmp_path / "moved")
    clips = list(manifests.read(tmp_path / "moved" / "utterances.jsonl.gz"))
    used = Counter(clip.supervisions[0].custom["source"] for clip in clips)
    assert set(used.values()) == {1}
    assert len(digits) - len(used) < 2  # a rest of one clip makes no recording
    sources = {cut.id: cut for cut in digits}
    for cut in whole:
        own = [clip for clip in clips if clip.recording.id == cut.id]
        (supervision,) = cut.supervisions
        assert 2 <= len(own) <= 4
        assert manifests.text_of(cut) == " ".join(manifests.text_of(clip) for clip in own)
        assert manifests.custom_of(cut)["text_norm"] == manifests.text_of(cut)
        assert len(load_cut(cut, sample_rate=8000)) == cut.num_samples
        times = supervision.alignment["utterances"]
        assert [(t.symbol, t.start, t.duration) for t in times] == [
            (manifests.text_of(clip), clip.start, clip.duration) for clip in own
        ]
        for before, after in itertools.pairwise(own):
            assert 0.0499 <= after.start - before.end <= 0.3001
    for clip in clips:
        source = sources[clip.supervisions[0].custom["source"]]
        assert manifests.speaker_of(clip) == manifests.speaker_of(source)
        got, want = load_cut(clip, sample_rate=8000), load_cut(source, sample_rate=8000)
        assert len(got) == len(want)
        np.testing.assert_allclose(got[40:-40], want[40:-40], atol=1e-4)
        assert abs(got[0]) <= abs(want[0]) + 1e-4


def test_a_clip_of_several_supervisions_keeps_all_texts(digits, tmp_path):
    for cut in digits:
        first = cut.supervisions[0]
        cut.supervisions.append(dataclasses.replace(first, id="x", start=0.01, text="B", custom={}))
    join(digits, tmp_path / "out", JoinConfig(clips=(2, 2), sample_rate=8000))
    sources = {cut.id: cut for cut in digits}
    for clip in manifests.read(tmp_path / "out" / "utterances.jsonl.gz"):
        source = sources[clip.supervisions[0].custom["source"]]
        assert manifests.text_of(clip) == manifests.text_of(source)
        assert manifests.text_of(clip).endswith(" B")
    for cut in manifests.read(tmp_path / "out"):
        assert manifests.text_of(cut).count("B") == 2
        assert "text_norm" not in manifests.custom_of(cut)


def test_the_same_seed_gives_the_same_bytes(digits, tmp_path):
    for name, cuts, seed in (("a", digits, 1), ("b", digits[::-1], 1), ("c", digits, 2)):
        join(cuts, tmp_path / name / "out", JoinConfig(clips=(3, 3), seed=seed))
    a, b, c = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "out/audio").glob("*")}
        for name in "abc"
    )
    assert a == b
    assert a != c


def test_recordings_of_two_folders_have_ids_of_their_own(digits, tmp_path):
    config = JoinConfig(clips=(3, 3))
    train, test = (join(digits, tmp_path / name, config) for name in ("train", "test"))
    assert not {cut.id for cut in train} & {cut.id for cut in test}


def test_one_speaker_in_each(digits, tmp_path):
    whole = join(digits, tmp_path / "out", JoinConfig(clips=(3, 5), same_speaker=True))
    clips = manifests.read(tmp_path / "out" / "utterances.jsonl.gz")
    speakers = {}
    for clip in clips:
        speakers.setdefault(clip.recording.id, set()).add(manifests.speaker_of(clip))
    assert all(len(names) == 1 for names in speakers.values())
    assert {manifests.speaker_of(cut) for cut in whole} == {"s0", "s1"}


def test_target_durations_and_clips_that_come_again(digits, tmp_path):
    config = JoinConfig(clips=None, length_s=(8.0, 8.0), recordings=3, gap_dbfs=None)
    whole = join(digits, tmp_path / "out", config)
    assert len(whole) == 3
    assert all(7.0 < cut.duration <= 8.0 for cut in whole)
    assert all(soundfile.info(cut.recording.sources[0].source).samplerate == 16000 for cut in whole)
    assert manifests.speaker_of(whole[0]) is None
    audio = load(whole[0].recording.sources[0].source)
    first, second = whole[0].supervisions[0].alignment["utterances"][:2]
    gap = audio[round(first.end * 16000) : round(second.start * 16000)]
    assert len(gap) >= 1600
    assert not gap.any()


def test_gaps_hold_noise_of_a_level(digits, tmp_path):
    whole = join(digits, tmp_path / "out", JoinConfig(gap_s=(1.0, 1.0), gap_dbfs=-40.0))
    times = whole[0].supervisions[0].alignment["utterances"]
    audio = load(whole[0].recording.sources[0].source)
    gap = audio[round(times[0].end * 16000) : round(times[1].start * 16000)]
    assert 20 * np.log10(np.sqrt(np.mean(gap**2))) == pytest.approx(-40, abs=0.5)


def test_memory_does_not_grow_with_the_recording(digits, tmp_path):
    join(digits, tmp_path / "warm", JoinConfig(recordings=1))
    peaks = []
    for length_s in (30.0, 240.0):
        tracemalloc.start()
        config = JoinConfig(clips=None, length_s=(length_s, length_s), recordings=1)
        join(digits, tmp_path / f"{length_s}", config)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 210 * 16000 * 2 / 4


def test_what_is_refused(digits, tmp_path):
    with pytest.raises(RequestError, match="too few for a recording"):
        join(digits, tmp_path / "out", JoinConfig(clips=(30, 30)))
    with pytest.raises(RequestError, match=r"recordings 0\.1 s at most; raise length_s"):
        join(digits, tmp_path / "out", JoinConfig(length_s=(0, 0.1)))
    with pytest.raises(RequestError, match="too few"):
        join([], tmp_path / "out", JoinConfig(recordings=2))
    digits[3].supervisions[0].speaker = None
    with pytest.raises(RequestError, match="has no speaker; leave it out, or mix"):
        join(digits, tmp_path / "out", JoinConfig(same_speaker=True))
    digits[3].supervisions[0].text = None
    digits[3].supervisions[0].custom = None
    with pytest.raises(RequestError, match="has no text"):
        join(digits, tmp_path / "out")
    wrong = (
        {"clips": (0, 2)},
        {"length_s": (5, 2)},
        {"gap_s": (-1, 2)},
        {"sample_rate": 0},
        {"recordings": 0},
        {"clips": None},
    )
    for setting in wrong:
        with pytest.raises(RequestError, match=next(iter(setting))):
            JoinConfig(**setting)


def test_an_unreadable_clip_is_named_and_leaves_no_manifest(digits, tmp_path):
    join(digits, tmp_path / "out")
    (tmp_path / "in" / "4.wav").write_bytes(b"no audio")
    with pytest.raises(AudioError, match=r"4\.wav"):
        join(digits, tmp_path / "out")
    assert not (tmp_path / "out" / "cuts.jsonl.gz").exists()
    assert not list((tmp_path / "out" / "audio").glob(".tmp*"))
