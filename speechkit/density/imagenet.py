"""Reader of ImageNet, scaled down to 64 x 64, in its published npz files."""

import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from speechkit.density.cache import cached, stamps
from speechkit.density.corpus import Bytes, Corpus, ImageShape, Items
from speechkit.density.images import planes_to_pixels
from speechkit.errors import RequestError

_SHAPE = ImageShape(64, 64, 3)
_VALID = "val_data.npz"
_TRAIN = re.compile(r"train_data_batch_(\d+)\.npz")
# images that are decoded at once: 50 MB
_BLOCK = 4096


def read_imagenet64(root: Path, *, cache: Path | None = None) -> Corpus:
    """Read ImageNet-64: train, and valid, on which results are reported.

    The first call brings the pixels to the order row, column, channel in a cache of 15.7 GB, and
    goes on where it was if stopped; later calls map it. The older set of the literature, scaled by
    another filter, is a pair of folders of PNG files: read it with `read_images`; figures on the
    two do not compare.

    Parameters
    ----------
    root
        the folder with train_data_batch_1.npz and so on, and val_data.npz, at any depth.
    cache
        the folder for the cache; below the user's cache folder by default.

    Raises
    ------
    RequestError
        if files are missing or broken, or hold something else.
    """
    training = sorted(
        (path for path in root.rglob("*.npz") if _TRAIN.fullmatch(path.name)), key=_number
    )
    validation = sorted(root.rglob(_VALID))
    if not training or len(validation) != 1:
        raise RequestError(
            f"{root}: holds {len(training)} files train_data_batch_*.npz and {len(validation)} "
            f"{_VALID}; give the folder with all of the former and one of the latter"
        )
    files = {path.name: path for path in [*training, *validation]}
    whole = cached(
        cache,
        {"reader": "imagenet64", "files": stamps(files.values())},
        names=list(files),
        read=lambda name: _images(files[name]),
    )
    images = whole.data.reshape(-1, _SHAPE.size)
    boundary = whole.entries[-1].start // _SHAPE.size
    return Corpus(
        name="imagenet64",
        kind="image",
        shape=_SHAPE,
        splits={
            "train": Items(images, np.arange(boundary)),
            "valid": Items(images, np.arange(boundary, len(images))),
        },
    )


def _number(path: Path) -> int:
    match = _TRAIN.fullmatch(path.name)
    return int(match[1]) if match else 0


def _images(path: Path) -> Iterator[Bytes]:
    """Yield blocks of images in a memory that does not grow with the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if "data.npy" not in names:
                keys = ", ".join(name.removesuffix(".npy") for name in names) or "nothing"
                raise RequestError(f"{path}: holds {keys}; ImageNet-64 has the array data")
            with archive.open("data.npy") as member:
                yield from _blocks(member, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise RequestError(f"{path}: a broken archive ({error}); fetch it again") from error


def _blocks(member: IO[bytes], path: Path) -> Iterator[Bytes]:
    count = _header(member, path)
    for first in range(0, count, _BLOCK):
        images = min(_BLOCK, count - first)
        raw = member.read(images * _SHAPE.size)
        if len(raw) < images * _SHAPE.size:
            raise RequestError(f"{path}: ends in image {first} to {first + images} of {count}")
        yield planes_to_pixels(np.frombuffer(raw, np.uint8).reshape(images, -1), _SHAPE)
    if member.read(1):
        raise RequestError(f"{path}: goes on after its {count} images; fetch it again")


def _header(member: IO[bytes], path: Path) -> int:
    """Return the number of images; refuse other arrays."""
    try:
        version = np.lib.format.read_magic(member)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, by_column, dtype = read(member)
    except (ValueError, KeyError) as error:
        raise RequestError(f"{path}: its array data has no header of NumPy's ({error})") from error
    if dtype != np.uint8 or by_column or len(shape) != 2 or shape[1] != _SHAPE.size:
        raise RequestError(
            f"{path}: data is {shape} of {dtype}; ImageNet-64 has (images, {_SHAPE.size}) of uint8"
        )
    return int(shape[0])
