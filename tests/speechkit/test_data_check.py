import json
import tracemalloc

import numpy as np
import pytest
import soundfile
from lhotse import MonoCut, Recording

from speechkit import corpora, data_check, manifests
from speechkit.audio import write_audio
from speechkit.errors import RequestError

RNG_SEED = 7


def noise(seconds=1.0, seed=0, peak=0.4, rate=16000):
    rng = np.random.default_rng((RNG_SEED, seed))
    return rng.uniform(-peak, peak, round(seconds * rate)).astype(np.float32)


def manifest(folder, names, **more):
    """Write a manifest whose rows say 1 s at 16 kHz."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.jsonl"
    row = {"duration": 1.0, "sample_rate": 16000, **more}
    path.write_text("".join(json.dumps({"audio_filepath": n, **row}) + "\n" for n in names))
    return path


def clean_set(folder, count=12, seed=0, **more):
    names = [f"{number}.wav" for number in range(count)]
    for number, name in enumerate(names):
        write_audio(folder / name, noise(seed=seed + number))
    return manifest(folder, names, **more)


def findings_of(tmp_path, *sources, **options):
    """Check, and return {(kind, id)} with the status confirmed."""
    status = data_check.check(list(sources), out=tmp_path / "report", **options)
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert status == (1 if report["findings"] else 0)
    assert sum(report["counts"].values()) == len(report["findings"])
    return {(finding["kind"], finding["id"]) for finding in report["findings"]}


def test_a_clean_set_exits_0(tmp_path, capsys):
    assert findings_of(tmp_path, clean_set(tmp_path / "set")) == set()
    assert "12 clips checked; nothing found." in capsys.readouterr().out
    assert "Nothing found." in (tmp_path / "report/report.md").read_text()


def float_wav(path, samples, rate=16000):
    soundfile.write(path, samples, rate, subtype="FLOAT")


def plant_missing(path):
    path.unlink()


def plant_broken(path):
    path.write_bytes(b"this is no audio at all")


def plant_zero_bytes(path):
    path.write_bytes(b"")


def plant_no_samples(path):
    write_audio(path, np.zeros(0, np.float32))


def plant_nan(path):
    samples = noise()
    samples[12345] = np.nan
    float_wav(path, samples)


def plant_rate(path):
    write_audio(path, noise(rate=8000), sample_rate=8000)


def plant_short(path):
    write_audio(path, noise(0.9, seed=99))


def plant_long(path):
    write_audio(path, noise(1.1, seed=99))


def plant_truncation(path):
    path.write_bytes(path.read_bytes()[:9001])


def plant_duplicate(path):
    path.write_bytes((path.parent / "0.wav").read_bytes())


def plant_clipping(path):
    write_audio(path, noise(peak=1.2, seed=99))


def plant_digital_silence(path):
    write_audio(path, np.zeros(16000, np.float32))


def plant_near_silence(path):
    write_audio(path, noise(peak=0.001, seed=99))


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (plant_missing, "missing"),
        (plant_broken, "broken"),
        (plant_zero_bytes, "empty"),
        (plant_no_samples, "empty"),
        (plant_nan, "nan"),
        (plant_rate, "rate"),
        (plant_short, "duration"),
        (plant_long, "duration"),
        (plant_truncation, "broken"),
        (plant_duplicate, "duplicate"),
        (plant_clipping, "clipped"),
        (plant_digital_silence, "silent"),
        (plant_near_silence, "silent"),
    ],
)
def test_each_planted_fault_is_found_alone(tmp_path, capsys, plant, kind):
    path = clean_set(tmp_path / "set")
    plant(tmp_path / "set/5.wav")
    assert findings_of(tmp_path, path) == {(kind, "set/5.wav")}
    table = capsys.readouterr().out
    assert kind in table
    assert "set/5.wav" in table
    assert f"12 clips checked; 1 {kind}." in table
    assert "set/5.wav" in (tmp_path / "report/report.md").read_text()


def test_a_clip_far_from_all_other_durations_is_found(tmp_path):
    folder = tmp_path / "set"
    lines = clean_set(folder).read_text().splitlines()
    for name, seconds in (("short.wav", 0.2), ("long.wav", 4.0), ("usual.wav", 1.6)):
        write_audio(folder / name, noise(seconds, seed=50))
        lines.append(json.dumps({"audio_filepath": name}))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    found = findings_of(tmp_path, folder)
    assert found == {("tail", "set/short.wav"), ("tail", "set/long.wav")}


def test_peaks_that_only_touch_full_scale_are_no_clipping(tmp_path):
    path = clean_set(tmp_path / "set")
    samples = noise(seed=40)
    samples[100] = 1.0
    write_audio(tmp_path / "set/3.wav", samples)
    assert findings_of(tmp_path, path) == set()


def test_speakers_in_two_manifests(tmp_path):
    one = clean_set(tmp_path / "train", speaker="ann")
    two = clean_set(tmp_path / "test", seed=100, speaker="ann")
    assert findings_of(tmp_path, one, two) == {("overlap", "ann")}
    assert findings_of(tmp_path, one) == set()


def test_speakers_and_audio_in_two_splits_of_one_manifest(tmp_path, capsys):
    root = tmp_path / "gsc"
    for name, seed in (
        ("yes/a_nohash_0.wav", 0),
        ("yes/b_nohash_0.wav", 1),
        ("no/a_nohash_0.wav", 1),
    ):
        write_audio(root / name, noise(seed=seed))
    (root / "validation_list.txt").write_text("")
    (root / "testing_list.txt").write_text("no/a_nohash_0.wav\n")
    corpora.prepare("speech_commands", root=root, out=tmp_path / "out")
    assert findings_of(tmp_path, tmp_path / "out") == {
        ("overlap", "a"),
        ("duplicate", "gsc/no/a_nohash_0.wav"),
    }
    table = capsys.readouterr().out
    assert "same samples as gsc/yes/b_nohash_0.wav (train)" in table
    assert "train (1 clips), test (1 clips)" in table


def test_an_expected_rate_can_be_given(tmp_path):
    for number in range(3):
        write_audio(tmp_path / f"set/{number}.wav", noise(rate=8000, seed=number), sample_rate=8000)
    path = manifest(tmp_path / "set", ["0.wav", "1.wav", "2.wav"], sample_rate=8000)
    assert findings_of(tmp_path, path, sample_rate=8000) == set()
    assert {kind for kind, _ in findings_of(tmp_path, path)} == {"rate"}


def test_parts_of_a_file_are_checked_by_themselves(tmp_path):
    folder = tmp_path / "set"
    write_audio(
        folder / "a.wav", np.concatenate([noise(), np.zeros(16000, np.float32), noise(seed=3)])
    )
    rows = [{"audio_filepath": "a.wav", "duration": 1.0, "offset": start} for start in (0, 1, 2, 3)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = findings_of(tmp_path, folder)
    assert ("silent", "set/a.wav@1.000") in found
    assert ("duration", "set/a.wav@3.000") in found
    assert {id_ for _, id_ in found} == {"set/a.wav@1.000", "set/a.wav@3.000"}


def test_a_part_of_whole_pieces_leaves_no_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(data_check, "_PIECE_S", 0.03)
    rng = np.random.default_rng(0)
    write_audio(tmp_path / "a.wav", 0.1 * rng.standard_normal(16000).astype(np.float32))
    for start in range(50):
        recording = Recording.from_file(tmp_path / "a.wav")
        cut = MonoCut("c", start / 100, 0.3, channel=0, recording=recording)
        assert sum(map(len, data_check._pieces(cut))) == 4800


def test_cuts_that_lhotse_must_make_are_checked_too(tmp_path):
    cuts = manifests.read(clean_set(tmp_path / "set", count=2)).pad(duration=1.5)
    manifests.write(cuts, tmp_path / "padded.jsonl")
    assert findings_of(tmp_path, tmp_path / "padded.jsonl") == set()


def test_headers_of_files_with_several_channels_are_checked(tmp_path):
    audio = 0.1 * np.random.default_rng(0).standard_normal((44_100, 2))
    soundfile.write(tmp_path / "a.wav", audio, 44_100)
    cut = Recording.from_file(tmp_path / "a.wav", recording_id="a").to_cut()
    manifests.write([cut], tmp_path / "stereo.jsonl")
    assert findings_of(tmp_path, tmp_path / "stereo.jsonl") == {("rate", "a")}


def test_reasons_are_told_apart_in_files_of_several_channels(tmp_path):
    for name in ("gone", "empty", "nan"):
        soundfile.write(tmp_path / f"{name}.wav", np.ones((16000, 2)), 16000, subtype="FLOAT")
    cuts = [Recording.from_file(tmp_path / f"{n}.wav").to_cut() for n in ("gone", "empty", "nan")]
    manifests.write(cuts, tmp_path / "cuts.jsonl")
    (tmp_path / "gone.wav").unlink()
    (tmp_path / "empty.wav").write_bytes(b"")
    soundfile.write(tmp_path / "nan.wav", np.full((16000, 2), np.nan), 16000, subtype="FLOAT")
    kinds = {id_.removesuffix("-multi"): kind for kind, id_ in findings_of(tmp_path, tmp_path)}
    assert kinds == {"gone": "missing", "empty": "empty", "nan": "nan"}


def test_a_name_that_no_file_can_have_is_a_row(tmp_path):
    path = clean_set(tmp_path / "set")
    odd = {"duration": 1.0, "sample_rate": 16000}
    names = ["a" * 300 + ".wav", "a\ud800b.wav"]
    with path.open("a") as file:
        file.writelines(json.dumps({"audio_filepath": name, **odd}) + "\n" for name in names)
    found = findings_of(tmp_path, path)
    assert {kind for kind, _ in found} == {"broken"}
    assert len(found) == 2


def test_a_cut_of_nothing_is_missing(tmp_path):
    cuts = [MonoCut("bare", 0, 1, channel=0), *manifests.read(clean_set(tmp_path / "set", count=2))]
    manifests.write(cuts, tmp_path / "bare.jsonl")
    assert findings_of(tmp_path, tmp_path / "bare.jsonl") == {("missing", "bare")}


def test_limits_are_numbers():
    with pytest.raises(RequestError, match="tail_factor inf"):
        data_check.Limits(tail_factor=float("inf"))


def test_names_with_brackets_are_shown_as_they_are(tmp_path, capsys):
    assert data_check.check([manifest(tmp_path / "set", ["[bold]a[/].wav"])]) == 1
    assert "set/[bold]a[/].wav" in capsys.readouterr().out


def test_many_findings_are_cut_short_on_the_console_only(tmp_path, capsys):
    path = manifest(tmp_path / "set", [f"{number}.wav" for number in range(60)])
    assert len(findings_of(tmp_path, path)) == 60
    assert "... and 10 more" in capsys.readouterr().out


@pytest.mark.slow
def test_three_broken_of_ten_thousand(tmp_path, capsys):
    folder = tmp_path / "set"
    names = [f"{number}.wav" for number in range(10_000)]
    for number, name in enumerate(names):
        write_audio(folder / name, noise(0.02, seed=number))
    for number in (17, 5000, 9999):
        plant_broken(folder / names[number])
    found = findings_of(tmp_path, manifest(folder, names, duration=0.02))
    assert found == {("broken", f"set/{number}.wav") for number in (17, 5000, 9999)}
    assert "10000 clips checked; 3 broken." in capsys.readouterr().out


def test_memory_does_not_grow_with_the_length_of_a_file(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    minute = (noise(60.0) * 32767).astype(np.int16)
    with soundfile.SoundFile(folder / "a.flac", "w", 16000, 1) as file:
        for _ in range(10):
            file.write(minute)
    path = manifest(folder, ["a.flac"], duration=600.0)
    tracemalloc.start()
    assert data_check.check([path]) == 0
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20e6  # the file is 38 MB of float32
