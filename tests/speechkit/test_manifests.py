import gzip
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, SupervisionSegment

from speechkit import manifests
from speechkit.audio import load_cut, write_audio
from speechkit.errors import AudioError, RequestError


def write_rows(path: Path, rows) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(name="a.wav", **more):
    return {"audio_filepath": name, "duration": 1.0, "sample_rate": 16000, **more}


def nemo(tmp_path, *rows) -> Path:
    return write_rows(tmp_path / "set" / "manifest.jsonl", rows)


def only(source) -> MonoCut:
    (cut,) = manifests.read(source)
    return cut


def cut_with(id_="a", speaker=None, **custom) -> MonoCut:
    supervision = SupervisionSegment(
        id=id_, recording_id=id_, start=0, duration=1, text="Hi!", speaker=speaker, custom=custom
    )
    return MonoCut(id=id_, start=0, duration=1, channel=0, supervisions=[supervision])


def test_a_row_becomes_a_cut(tmp_path):
    more = {"text": "数字 naïve", "label": "shuzi", "speaker": "s1", "near_silent": True, "fold": 3}
    cut = only(nemo(tmp_path, row("s00/ü.wav", **more)))
    assert cut.id == "set/s00/ü.wav"
    assert (cut.start, cut.duration, cut.num_samples, cut.sampling_rate) == (0, 1.0, 16000, 16000)
    assert cut.recording.sources[0].source == str(tmp_path / "set/s00/ü.wav")
    (supervision,) = cut.supervisions
    assert (supervision.start, supervision.duration) == (0, 1.0)
    assert supervision.text == "数字 naïve"
    assert supervision.custom == {"label": "shuzi", "near_silent": True, "fold": 3}
    assert manifests.label_of(cut) == "shuzi"
    assert manifests.speaker_of(cut) == "s1"
    assert manifests.is_near_silent(cut)


def test_null_text_is_not_empty_text(tmp_path):
    cuts = manifests.read(nemo(tmp_path, row("a.wav", text=None), row("b.wav", text="")))
    manifests.write(cuts, tmp_path / "cuts.jsonl")
    for read_back in (cuts, manifests.read(tmp_path / "cuts.jsonl")):
        assert [manifests.text_of(cut) for cut in read_back] == [None, ""]


def test_absent_fields_are_none(tmp_path):
    cut = only(nemo(tmp_path, row()))
    assert manifests.label_of(cut) is None
    assert manifests.speaker_of(cut) is None
    assert manifests.text_of(cut) is None
    assert not manifests.is_near_silent(cut)
    bare = MonoCut(id="bare", start=0, duration=1, channel=0)
    assert manifests.label_of(bare) is manifests.text_of(bare) is manifests.speaker_of(bare) is None


def test_normalised_text_goes_first():
    assert manifests.text_of(cut_with(text_norm="hi")) == "hi"
    assert manifests.text_of(cut_with(text_norm="")) == ""
    assert manifests.text_of(cut_with(text_norm=None)) == "Hi!"


def test_the_texts_of_several_supervisions_are_one():
    parts = [
        SupervisionSegment(id=str(i), recording_id="r", start=start, duration=1, text=text)
        for i, (start, text) in enumerate([(2.0, "world"), (0.5, "hello")])
    ]
    cut = MonoCut(id="c", start=0, duration=3, channel=0, supervisions=parts)
    assert manifests.text_of(cut) == "hello world"
    parts[0].custom = {"text_norm": "welt"}
    assert manifests.text_of(cut) == "hello welt"
    parts[1].text = None
    assert manifests.text_of(cut) is None


@pytest.mark.parametrize(
    ("name", "id_"),
    [
        ("a/0.opus", "set/a/0.opus"),
        ("./a/../0.opus", "set/0.opus"),
        ("../other/0.opus", "other/0.opus"),
        ("/elsewhere/0.opus", "/elsewhere/0.opus"),
    ],
)
def test_ids_are_paths_from_the_folders_name(tmp_path, name, id_):
    assert only(nemo(tmp_path, row(name))).id == id_


def test_an_absolute_path_inside_the_folder_has_the_same_id(tmp_path):
    assert only(nemo(tmp_path, row(str(tmp_path / "set/a.wav")))).id == "set/a.wav"


def test_ids_do_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    nemo(tmp_path, row("a.wav"))
    monkeypatch.chdir(tmp_path / "set")
    cut = only("manifest.jsonl")
    assert cut.id == "set/a.wav"
    assert Path(cut.recording.sources[0].source).is_absolute()


def test_offsets_make_parts_of_one_recording(tmp_path):
    rows = [row(offset=0), row(offset=12.5, duration=2.25), row(offset=3)]
    cuts = list(manifests.read(nemo(tmp_path, *rows)))
    assert [cut.id for cut in cuts] == ["set/a.wav", "set/a.wav@12.500", "set/a.wav@3.000"]
    assert [cut.start for cut in cuts] == [0, 12.5, 3]
    assert {cut.recording.num_samples for cut in cuts} == {round(14.75 * 16000)}
    assert {cut.recording_id for cut in cuts} == {"set/a.wav"}


def test_offset_is_what_loading_reads(tmp_path):
    ramp = np.arange(16000, dtype=np.float32) / 16000
    write_audio(tmp_path / "set/a.wav", ramp)
    cut = only(nemo(tmp_path, row(offset=0.25, duration=0.5)))
    np.testing.assert_allclose(load_cut(cut), ramp[4000:12000], atol=1e-4)


def test_start_and_end_bound_the_supervision(tmp_path):
    (supervision,) = only(nemo(tmp_path, row(start=0.25, end=0.75))).supervisions
    assert (supervision.start, supervision.duration) == (0.25, 0.5)


@given(
    milliseconds=st.integers(1, 10_000_000),
    rate=st.sampled_from([8000, 11025, 16000, 44100, 48000]),
)
def test_rounded_durations_stay_consistent(tmp_path_factory, milliseconds, rate):
    from lhotse.qa import validate

    path = tmp_path_factory.mktemp("durations") / "manifest.jsonl"
    write_rows(path, [row(duration=milliseconds / 1000, sample_rate=rate)])
    cut = only(path)
    validate(cut)
    assert abs(cut.num_samples - milliseconds / 1000 * rate) <= 0.5
    assert cut.num_samples == cut.recording.num_samples


def test_missing_numbers_come_from_the_header(tmp_path):
    write_audio(tmp_path / "set/a.wav", np.zeros(12345, np.float32), sample_rate=8000)
    cut = only(nemo(tmp_path, {"audio_filepath": "a.wav"}))
    assert (cut.num_samples, cut.sampling_rate) == (12345, 8000)


def test_a_missing_file_whose_row_bounds_the_speech_does_not_break_reading(tmp_path):
    rows = [{"audio_filepath": "gone.wav", "text": "a", "start": 0.5, "end": 1.0}]
    (tmp_path / "m.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (cut,) = manifests.read(tmp_path / "m.jsonl")
    assert (cut.supervisions[0].start, cut.supervisions[0].end) == (0.5, 1.0)


def test_a_damaged_gzip_is_named(tmp_path):
    rng = np.random.default_rng(0)
    text = "".join(
        json.dumps({"audio_filepath": f"{n}.wav"}) + "\n" for n in rng.integers(1e9, size=200)
    )
    whole = gzip.compress(text.encode())
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[int(rng.integers(12, len(whole) - 10))] ^= 0xFF
        (tmp_path / "m.jsonl.gz").write_bytes(bytes(damaged))
        with pytest.raises(RequestError, match=r"m\.jsonl\.gz"):
            list(manifests._rows(tmp_path / "m.jsonl.gz"))


def test_broken_audio_does_not_break_reading(tmp_path):
    path = nemo(tmp_path, {"audio_filepath": "gone.wav"}, {"audio_filepath": "bad.wav"}, row())
    (tmp_path / "set/bad.wav").write_bytes(b"not audio")
    cuts = manifests.read(path)
    assert len(cuts) == 3
    for cut in cuts:
        with pytest.raises(AudioError):
            load_cut(cut)


def recording_row(source):
    return {
        "id": "a",
        "sources": [{"type": "file", "channels": [0], "source": source}],
        "sampling_rate": 16000,
        "num_samples": 16000,
        "duration": 1.0,
    }


def cut_row(id_="a", *, duration=1.0, speaker=None, said=None):
    supervision = {"id": id_, "recording_id": id_, "start": 0, "duration": 1, "speaker": speaker}
    supervision |= said or {}
    return {
        "type": "MonoCut",
        "id": id_,
        "start": 0,
        "duration": duration,
        "channel": 0,
        "supervisions": [supervision],
    }


def test_an_empty_speaker_is_none(tmp_path):
    cuts = manifests.read(nemo(tmp_path, row(speaker=" "), row("b.wav", speaker=" bob ")))
    assert [manifests.speaker_of(cut) for cut in cuts] == [None, "bob"]


def test_names_that_are_no_utf8_are_names(tmp_path):
    """As archives of other systems leave them: a file like any other."""
    name = os.fsdecode(b"caf\xe9.wav")
    write_audio(tmp_path / "set" / name, np.zeros(12345, np.float32), sample_rate=8000)
    (tmp_path / "set" / "manifest.jsonl").write_text(json.dumps({"audio_filepath": name}))
    for source in (tmp_path / "set", tmp_path / "out"):
        (cut,) = manifests.read(source)
        assert len(load_cut(cut, sample_rate=8000)) == 12345
        manifests.write([cut], tmp_path / "out" / "cuts.jsonl.gz")
    odd = {"audio_filepath": "a\ud800b.wav", "duration": 1.0, "sample_rate": 16000}
    (tmp_path / "m.jsonl").write_text(json.dumps(odd))
    (cut,) = manifests.read(tmp_path / "m.jsonl")
    with pytest.raises(AudioError, match="cannot be opened"):
        load_cut(cut)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        (["", "  "], "is empty"),
        ([row(), "{oops"], "line 2: is no JSON"),
        ([row(), "", "[1, 2]"], "line 3: is no JSON object$"),
        ([row(), {"text": "yes", "duration": 1}], "line 2: has no audio_filepath .*'yes'"),
        ([{"utt": "u7", "offset": 0, "frames": 9}], "line 1: .*'u7'.*features come in through"),
        ([{"file": "x.txt"}], "has no audio_filepath .*give lhotse cuts, or NeMo rows"),
        ([row(duration="long")], "duration 'long' must be a number"),
        ([row(duration=-1)], r"duration -1 must be a number of seconds, from 0 to 1e\+09"),
        ([row(duration=float("nan"))], "duration nan"),
        ([row(sample_rate=0)], "sample_rate 0"),
        ([row(text=5)], "text 5 must be a string"),
        ([row(start=0.5, end=0.5)], "start 0.5 s must lie before end 0.5 s"),
        ([row(), row()], "1 ids occur more than once .set/a.wav."),
        ([{"type": "MonoCut", "id": "x"}], "line 1: is no lhotse cut"),
        ([cut_row(), cut_row("b", duration=float("nan"))], r"line 2: .*\(duration nan\)"),
        ([cut_row(duration="1")], "line 1: is no lhotse cut"),
        ([cut_row(speaker=["a"])], r"speaker \['a'\]"),
        ([cut_row() | {"start": float("nan")}], r"\(start nan\)"),
        ([cut_row() | {"start": -1.0}], r"\(start -1.0\)"),
        ([cut_row(5)], r"\(id 5\)"),
        ([cut_row(said={"text": 5})], r"\(text 5\)"),
        ([cut_row(said={"start": None})], "is no lhotse cut"),
        ([cut_row(said={"start": "0"})], "is no lhotse cut"),
        ([cut_row(said={"duration": float("inf")})], "for inf s"),
        ([cut_row() | {"recording": recording_row(None)}], r"\(source None\)"),
        ([{"type": "MixedCut", "id": "x", "tracks": []}], "line 1: is no lhotse cut"),
        ([row(duration=1e306)], "duration 1e[+]306 must be a number"),
        ([row(sample_rate=True)], "sample_rate True"),
        ([row(sample_rate=10**40)], "sample_rate 10000"),
        (['{"duration": 1' + "0" * 5000 + "}"], "line 1: is no JSON"),
        (["[" * 100_000], "line 1: is no JSON"),
    ],
)
def test_bad_manifests_are_refused(tmp_path, rows, message):
    with pytest.raises(RequestError, match=message) as caught:
        manifests.read(nemo(tmp_path, *rows))
    assert "\n" not in str(caught.value)


def test_missing_manifests_are_refused(tmp_path):
    with pytest.raises(RequestError, match="no such manifest"):
        manifests.read(tmp_path / "gone.jsonl")
    with pytest.raises(RequestError, match="holds none of"):
        manifests.read(tmp_path)
    (tmp_path / "cuts.jsonl.gz").write_bytes(b"not gzipped")
    with pytest.raises(RequestError, match="cannot be read"):
        manifests.read(tmp_path)
    (tmp_path / "cuts.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 99)[:-12])
    with pytest.raises(RequestError, match="cannot be read"):
        manifests.read(tmp_path)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "é"}'.encode("latin-1"))
    with pytest.raises(RequestError, match="line 1: is no JSON"):
        manifests.read(tmp_path / "latin.jsonl")


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_written_cuts_read_back_equal(tmp_path, name):
    cuts = manifests.read(nemo(tmp_path, row(label="x", text="数字"), row("b.wav", offset=1.5)))
    manifests.write(cuts, tmp_path / name)
    assert list(manifests.read(tmp_path / name)) == list(cuts)


def test_equal_cuts_give_equal_bytes(tmp_path):
    cuts = manifests.read(nemo(tmp_path, row()))
    manifests.write(cuts, tmp_path / "a.jsonl.gz")
    manifests.write(cuts, tmp_path / "b.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_write_refuses_other_names_and_leaves_nothing_half_written(tmp_path):
    with pytest.raises(RequestError, match="must end in"):
        manifests.write(CutSet([]), tmp_path / "cuts.json")

    def failing():
        yield cut_with()
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        manifests.write(failing(), tmp_path / "cuts.jsonl.gz")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_can_be_moved(tmp_path):
    tone = np.sin(np.arange(16000, dtype=np.float32) / 9)
    write_audio(tmp_path / "set/clips/a.wav", tone)
    outside = tmp_path / "outside.wav"
    manifest = nemo(tmp_path, row("clips/a.wav"), row(str(outside)))
    manifests.import_manifest(manifest, out=tmp_path / "set")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    inside, other = manifests.read(tmp_path / "moved")
    assert inside.id == "set/clips/a.wav"
    assert inside.recording.sources[0].source == str(tmp_path / "moved/clips/a.wav")
    assert other.recording.sources[0].source == str(outside)
    np.testing.assert_allclose(load_cut(inside), tone, atol=1e-4)


def test_import_to_another_folder_keeps_the_audio(tmp_path, caplog):
    caplog.set_level("INFO")
    manifest = nemo(tmp_path, row(label="x", speaker="s"), row("b.wav", label="y"))
    manifests.import_manifest(manifest, out=tmp_path / "out")
    assert list(manifests.read(tmp_path / "out")) == list(manifests.read(manifest))
    assert "2 clips, 0.00 h, 1 speakers, 2 labels" in caplog.text


def test_an_import_replaces_neither_another_one_nor_what_is_none(tmp_path):
    one = write_rows(tmp_path / "one/manifest.jsonl", [row(), row("b.wav")])
    two = write_rows(tmp_path / "two/manifest.jsonl", [row()])
    for _ in range(2):
        manifests.import_manifest(one, out=tmp_path / "out")
    with pytest.raises(RequestError, match="holds a run with other settings or data: manifest"):
        manifests.import_manifest(two, out=tmp_path / "out")
    assert len(manifests.read(tmp_path / "out")) == 2
    manifests.write(manifests.read(one), tmp_path / "labels" / manifests.CUTS_NAME)
    with pytest.raises(RequestError, match="comes from elsewhere; give another folder"):
        manifests.import_manifest(two, out=tmp_path / "labels")


def test_half_a_character_in_a_text_survives(tmp_path):
    source = write_rows(
        tmp_path / "set/manifest.jsonl",
        [
            '{"audio_filepath": "a.wav", "duration": '
            '1.0, "sample_rate": 16000, "text": "a \\ud83d b"}'
        ],
    )
    manifests.import_manifest(source, out=tmp_path / "out")
    assert manifests.text_of(only(tmp_path / "out")) == "a \ud83d b"


def test_what_is_learnt_is_no_dev():
    manifests.require_apart([cut_with("a")], [cut_with("b")])
    with pytest.raises(RequestError, match=r"1 clips of dev are among those to train on \(b\)"):
        manifests.require_apart([cut_with("a"), cut_with("b")], [cut_with("b"), cut_with("c")])


def test_speakers_of_dev_that_training_hears_are_named(caplog):
    one, two = cut_with("a", speaker="x"), cut_with("b", speaker="y")
    manifests.require_apart([one, cut_with("c")], [two, cut_with("d")])
    assert not caplog.text
    manifests.require_apart([one], [two, cut_with("d", speaker="x")])
    assert "1 speakers of dev are among those to train on (x)" in caplog.text


def test_feature_files_are_relative_too(tmp_path):
    from lhotse.features import Features

    features = Features(
        type="fbank",
        num_frames=100,
        num_features=40,
        frame_shift=0.01,
        sampling_rate=16000,
        start=0,
        duration=1,
        storage_type="numpy_files",
        storage_path=str(tmp_path / "out/features"),
        storage_key="a.npy",
    )
    cut = MonoCut(id="a", start=0, duration=1, channel=0, features=features)
    manifests.write([cut], tmp_path / "out/cuts.jsonl.gz")
    shutil.move(tmp_path / "out", tmp_path / "moved")
    assert only(tmp_path / "moved").features.storage_path == str(tmp_path / "moved/features")


def test_padded_and_mixed_cuts_survive(tmp_path):
    cut = only(nemo(tmp_path, row()))
    manifests.write([cut.pad(duration=2.0)], tmp_path / "set/cuts.jsonl")
    padded = only(tmp_path / "set/cuts.jsonl")
    assert padded.duration == 2.0
    assert padded.tracks[0].cut.recording.sources[0].source == str(tmp_path / "set/a.wav")


def test_read_all(tmp_path):
    one = write_rows(tmp_path / "one/manifest.jsonl", [row()])
    two = write_rows(tmp_path / "two/manifest.jsonl", [row()])
    assert [cut.id for cut in manifests.read_all([one, two])] == ["one/a.wav", "two/a.wav"]
    with pytest.raises(RequestError, match=r"1 ids occur more than once \(one/a\.wav\)"):
        manifests.read_all([one, two, one])
    with pytest.raises(RequestError, match="at least one"):
        manifests.read_all([])


def test_fingerprint_sees_content_and_not_order():
    cuts = [cut_with("a", label="x"), cut_with("b", label="y")]
    print_ = manifests.fingerprint(cuts)
    assert len(print_) == 16
    assert manifests.fingerprint(cuts[::-1]) == print_
    assert manifests.fingerprint([cuts[0], cut_with("b", label="x")]) != print_
    assert manifests.fingerprint(cuts[:1]) != print_


speakers = st.lists(st.sampled_from("abcdefgh"), min_size=8, max_size=60)


@given(names=speakers, count=st.integers(2, 5), seed=st.integers(0, 9), data=st.data())
def test_folds(names, count, seed, data):
    cuts = [cut_with(str(i), speaker=name) for i, name in enumerate(names)]
    folds = manifests.folds(cuts, count, seed=seed)
    shuffled = data.draw(st.permutations(cuts))
    assert manifests.folds(shuffled, count, seed=seed) == folds
    assert folds.of.keys() == {cut.id for cut in cuts}
    assert set(folds.of.values()) == set(range(count))
    sizes = np.bincount(list(folds.of.values()), minlength=count)
    if folds.by == "speaker":
        fold_of_speaker = {(cut.supervisions[0].speaker, folds.of[cut.id]) for cut in cuts}
        assert len(fold_of_speaker) == len(set(names))
        assert np.ptp(sizes) <= max(names.count(name) for name in names)
    else:
        assert len(set(names)) < count
        assert np.ptp(sizes) <= 1


def test_folds_depend_on_the_seed():
    cuts = [cut_with(str(i)) for i in range(40)]
    assert manifests.folds(cuts, 4, seed=1).of != manifests.folds(cuts, 4, seed=2).of
    assert manifests.folds(cuts, 4, seed=1).by == "clip"


def test_impossible_folds_are_refused():
    cuts = [cut_with("a", speaker="s"), cut_with("b"), cut_with("c")]
    with pytest.raises(RequestError, match="at least 2"):
        manifests.folds(cuts, 1)
    with pytest.raises(RequestError, match="2 of 3 clips have no speaker"):
        manifests.folds(cuts, 2, by="speaker")
    with pytest.raises(RequestError, match="only 3"):
        manifests.folds(cuts, 4)
    with pytest.raises(RequestError, match="only 1"):
        manifests.folds(cuts[:1] * 2, 2, by="speaker")
