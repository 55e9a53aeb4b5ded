import numpy as np
import pytest

from speechkit.density import imagenet
from speechkit.density.corpus import ImageShape
from speechkit.density.imagenet import read_imagenet64
from speechkit.errors import RequestError

NAMES = ["train_data_batch_2.npz", "train_data_batch_10.npz", "val_data.npz"]


def batch(path, rng, count, *, save=np.savez):
    """Write a file in the published layout; return the images as (N, 3, 64, 64)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = rng.integers(0, 256, (count, 12_288), dtype=np.uint8)
    labels = rng.integers(1, 1001, count)
    save(path, data=data, labels=labels, mean=data.mean(axis=0))
    return data.reshape(count, 3, 64, 64)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_batches_come_in_the_order_of_their_numbers(tmp_path, rng, monkeypatch, save):
    monkeypatch.setattr(imagenet, "_BLOCK", 3)
    folders = ("b", "a", "c")
    made = [
        batch(tmp_path / "data" / folder / name, rng, count, save=save)
        for folder, name, count in zip(folders, NAMES, (4, 7, 5), strict=True)
    ]
    corpus = read_imagenet64(tmp_path / "data", cache=tmp_path / "cache")
    assert corpus.shape == ImageShape(64, 64, 3)
    wanted = {"train": np.concatenate(made[:2]), "valid": made[2]}
    for name, split in corpus.splits.items():
        pixels = split.data[split.rows].reshape(-1, 64, 64, 3)
        np.testing.assert_array_equal(pixels, wanted[name].transpose(0, 2, 3, 1))
    window = corpus.evaluation("valid", length=12_288)[3]
    assert window.data[(17 * 64 + 5) * 3 + 2] == made[2][3, 2, 17, 5]


def test_files_that_are_missing(tmp_path, rng):
    batch(tmp_path / NAMES[0], rng, 2)
    with pytest.raises(RequestError, match=r"holds 1 files train_data_batch_\*.npz and 0 val_data"):
        read_imagenet64(tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((2, 12_288), np.uint8)}, "holds images; ImageNet-64 has the array"),
        ({"data": np.zeros((2, 3072), np.uint8)}, r"data is \(2, 3072\) of uint8"),
        ({"data": np.zeros((2, 12_288), np.uint16)}, r"data is \(2, 12288\) of uint16"),
        ({"data": np.zeros((12_288, 2), np.uint8).T}, r"data is \(2, 12288\) of uint8"),
    ],
)
def test_arrays_of_something_else(tmp_path, rng, arrays, message):
    np.savez(tmp_path / NAMES[0], **arrays)
    batch(tmp_path / NAMES[2], rng, 1)
    with pytest.raises(RequestError, match=message):
        read_imagenet64(tmp_path, cache=tmp_path / "cache")


@pytest.mark.parametrize("where", ["end", "middle", "all"])
def test_broken_archives(tmp_path, rng, where):
    for name in (NAMES[0], NAMES[2]):
        batch(tmp_path / name, rng, 2)
    path = tmp_path / NAMES[0]
    data = bytearray(path.read_bytes())
    if where == "middle":
        data[9000] ^= 1
    path.write_bytes({"end": data[:-100], "middle": data, "all": b"no archive"}[where])
    with pytest.raises(RequestError, match=r"batch_2.npz: a broken archive"):
        read_imagenet64(tmp_path, cache=tmp_path / "cache")
