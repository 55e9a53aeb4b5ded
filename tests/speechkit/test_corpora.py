from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit import corpora, manifests
from speechkit.audio import load_cut, write_audio
from speechkit.errors import RequestError
from speechkit.synthetic import SyntheticConfig


def tree(root, *names):
    rng = np.random.default_rng(len(names))
    for name in names:
        samples = int(rng.integers(4000, 17000))
        write_audio(root / name, rng.uniform(-0.5, 0.5, samples).astype(np.float32))
    return root


def prepared(tmp_path, corpus, root):
    """Prepare, and return {split: {id without the root: cut}}."""
    out = tmp_path / "out"
    corpora.prepare(corpus, root=root, out=out)
    splits = {}
    for path in sorted(out.glob("*/cuts.jsonl.gz")):
        cuts = manifests.read(path)
        assert all(cut.supervisions[0].custom["split"] == path.parent.name for cut in cuts)
        assert all(len(load_cut(cut)) == cut.num_samples for cut in cuts)
        splits[path.parent.name] = {cut.id.removeprefix(f"{root.name}/"): cut for cut in cuts}
    everything = manifests.read(out)
    assert sorted(everything.ids) == sorted(c.id for cuts in splits.values() for c in cuts.values())
    return splits


def labels(cuts):
    return {name: manifests.label_of(cut) for name, cut in cuts.items()}


def speech_commands(root):
    tree(
        root,
        "yes/aa11_nohash_0.wav",
        "yes/bb22_nohash_1.wav",
        "no/cc33_nohash_0.wav",
        "_background_noise_/running_tap.wav",
    )
    (root / "validation_list.txt").write_text("yes/bb22_nohash_1.wav\n")
    (root / "testing_list.txt").write_text("no/cc33_nohash_0.wav\n")
    (root / "_background_noise_/README.md").write_text("no audio")
    return root


def test_speech_commands(tmp_path):
    splits = prepared(tmp_path, "speech_commands", speech_commands(tmp_path / "gsc"))
    assert {split: list(cuts) for split, cuts in splits.items()} == {
        "train": ["yes/aa11_nohash_0.wav"],
        "valid": ["yes/bb22_nohash_1.wav"],
        "test": ["no/cc33_nohash_0.wav"],
        "noise": ["_background_noise_/running_tap.wav"],
    }
    (word,), (noise,) = splits["train"].values(), splits["noise"].values()
    assert (manifests.label_of(word), manifests.text_of(word)) == ("yes", "yes")
    assert manifests.speaker_of(word) == "aa11"
    assert (manifests.label_of(noise), manifests.text_of(noise)) == ("_noise_", "")
    assert manifests.speaker_of(noise) is None


def test_silence_of_speech_commands_is_cut_from_its_background(tmp_path):
    root = speech_commands(tmp_path / "gsc")
    write_audio(root / "_background_noise_/tap.wav", np.linspace(-1, 1, 20 * 16_000 + 5))
    splits = prepared(tmp_path, "speech_commands", root)
    seconds = {
        split: [c for c in cuts.values() if manifests.label_of(c) == "_silence_"]
        for split, cuts in splits.items()
    }
    assert {split: len(cuts) for split, cuts in seconds.items()} == {
        "train": 15,
        "valid": 2,
        "test": 2,
        "noise": 0,
    }
    everything = [cut for cuts in seconds.values() for cut in cuts]
    assert sorted(cut.start for cut in everything) == list(range(1, 20))
    assert {(cut.duration, manifests.text_of(cut)) for cut in everything} == {(1.0, "")}
    assert max(cut.start for cut in seconds["train"]) < min(cut.start for cut in seconds["test"])


def test_keyword_folders(tmp_path):
    root = tree(tmp_path / "mine", "höre zu/a.wav", "höre zu/x1_y_nohash_3.wav", "stop/b.WAV")
    cuts = prepared(tmp_path, "keyword_folders", root)["all"]
    assert labels(cuts) == {
        "höre zu/a.wav": "höre zu",
        "höre zu/x1_y_nohash_3.wav": "höre zu",
        "stop/b.WAV": "stop",
    }
    assert manifests.speaker_of(cuts["höre zu/a.wav"]) is None
    assert manifests.speaker_of(cuts["höre zu/x1_y_nohash_3.wav"]) == "x1_y"


def test_a_broken_file_does_not_stop_keyword_folders(tmp_path):
    root = tree(tmp_path / "mine", "go/a.wav")
    (root / "go/b.wav").write_bytes(b"not audio")
    corpora.prepare("keyword_folders", root=root, out=tmp_path / "out")
    assert len(manifests.read(tmp_path / "out")) == 2


def test_musan(tmp_path):
    root = tree(
        tmp_path / "musan", "music/fma/m-0.wav", "speech/us-gov/s-0.wav", "noise/free-sound/n-0.wav"
    )
    splits = prepared(tmp_path, "musan", root)
    assert {split: labels(cuts) for split, cuts in splits.items()} == {
        "music": {"music/fma/m-0.wav": "_music_"},
        "speech": {"speech/us-gov/s-0.wav": "_speech_"},
        "noise": {"noise/free-sound/n-0.wav": "_noise_"},
    }
    assert manifests.text_of(splits["speech"]["speech/us-gov/s-0.wav"]) is None


def test_rir_noises(tmp_path):
    root = tree(
        tmp_path / "RIRS_NOISES",
        "pointsource_noises/noise-free-sound-0000.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_noise_simroom1_1.wav",
        "real_rirs_isotropic_noises/RVB2014_type1_rir_simroom1_1.wav",
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
        "simulated_rirs/largeroom/Room001/Room001-00001.wav",
    )
    splits = prepared(tmp_path, "rir_noises", root)
    kinds = {split: sorted(set(labels(cuts).values())) for split, cuts in splits.items()}
    assert kinds == {
        "point_noise": ["_noise_"],
        "iso_noise": ["_noise_"],
        "real_rir": ["rir"],
        "sim_rir": ["rir"],
    }
    assert len(splits["sim_rir"]) == 2


def test_of_a_response_of_several_microphones_the_first_is_taken(tmp_path):
    """Their mean would be a comb filter, not a room."""
    root = tree(
        tmp_path / "RIRS_NOISES",
        "pointsource_noises/noise-free-sound-0000.wav",
        "simulated_rirs/smallroom/Room001/Room001-00001.wav",
    )
    taps = np.zeros((1000, 3))
    taps[[100, 130, 160], range(3)] = 0.5
    path = root / "real_rirs_isotropic_noises/RVB2014_type1_rir_simroom1_1.wav"
    path.parent.mkdir(parents=True)
    soundfile.write(path, taps, 16_000)
    corpora.prepare("rir_noises", root=root, out=tmp_path / "out")
    (cut,) = manifests.read(tmp_path / "out" / "real_rir")
    assert np.flatnonzero(load_cut(cut)).tolist() == [100]


def test_a_corpus_without_audio_and_a_folder_of_another_corpus_are_refused(tmp_path):
    for part in ("music", "speech", "noise"):
        (tmp_path / "musan" / part).mkdir(parents=True)
    with pytest.raises(RequestError, match="holds no audio of musan"):
        corpora.prepare("musan", root=tmp_path / "musan", out=tmp_path / "out")
    root = speech_commands(tmp_path / "gsc")
    corpora.prepare("speech_commands", root=root, out=tmp_path / "out")
    with pytest.raises(RequestError, match="holds a run with other settings or data: corpus"):
        corpora.prepare("keyword_folders", root=root, out=tmp_path / "out")


def test_a_folder_keeps_the_corpus_that_it_holds(tmp_path):
    one = tree(tmp_path / "one", "yes/a.wav", "_background_noise_/tap.wav")
    two = tree(tmp_path / "two", "yes/a.wav")
    for _ in range(2):
        corpora.prepare("keyword_folders", root=one, out=tmp_path / "out")
    with pytest.raises(RequestError, match="holds a run with other settings or data: root"):
        corpora.prepare("keyword_folders", root=two, out=tmp_path / "out")
    manifests.import_manifest(tmp_path / "out", out=tmp_path / "imported")
    with pytest.raises(RequestError, match="comes from elsewhere"):
        corpora.prepare("keyword_folders", root=two, out=tmp_path / "imported")
    assert len(manifests.read(tmp_path / "imported")) == 2


def test_what_lies_elsewhere_is_named(tmp_path, caplog):
    names = ["yes/a.wav", "yes/deeper/b.wav", "no/deeper/c.wav", "tree/d.aiff", "yes/._a.wav"]
    root = tree(tmp_path / "set", *names)
    assert labels(prepared(tmp_path, "keyword_folders", root)["all"]) == {
        "tree/d.aiff": "tree",
        "yes/a.wav": "yes",
    }
    assert "2 audio files do not lie where" in caplog.text
    assert "no/deeper/c.wav, yes/deeper/b.wav" in caplog.text
    assert f"{root / 'no'}: holds no audio file, so there is no such word" in caplog.text


def test_ids_do_not_depend_on_how_the_root_is_written(tmp_path, monkeypatch):
    root = tree(tmp_path / "set", "yes/a.wav")
    monkeypatch.chdir(root / "yes")
    found = [corpora.prepare_keyword_folders(Path(name))["all"] for name in ("..", "../../set")]
    assert [list(cuts.ids) for cuts in found] == [["set/yes/a.wav"]] * 2


def test_a_list_that_is_no_text_is_refused(tmp_path):
    root = speech_commands(tmp_path / "gsc")
    (root / "testing_list.txt").write_bytes(b"caf\xe9/a.wav")
    with pytest.raises(RequestError, match=r"testing_list\.txt: is no UTF-8 text"):
        corpora.prepare("speech_commands", root=root, out=tmp_path / "out")


def test_synthetic_is_delegated(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        corpora, "prepare_synthetic", lambda out, config: asked.append((out, config))
    )
    config = SyntheticConfig(keywords=("alexa",))
    corpora.prepare("synthetic", out=tmp_path / "out", synthetic=config)
    assert asked == [(tmp_path / "out", config)]


def test_unknown_corpus(tmp_path):
    with pytest.raises(RequestError, match="'timit' is not known; give one of speech_commands, "):
        corpora.prepare("timit", root=tmp_path, out=tmp_path / "out")


@pytest.mark.parametrize("corpus", list(corpora.CORPORA))
def test_missing_and_wrong_roots(tmp_path, corpus):
    for root in (None, tmp_path / "gone"):
        with pytest.raises(
            RequestError, match=f"no such folder; give the unpacked corpus {corpus}"
        ):
            corpora.prepare(corpus, root=root, out=tmp_path / "out")
    with pytest.raises(RequestError, match=r"expected .+; give the unpacked folder of \w+"):
        corpora.prepare(corpus, root=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("corpus", "broken", "others"),
    [
        ("musan", "music/m.wav", ("music/n.wav", "speech/s.wav", "noise/n.wav")),
        (
            "rir_noises",
            "simulated_rirs/a/x.wav",
            (
                "simulated_rirs/b/x.wav",
                "pointsource_noises/n.wav",
                "real_rirs_isotropic_noises/a_rir.wav",
            ),
        ),
    ],
)
def test_a_broken_file_is_named_and_the_rest_prepared(tmp_path, caplog, corpus, broken, others):
    root = tree(tmp_path / "corpus", broken, *others)
    (root / broken).write_bytes(b"not audio")
    corpora.prepare(corpus, root=root, out=tmp_path / "out")
    assert f"{broken}: missing or unreadable" in caplog.text
    cuts = manifests.read(tmp_path / "out")
    assert sorted(cuts.ids) == sorted(f"corpus/{name}" for name in (broken, *others))


def test_the_mark_of_completion_is_written_last(tmp_path, monkeypatch):
    root = speech_commands(tmp_path / "gsc")
    out = tmp_path / "out"
    corpora.prepare("speech_commands", root=root, out=out)
    write = manifests.write

    def failing(cuts, path):
        if path.parent.name == "test":
            raise OSError("disk full")
        write(cuts, path)

    monkeypatch.setattr(manifests, "write", failing)
    with pytest.raises(OSError, match="disk full"):
        corpora.prepare("speech_commands", root=root, out=out)
    assert not (out / "cuts.jsonl.gz").exists()
