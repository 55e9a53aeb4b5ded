import zipfile

import numpy as np
import pytest

from speechkit.density.text import read_enwik8, read_text
from speechkit.errors import RequestError

SIZE = 100_000_000
PLACES = {0: 1, 89_999_999: 2, 90_000_000: 3, 94_999_999: 4, 95_000_000: 5, SIZE - 1: 6}


def sparse_file(path):
    """Write a file of the real size that takes no room; it marks the ends of the splits."""
    with path.open("wb") as file:
        file.truncate(SIZE)
        for place, value in PLACES.items():
            file.seek(place)
            file.write(bytes([value]))
    return path


def check_splits(corpus):
    ends = {name: (split.data[0], split.data[-1]) for name, split in corpus.splits.items()}
    assert ends == {"train": (1, 2), "valid": (3, 4), "test": (5, 6)}
    sizes = [split.size for split in corpus.splits.values()]
    assert sizes == [90_000_000, 5_000_000, 5_000_000]


def test_enwik8_of_its_real_size_is_mapped(tmp_path):
    path = sparse_file(tmp_path / "enwik8")
    for source in (path, tmp_path):
        corpus = read_enwik8(source)
        check_splits(corpus)
        assert isinstance(corpus.split("train").data, np.memmap)


def test_enwik8_as_it_is_fetched(tmp_path):
    raw = sparse_file(tmp_path / "raw")
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as z:
        z.write(raw, "enwik8")
    raw.unlink()
    check_splits(read_enwik8(tmp_path))


def zip_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_other_archives_are_refused(tmp_path, rng):
    noise = rng.bytes(5000)
    with pytest.raises(RequestError, match="holds enwik9; Enwik8's archive holds the file enwik8"):
        read_enwik8(zip_of(tmp_path / "a.zip", enwik9=noise))
    with pytest.raises(RequestError, match=r"enwik8 has 5,000 bytes; Enwik8 has 100,000,000"):
        read_enwik8(zip_of(tmp_path / "b.zip", enwik8=noise))
    path = zip_of(tmp_path / "enwik8.zip", enwik8=noise)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RequestError, match="broken archive"):
        read_enwik8(path)


def test_a_member_that_is_broken_within(tmp_path):
    path = tmp_path / "enwik8.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.write(sparse_file(tmp_path / "raw"), "enwik8")
    data = bytearray(path.read_bytes())
    data[1000:1040] = bytes(range(40))
    path.write_bytes(data)
    with pytest.raises(RequestError, match="broken archive"):
        read_enwik8(path)


def test_other_files_are_refused(tmp_path):
    with (tmp_path / "short").open("wb") as file:
        file.truncate(SIZE - 1)
    with pytest.raises(RequestError, match=r"99,999,999 bytes found; Enwik8 has 100,000,000"):
        read_enwik8(tmp_path / "short")
    with pytest.raises(RequestError, match=r"holds neither enwik8 nor enwik8\.zip"):
        read_enwik8(tmp_path)
    with pytest.raises(RequestError, match="no such file"):
        read_enwik8(tmp_path / "none")


def test_the_last_tenth_is_for_validation(tmp_path):
    text = "Fünf Größen,\n" * 100
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    data = text.encode()
    corpus = read_text(tmp_path / "a.txt")
    assert corpus.splits.keys() == {"train", "valid"}
    valid = corpus.split("valid").data.tobytes()
    assert corpus.split("train").data.tobytes() + valid == data
    assert len(valid) == round(len(data) / 10)
    assert isinstance(corpus.split("train").data, np.memmap)


def test_several_files_are_one_stream(tmp_path):
    paths = [tmp_path / name for name in ("b.txt", "a.txt")]
    for path, letter in zip(paths, ("b", "a"), strict=True):
        path.write_text(letter * 50)
    corpus = read_text(paths, valid_fraction=0.3, test_fraction=0.25)
    splits = {name: split.data.tobytes() for name, split in corpus.splits.items()}
    assert splits == {"train": b"b" * 45, "valid": b"b" * 5 + b"a" * 25, "test": b"a" * 25}
    assert corpus.name == "b.txt + a.txt"


@pytest.mark.parametrize("fractions", [(-0.1, 0.0), (0.5, 0.5), (1.0, 0.0)])
def test_fractions_that_leave_nothing(tmp_path, fractions):
    (tmp_path / "a.txt").write_text("some text")
    with pytest.raises(RequestError, match="less than 1 together"):
        read_text(tmp_path / "a.txt", valid_fraction=fractions[0], test_fraction=fractions[1])


def test_text_that_is_not_there(tmp_path):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(RequestError, match="is empty"):
        read_text(tmp_path / "empty.txt")
    with pytest.raises(RequestError, match="no such file"):
        read_text(tmp_path)
    with pytest.raises(RequestError, match="no text file given"):
        read_text([])
