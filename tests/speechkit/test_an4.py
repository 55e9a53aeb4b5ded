import json

import numpy as np
import pytest

from speechkit import an4, corpora, manifests
from speechkit.cli import main
from speechkit.errors import JobError, RequestError

TEXTS = ["YES", "P I T T S", None]


def rows():
    return [
        {
            "utt": f"an{i}/fash-b",
            "offset": offset,
            "frames": frames,
            "duration": frames / 100,
            "text": text,
            "text_norm": text and text.lower(),
            "speaker": f"s{i % 2}",
            "sex": "F",
        }
        for i, (offset, frames, text) in enumerate(zip((0, 7, 36), (7, 29, 1), TEXTS, strict=True))
    ]


def portion(root, rows, array=None, key="mfc"):
    root.mkdir(parents=True, exist_ok=True)
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if array is None:
        array = np.random.default_rng(5).standard_normal((37, 13)).astype(np.float16)
    np.savez(root / "feats.npz", **{key: array})
    return array


def test_a_portion_is_prepared_once_and_a_manifest_taken_as_it_is(tmp_path, monkeypatch):
    portion(tmp_path / "in", rows())
    ids = list(an4.read(tmp_path / "in", tmp_path / "cuts").ids)
    monkeypatch.setattr(an4, "prepare", None)
    assert list(an4.read(tmp_path / "in", tmp_path / "cuts").ids) == ids
    portion(tmp_path / "other", rows()[:2])
    with pytest.raises(RequestError, match="holds a run with other settings or data"):
        an4.read(tmp_path / "other", tmp_path / "cuts")
    assert list(an4.read(tmp_path / "cuts", tmp_path / "unused").ids) == ids
    assert not (tmp_path / "unused").exists()


def test_a_portion_becomes_cuts_with_features(tmp_path):
    array = portion(tmp_path / "in", rows())
    assert (
        main(
            [
                "data",
                "prepare",
                "an4_features",
                "--root",
                f"{tmp_path}/in",
                "--out",
                f"{tmp_path}/out",
            ]
        )
        == 0
    )
    (tmp_path / "out").rename(tmp_path / "moved")
    cuts = manifests.read(tmp_path / "moved")
    assert [manifests.text_of(cut) for cut in cuts] == ["yes", "p i t t s", None]
    assert [cut.supervisions[0].text for cut in cuts] == TEXTS
    assert [manifests.speaker_of(cut) for cut in cuts] == ["s0", "s1", "s0"]
    assert cuts[0].supervisions[0].custom["sex"] == "F"
    for cut, row in zip(cuts, rows(), strict=True):
        matrix = cut.load_features()
        assert matrix.dtype == np.float32
        span = slice(row["offset"], row["offset"] + row["frames"])
        np.testing.assert_array_equal(matrix, array[span].astype(np.float32))
        assert (cut.num_frames, cut.num_features, cut.frame_shift) == (row["frames"], 13, 0.01)
        assert (cut.id, cut.duration) == (row["utt"], row["duration"])


def test_the_check_reads_features_without_audio(tmp_path, capsys):
    portion(tmp_path / "in", rows())
    an4.prepare(tmp_path / "in", tmp_path / "out")
    assert main(["data", "check", f"{tmp_path}/out"]) == 0
    broken = next((tmp_path / "out" / "features").rglob("*.npy"))
    broken.write_bytes(broken.read_bytes()[:40])
    capsys.readouterr()
    assert main(["data", "check", f"{tmp_path}/out"]) == 1
    assert "cannot be read" in " ".join(capsys.readouterr().out.split())


def test_missing_files(tmp_path):
    with pytest.raises(RequestError, match=r"has no manifest\.jsonl"):
        an4.prepare(tmp_path, tmp_path / "out")
    portion(tmp_path, rows())
    (tmp_path / "feats.npz").unlink()
    with pytest.raises(RequestError, match=r"has no feats\.npz"):
        an4.prepare(tmp_path, tmp_path / "out")
    with pytest.raises(RequestError, match="no such folder"):
        corpora.prepare("an4_features", root=tmp_path / "gone", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": 31}, "line 3: .* lie within the 37"),
        ({"offset": -1}, "line 3: frames -1 to"),
        ({"frames": 0}, "at least one"),
        ({"frames": 1.5}, r"frames 1\.5 must be a whole number"),
        ({"offset": None}, "offset None must be a whole number"),
        ({"utt": None}, "utt None must be"),
        ({"utt": "an0/fash-b"}, r"1 utterances occur more than once \(an0/fash-b\)"),
        ({"text": 3}, "text 3 must be a string"),
    ],
)
def test_wrong_rows(tmp_path, change, message):
    changed = rows()
    changed[2] |= {"offset": 7, **change}
    portion(tmp_path, changed)
    with (tmp_path / "manifest.jsonl").open() as file:
        assert len(file.readlines()) == 3
    with pytest.raises(RequestError, match=message):
        an4.prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "cuts.jsonl.gz").exists()


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_no_rows(tmp_path, content):
    portion(tmp_path, rows())
    (tmp_path / "manifest.jsonl").write_text(content)
    with pytest.raises(RequestError, match=r"is no JSON|is empty"):
        an4.prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    "array", [np.zeros((37, 12)), np.zeros(37), np.zeros((37, 13), dtype=np.int16)]
)
def test_wrong_arrays(tmp_path, array):
    portion(tmp_path, rows(), array)
    with pytest.raises(RequestError, match=r"must be floats of shape \(frames, 13\)"):
        an4.prepare(tmp_path, tmp_path / "out")


def test_another_key(tmp_path):
    portion(tmp_path, rows(), key="cepstra")
    with pytest.raises(RequestError, match="has no array 'mfc'"):
        an4.prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"text"])
def test_a_broken_archive(tmp_path, damage):
    portion(tmp_path, rows())
    path = tmp_path / "feats.npz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(JobError, match=r"cannot be read as \.npz"):
        an4.prepare(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_names_the_utterance_and_leaves_no_manifest(tmp_path, value):
    array = portion(tmp_path, rows())
    whole = array[10, 3]
    array[10, 3] = value
    portion(tmp_path, rows(), array)
    with pytest.raises(JobError, match="line 2: the features of 'an1/fash-b' hold NaN"):
        an4.prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / "cuts.jsonl.gz").exists()
    array[10, 3] = whole
    portion(tmp_path, rows(), array)
    an4.prepare(tmp_path, tmp_path / "out")  # once it is mended, the same folder serves


def test_another_portion_takes_no_folder_that_holds_one(tmp_path):
    portion(tmp_path / "one", rows())
    portion(tmp_path / "two", rows()[:1])
    an4.prepare(tmp_path / "one", tmp_path / "out")
    for take in (an4.prepare, an4.read):
        with pytest.raises(RequestError, match="holds a run with other settings or data"):
            take(tmp_path / "two", tmp_path / "out")
    assert len(manifests.read(tmp_path / "out")) == len(rows())


def test_the_real_portion(tmp_path, real_data):
    an4.prepare(real_data / "an4_mfc", tmp_path)
    cuts = manifests.read(tmp_path)
    assert len(cuts) == 948
    assert len({manifests.speaker_of(cut) for cut in cuts}) == 74
    assert all(cut.load_features().shape == (cut.num_frames, 13) for cut in cuts)
