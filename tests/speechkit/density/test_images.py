import numpy as np
import pytest
from PIL import Image

from speechkit.density import images
from speechkit.density.corpus import ImageShape
from speechkit.density.images import ImageConfig, from_arrays, read_cifar10, read_images, tiles
from speechkit.density.pictures import load_picture, write_grid, write_png
from speechkit.errors import RequestError

RECORD = 3073
BATCHES = [f"data_batch_{number}.bin" for number in range(1, 6)]


def cifar10(folder, rng):
    """Write files of the real size in which only some records hold something."""
    folder.mkdir(parents=True, exist_ok=True)
    records = {}
    for name in [*BATCHES, "test_batch.bin"]:
        with (folder / name).open("wb") as file:
            file.truncate(10_000 * RECORD)
            for place in (0, 4711, 9_999):
                planes = rng.integers(0, 256, 3072, dtype=np.uint8)
                file.seek(place * RECORD)
                file.write(bytes([place % 10]) + planes.tobytes())
                records[name, place] = planes.reshape(3, 32, 32)
    return records


def test_cifar10_of_its_real_size(tmp_path, rng):
    records = cifar10(tmp_path / "cifar-10-batches-bin", rng)
    corpus = read_cifar10(tmp_path)
    assert corpus.shape == ImageShape(32, 32, 3)
    rows = {name: split.rows for name, split in corpus.splits.items()}
    assert {name: len(r) for name, r in rows.items()} == {
        "train": 48_000,
        "valid": 2_000,
        "test": 10_000,
    }
    assert sorted([*rows["train"], *rows["valid"]]) == list(range(50_000))
    # bytes go along the row, and from channel to channel first
    planes = records["data_batch_3.bin", 4711]
    image = corpus.split("train").data[24_711].reshape(32, 32, 3)
    for row, column, channel in [(0, 0, 0), (5, 17, 1), (31, 30, 2)]:
        assert image[row, column, channel] == planes[channel, row, column]
    test = corpus.split("test")
    np.testing.assert_array_equal(
        test.data[9_999], records["test_batch.bin", 9_999].transpose(1, 2, 0).reshape(-1)
    )


def test_the_validation_images_of_cifar10_depend_on_the_seed(tmp_path, rng):
    cifar10(tmp_path, rng)
    first, again, other = (read_cifar10(tmp_path, seed=s).split("valid").rows for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.intersect1d(first, other)) < 200


def test_what_is_not_cifar10(tmp_path, rng):
    cifar10(tmp_path, rng)
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.write(b"\x0b")
    with pytest.raises(RequestError, match=r"data_batch_2.bin: a label of 11"):
        read_cifar10(tmp_path)
    with (tmp_path / "data_batch_2.bin").open("r+b") as file:
        file.truncate(10_000 * RECORD - 1)
    with pytest.raises(RequestError, match=r"30,729,999 bytes; a batch of CIFAR-10 has 30,730,000"):
        read_cifar10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(RequestError, match=r"lacks test_batch\.bin; give the unpacked binary"):
        read_cifar10(tmp_path)


def pictures(folder, rng, count, size=(4, 5), **save):
    folder.mkdir(parents=True, exist_ok=True)
    made = rng.integers(0, 256, (count, *size, 3), dtype=np.uint8)
    for number, pixels in enumerate(made):
        Image.fromarray(pixels).save(folder / f"{number:03}.png", **save)
    return made.reshape(count, -1)


def rows_of(corpus, split):
    found = corpus.split(split)
    return found.data[found.rows]


def test_folders_that_are_splits(tmp_path, rng):
    made = {
        "train": pictures(tmp_path / "data" / "train" / "cat", rng, 9),
        "test": pictures(tmp_path / "data" / "test_64x64", rng, 3),
    }
    config = ImageConfig(valid_fraction=0.2, cache=tmp_path / "cache")
    corpus = read_images(tmp_path / "data", config)
    assert (corpus.kind, corpus.shape, corpus.name) == ("image", ImageShape(4, 5, 3), "data")
    np.testing.assert_array_equal(rows_of(corpus, "test"), made["test"])
    both = np.concatenate([rows_of(corpus, "train"), rows_of(corpus, "valid")])
    assert [len(corpus.split(name).rows) for name in ("train", "valid")] == [7, 2]
    assert sorted(map(bytes, both)) == sorted(map(bytes, made["train"]))


def test_given_validation_folders_are_taken(tmp_path, rng):
    pictures(tmp_path / "data" / "train", rng, 4)
    pictures(tmp_path / "classes" / "train", rng, 4)
    pictures(tmp_path / "classes" / "valley", rng, 4)
    with pytest.raises(RequestError, match=r"4 of 8 pictures .* are in no folder of a split"):
        read_images(tmp_path / "classes", ImageConfig(cache=tmp_path / "cache"))
    made = pictures(tmp_path / "data" / "valid", rng, 2)
    corpus = read_images(tmp_path / "data", ImageConfig(cache=tmp_path / "cache"))
    np.testing.assert_array_equal(rows_of(corpus, "valid"), made)
    assert corpus.splits.keys() == {"train", "valid"}


def test_cifar10_as_pictures(tmp_path, rng, monkeypatch):
    made = pictures(tmp_path / "data" / "train" / "ship", rng, 5, size=(32, 32))
    pictures(tmp_path / "data" / "test" / "ship", rng, 2, size=(32, 32))
    # the real counts would take minutes to write
    monkeypatch.setattr(images, "_CIFAR_VALID_FRACTION", 0.2)
    with pytest.raises(RequestError, match=r"CIFAR-10 has 32x32x3, \{'train': 48000"):
        read_cifar10(tmp_path / "data", cache=tmp_path / "cache")
    monkeypatch.setattr(images, "_CIFAR_COUNTS", {"train": 4, "valid": 1, "test": 2})
    corpus = read_cifar10(tmp_path / "data", cache=tmp_path / "cache")
    assert (corpus.name, corpus.shape) == ("cifar10", ImageShape(32, 32, 3))
    both = np.concatenate([rows_of(corpus, "train"), rows_of(corpus, "valid")])
    assert sorted(map(bytes, both)) == sorted(map(bytes, made))


def test_pictures_are_decoded_once(tmp_path, rng, monkeypatch):
    pictures(tmp_path / "data", rng, 20)
    config = ImageConfig(cache=tmp_path / "cache")
    first = read_images(tmp_path / "data", config)
    monkeypatch.setattr(images, "load_picture", None)
    again = read_images(tmp_path / "data", config)
    assert again.fingerprint() == first.fingerprint()
    assert isinstance(again.split("train").data.base, np.memmap)


def test_odd_sizes(tmp_path, rng):
    pictures(tmp_path / "data" / "a", rng, 5)
    pictures(tmp_path / "data" / "b", rng, 5, size=(9, 3))
    config = {"cache": tmp_path / "cache", "valid_fraction": 0.3}
    with pytest.raises(RequestError, match=r"b/000.png: 9x3, others are 4x5; give a size"):
        read_images(tmp_path / "data", ImageConfig(**config))
    corpus = read_images(tmp_path / "data", ImageConfig(size=(6, 2), grey=True, **config))
    assert corpus.shape == ImageShape(6, 2, 1)
    assert [len(split.rows) for split in corpus.splits.values()] == [7, 3]


def test_a_broken_picture_is_left_out(tmp_path, rng, caplog):
    pictures(tmp_path / "data", rng, 5)
    path = tmp_path / "data" / "003.png"
    path.write_bytes(path.read_bytes()[:60])
    config = ImageConfig(valid_fraction=0.25, cache=tmp_path / "cache")
    corpus = read_images(tmp_path / "data", config)
    assert [len(split.rows) for split in corpus.splits.values()] == [3, 1]
    assert "003.png: cannot be read as a picture" in caplog.text


def test_folders_without_use(tmp_path, rng):
    config = ImageConfig(cache=tmp_path / "cache")
    with pytest.raises(RequestError, match="no such folder"):
        read_images(tmp_path / "none", config)
    (tmp_path / "data").mkdir()
    with pytest.raises(RequestError, match="holds no picture"):
        read_images(tmp_path / "data", config)
    (tmp_path / "data" / "a.png").write_bytes(b"no picture")
    with pytest.raises(RequestError, match=r"none of 1 pictures can be used, as .*a\.png"):
        read_images(tmp_path / "data", config)
    pictures(tmp_path / "data", rng, 1)
    with pytest.raises(RequestError, match=r"a fraction of 0.1 for valid takes 0 of 1 images"):
        read_images(tmp_path / "data", config)


def test_more_than_256_levels_are_refused(tmp_path, rng):
    deep = rng.integers(0, 2**16, (4, 4), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(RequestError, match="more than 256 levels"):
        read_images(tmp_path, ImageConfig(cache=tmp_path / "cache"))


def test_digits_and_other_arrays(rng):
    digits = rng.integers(0, 17, (50, 8, 8)).astype(np.float64)
    corpus = from_arrays(digits, name="digits", valid_fraction=0.2, test_fraction=0.1)
    assert corpus.shape == ImageShape(8, 8, 1)
    assert [len(split.rows) for split in corpus.splits.values()] == [35, 10, 5]
    together = np.concatenate([rows_of(corpus, name) for name in corpus.splits])
    assert sorted(map(bytes, together)) == sorted(bytes(d.astype(np.uint8)) for d in digits)
    coloured = from_arrays(np.zeros((9, 2, 3, 3), dtype=np.int64), valid_fraction=0.3)
    assert coloured.shape == ImageShape(2, 3, 3)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 2, 2), 256), "values from 256 to 256; a byte model knows 256 symbols"),
        (np.full((4, 2, 2), -1), "values from -1 to -1"),
        (np.full((4, 2, 2), 0.5), "values that are not whole"),
        (np.full((4, 2, 2), np.nan), "values that are not whole"),
        (np.full((4, 2, 2), "a"), "values of type <U1"),
        (np.zeros((4, 4), dtype=np.uint8), r"an array of shape \(4, 4\)"),
        (np.zeros((0, 4, 4), dtype=np.uint8), r"an array of shape \(0, 4, 4\)"),
    ],
)
def test_arrays_that_are_no_bytes(array, message):
    with pytest.raises(RequestError, match=message):
        from_arrays(array)


def test_tiles_cover_an_image(rng):
    image = rng.integers(0, 256, (7, 11, 3), dtype=np.uint8)
    cut = tiles(image, 3)
    assert cut.shape == (6, 3, 3, 3)
    np.testing.assert_array_equal(cut[4], image[3:6, 3:6])
    with pytest.raises(RequestError, match="smaller than a square of 8"):
        tiles(image, 8)


@pytest.mark.parametrize("channels", [1, 3])
def test_png_round_trip(tmp_path, rng, channels):
    shape = ImageShape(5, 3, channels)
    data = rng.integers(0, 256, shape.size, dtype=np.uint8)
    write_png(tmp_path / "a.png", data, shape)
    loaded = load_picture(tmp_path / "a.png", grey=channels == 1)
    assert loaded.shape == (5, 3, channels)
    np.testing.assert_array_equal(loaded.reshape(-1), data)


def test_a_grid_holds_every_picture(tmp_path, rng):
    shape = ImageShape(5, 3, 3)
    data = rng.integers(0, 256, (7, shape.size), dtype=np.uint8)
    write_grid(tmp_path / "a.png", data, shape, columns=4, gap=2)
    sheet = load_picture(tmp_path / "a.png")
    assert sheet.shape == (12, 18, 3)
    for place, one in enumerate(data):
        top, left = 7 * (place // 4), 5 * (place % 4)
        part = sheet[top : top + 5, left : left + 3]
        np.testing.assert_array_equal(part.reshape(-1), one)
    assert (sheet[7:, 15:] == 255).all()


def test_pictures_that_cannot_be_written(tmp_path):
    shape = ImageShape(2, 2, 3)
    with pytest.raises(RequestError, match=r"11 values .* for a picture of 2x2x3: give 12 bytes"):
        write_png(tmp_path / "a.png", np.zeros(11, np.uint8), shape)
    with pytest.raises(RequestError, match=r"ends in .png"):
        write_png(tmp_path / "a.jpg", np.zeros(12, np.uint8), shape)
    with pytest.raises(RequestError, match=r"array of shape \(0, 12\)"):
        write_grid(tmp_path / "a.png", np.zeros((0, 12), np.uint8), shape)
