"""Readers of images: CIFAR-10, folders, arrays; bytes in the order row, column, channel.

Shapes: N images, H height, W width, C channels.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechkit.density.cache import cached, stamps
from speechkit.density.corpus import Bytes, Corpus, ImageShape, Items
from speechkit.density.pictures import SUFFIXES, load_picture, picture_size
from speechkit.errors import JobError, RequestError
from speechkit.ranges import require

_CIFAR = ImageShape(32, 32, 3)
_CIFAR_RECORDS = 10_000
_CIFAR_COUNTS = {"train": 48_000, "valid": 2_000, "test": 10_000}
_CIFAR_VALID_FRACTION = 0.04
_CIFAR_CLASSES = 10
_CIFAR_BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))

# a folder named like this is a split: train, training, valid_64x64, and not valley
_SPLIT_FOLDER = re.compile(
    r"(?P<split>train|val|dev|test)(ing|id|idation)?(?![a-z])", re.IGNORECASE
)
_SPLIT_NAMES = {"train": "train", "val": "valid", "dev": "valid", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """How a folder of pictures is read.

    Parameters
    ----------
    size
        height and width that every picture is cut and scaled to; without it all must be equal.
    grey
        one channel in place of three.
    valid_fraction, test_fraction
        parts of the training pictures, drawn at random, that become these splits where the folder
        has no folder for them.
    seed
        of that draw.
    cache
        the folder for the decoded bytes; below the user's cache folder by default.
    """

    size: tuple[int, int] | None = None
    grey: bool = False
    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        require(self, "seed", at_least=0)
        if self.size is not None and min(self.size) < 1:
            raise RequestError(f"image size {self.size}: give a height and a width from 1")


def read_cifar10(root: Path, *, seed: int = 0, cache: Path | None = None) -> Corpus:
    """Read CIFAR-10: 48,000 images train, 2,000 drawn from the training files valid, 10,000 test.

    Parameters
    ----------
    root
        the folder with data_batch_1.bin to data_batch_5.bin and test_batch.bin (the "binary
        version"), or with folders train and test of PNG files.
    seed
        of the draw of the validation images.
    cache
        as in `ImageConfig`; used for PNG files only.

    Raises
    ------
    RequestError
        if files are missing, or are not those of CIFAR-10.
    """
    inner = root / "cifar-10-batches-bin"
    folder = inner if inner.is_dir() else root
    if (folder / "train").is_dir() and (folder / "test").is_dir():
        return _cifar10_pictures(folder, seed, cache)
    missing = [n for n in (*_CIFAR_BATCHES, "test_batch.bin") if not (folder / n).is_file()]
    if missing:
        raise RequestError(
            f"{folder}: lacks {', '.join(missing)}; give the unpacked binary version of CIFAR-10, "
            "or a folder with train and test PNG files"
        )
    training = np.concatenate([_cifar10_batch(folder / name) for name in _CIFAR_BATCHES])
    testing = _cifar10_batch(folder / "test_batch.bin")
    order = np.random.default_rng(seed).permutation(len(training))
    valid = _CIFAR_COUNTS["valid"]
    return Corpus(
        name="cifar10",
        kind="image",
        shape=_CIFAR,
        splits={
            "train": Items(training, np.sort(order[valid:])),
            "valid": Items(training, np.sort(order[:valid])),
            "test": Items(testing, np.arange(len(testing))),
        },
    )


def read_images(root: Path, config: ImageConfig = ImageConfig()) -> Corpus:
    """Read a folder of pictures, at any depth.

    Folders in it whose names begin with train, val or dev, and test are the splits; without a
    folder to train on, all pictures are to train on, and other splits are drawn from them.
    A file that is broken is left out, with a warning.

    Raises
    ------
    RequestError
        if there is no picture, sizes differ and none was asked for, a channel has more than 256
        levels, or a split would be empty.
    """
    if not root.is_dir():
        raise RequestError(f"{root}: no such folder; give a folder of pictures")
    files = _picture_files(root)
    height, width = config.size or _first_size(list(files.values()))
    shape = ImageShape(height, width, 1 if config.grey else 3)

    def read(name: str) -> Iterator[Bytes]:
        path = files[name]
        if config.size is None and picture_size(path) != (height, width):
            raise RequestError(
                f"{path}: {picture_size(path)[0]}x{picture_size(path)[1]}, others are "
                f"{height}x{width}; give a size to cut and scale all pictures to"
            )
        yield load_picture(path, size=config.size, grey=config.grey)

    key = {"reader": "images", "size": [height, width], "grey": config.grey}
    whole = cached(
        config.cache, {**key, "files": stamps(files.values())}, names=list(files), read=read
    )
    pixels = whole.data.reshape(-1, shape.size)
    rows = _rows([entry.name for entry in whole.entries])
    return _corpus(root.name, pixels, rows, shape=shape, config=config)


def from_arrays(
    images: ArrayLike,
    *,
    name: str = "arrays",
    valid_fraction: float = 0.1,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Corpus:
    """Return a corpus of an array (N, H, W) or (N, H, W, C) of whole numbers from 0 to 255.

    Splits are drawn at random.

    Raises
    ------
    RequestError
        if the array has another shape, or other values.
    """
    array = np.asarray(images)
    if array.ndim not in (3, 4) or array.size == 0:
        raise RequestError(
            f"{name}: an array of shape {array.shape}; give (N, H, W) or (N, H, W, C)"
        )
    data = as_bytes(array, name).reshape(len(array), -1)
    shape = ImageShape(array.shape[1], array.shape[2], array.shape[3] if array.ndim == 4 else 1)
    config = ImageConfig(valid_fraction=valid_fraction, test_fraction=test_fraction, seed=seed)
    return _corpus(name, data, {"train": np.arange(len(data))}, shape=shape, config=config)


def tiles(image: Bytes, size: int) -> Bytes:
    """Cut an image (H, W, C) into squares (N, size, size, C) that do not overlap, row by row.

    Raises
    ------
    RequestError
        if the image is smaller than a square.
    """
    height, width, channels = image.shape
    rows, columns = height // size, width // size
    if min(rows, columns) == 0:
        raise RequestError(f"an image of {height}x{width} is smaller than a square of {size}")
    cut = image[: rows * size, : columns * size]
    squares = cut.reshape(rows, size, columns, size, channels).swapaxes(1, 2)
    return np.ascontiguousarray(squares).reshape(-1, size, size, channels)


def as_bytes(array: NDArray[np.generic], name: str) -> Bytes:
    """Return whole numbers from 0 to 255 as bytes; a RequestError on others."""
    if array.dtype == np.uint8:
        return array.view(np.uint8)
    if array.dtype.kind not in "iufb":
        raise RequestError(f"{name}: values of type {array.dtype}; give whole numbers, 0 to 255")
    numbers = array.astype(np.float64)
    if not (np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all()):
        raise RequestError(f"{name}: values that are not whole; scale and round to 0 to 255")
    if numbers.min() < 0 or numbers.max() > 255:
        raise RequestError(
            f"{name}: values from {numbers.min():.0f} to {numbers.max():.0f}; a byte model knows "
            "256 symbols: give 0 to 255"
        )
    return numbers.astype(np.uint8)


def _cifar10_batch(path: Path) -> Bytes:
    """Return images (10000, 3072), from records of a label and the planes red, green, blue."""
    data = np.fromfile(path, dtype=np.uint8)
    record = 1 + _CIFAR.size
    if data.size != _CIFAR_RECORDS * record:
        raise RequestError(
            f"{path}: {data.size:,} bytes; a batch of CIFAR-10 has {_CIFAR_RECORDS * record:,}: "
            "fetch the binary version again"
        )
    records = data.reshape(_CIFAR_RECORDS, record)
    if records[:, 0].max() >= _CIFAR_CLASSES:
        raise RequestError(
            f"{path}: a label of {records[:, 0].max()}; those of CIFAR-10 are 0 to 9: this is "
            "another file"
        )
    return planes_to_pixels(records[:, 1:], _CIFAR)


def planes_to_pixels(planes: Bytes, shape: ImageShape) -> Bytes:
    """Bring images (N, C·H·W), a plane a channel, to the order row, column, channel."""
    split = planes.reshape(-1, shape.channels, shape.height, shape.width)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 1)).reshape(len(planes), shape.size)


def _cifar10_pictures(folder: Path, seed: int, cache: Path | None) -> Corpus:
    config = ImageConfig(valid_fraction=_CIFAR_VALID_FRACTION, seed=seed, cache=cache)
    corpus = read_images(folder, config)
    found = {name: split.size // _CIFAR.size for name, split in corpus.splits.items()}
    if corpus.shape != _CIFAR or found != _CIFAR_COUNTS:
        raise RequestError(
            f"{folder}: images of {corpus.shape}, {found}; CIFAR-10 has {_CIFAR}, "
            f"{_CIFAR_COUNTS}: read other pictures as a folder of images"
        )
    return replace(corpus, name="cifar10")


def _picture_files(root: Path) -> dict[str, Path]:
    """Return the pictures below a folder by their relative names, split by split."""
    found = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise RequestError(f"{root}: holds no picture ({', '.join(sorted(SUFFIXES))}); give others")
    return {path.relative_to(root).as_posix(): path for path in found}


def _first_size(paths: Sequence[Path]) -> tuple[int, int]:
    problem: JobError | None = None
    for path in paths:
        try:
            return picture_size(path)
        except JobError as error:
            problem = problem or error
    raise RequestError(f"none of {len(paths)} pictures can be used, as {problem}")


def _split_of(name: str) -> str | None:
    folder, slash, _ = name.partition("/")
    match = _SPLIT_FOLDER.match(folder) if slash else None
    return _SPLIT_NAMES[match["split"].lower()] if match else None


def _rows(names: Sequence[str]) -> dict[str, NDArray[np.int64]]:
    """Return the places of each split's pictures; all are train where no folder says so."""
    splits = np.array([_split_of(name) or "" for name in names])
    if "train" not in splits:
        return {"train": np.arange(len(names))}
    if outside := [name for name, split in zip(names, splits, strict=True) if not split]:
        raise RequestError(
            f"{len(outside)} of {len(names)} pictures ({outside[0]}) are in no folder of a split, "
            "though there is one named like train: move them, or rename it"
        )
    found = {split: np.flatnonzero(splits == split) for split in ("train", "valid", "test")}
    return {split: places for split, places in found.items() if len(places)}


def _corpus(
    name: str,
    data: Bytes,
    rows: dict[str, NDArray[np.int64]],
    *,
    shape: ImageShape,
    config: ImageConfig,
) -> Corpus:
    """Return the splits of ``rows``, and those drawn from train that they lack."""
    total = len(rows["train"])
    order = np.random.default_rng(config.seed).permutation(rows["train"])
    splits = {}
    for split, part in (("valid", config.valid_fraction), ("test", config.test_fraction)):
        if split in rows:
            splits[split] = Items(data, rows[split])
        elif part:
            count = _drawn(part, split, left=len(order), total=total)
            splits[split] = Items(data, np.sort(order[:count]))
            order = order[count:]
    training = Items(data, np.sort(order))
    return Corpus(name=name, kind="image", shape=shape, splits={"train": training, **splits})


def _drawn(part: float, split: str, *, left: int, total: int) -> int:
    count = round(part * total)
    if not 0 < count < left:
        raise RequestError(
            f"a fraction of {part} for {split} takes {count} of {left} images; give another "
            "fraction or more images"
        )
    return count
