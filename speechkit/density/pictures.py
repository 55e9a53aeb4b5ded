"""Picture files to and from bytes in the order row, column, channel.

Shapes: H height, W width, C channels (1 grey, 3 RGB), N pictures.
"""

import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from speechkit.density.corpus import Bytes, ImageShape
from speechkit.errors import JobError, RequestError
from speechkit.files import atomic_path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff"})

# Pillow's modes with more than 256 levels a channel
_DEEP_MODES = ("I", "F")
# all that Pillow raises on a file that is broken, or so large that it may be an attack
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def picture_size(path: Path) -> tuple[int, int]:
    """Return height and width without decoding the pixels.

    Raises
    ------
    JobError
        if the file is no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except _UNREADABLE as error:
        raise _broken(path, error) from error


def load_picture(path: Path, *, size: tuple[int, int] | None = None, grey: bool = False) -> Bytes:
    """Read a picture as (H, W, C).

    Parameters
    ----------
    size
        height and width wanted: the picture is cut at the centre to that shape and scaled. As it is
        by default.
    grey
        one channel in place of red, green, blue. Transparency is dropped.

    Raises
    ------
    JobError
        if the file is broken.
    RequestError
        if a channel has more than 256 levels.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(_DEEP_MODES):
                raise RequestError(
                    f"{path}: has more than 256 levels a channel ({opened.mode}); save it with 8 "
                    "bits"
                )
            picture = opened.convert("L" if grey else "RGB")
    except RequestError:
        raise
    except _UNREADABLE as error:
        raise _broken(path, error) from error
    if size is not None and (picture.height, picture.width) != size:
        picture = ImageOps.fit(picture, (size[1], size[0]), method=Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, dtype=np.uint8)
    return pixels.reshape(picture.height, picture.width, -1)


def write_png(path: Path, data: Bytes, shape: ImageShape) -> None:
    """Write the bytes of one picture, whole or not at all.

    Raises
    ------
    RequestError
        if there are too few or too many bytes, or channels other than 1 or 3.
    """
    if data.size != shape.size or data.dtype != np.uint8 or shape.channels not in (1, 3):
        raise RequestError(
            f"{data.size} values of type {data.dtype} for a picture of {shape}: give "
            f"{shape.size} bytes, and 1 or 3 channels"
        )
    pixels = data.reshape(shape.height, shape.width, shape.channels)
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path}: give a name that ends in .png")
    with atomic_path(path) as temporary:
        Image.fromarray(pixels[:, :, 0] if shape.channels == 1 else pixels).save(temporary)


def write_grid(
    path: Path, data: Bytes, shape: ImageShape, *, columns: int | None = None, gap: int = 1
) -> None:
    """Write pictures (N, bytes) as one PNG: row by row, as square as N allows, on white.

    Raises
    ------
    RequestError
        as for `write_png`.
    """
    if data.ndim != 2 or data.shape[1] != shape.size or len(data) == 0:
        raise RequestError(
            f"array of shape {data.shape} for pictures of {shape}: give (N, {shape.size})"
        )
    columns = min(len(data), columns or math.ceil(math.sqrt(len(data))))
    rows = -(-len(data) // columns)
    high, wide = shape.height + gap, shape.width + gap
    sheet = np.full((rows * high - gap, columns * wide - gap, shape.channels), 255, dtype=np.uint8)
    for place, one in enumerate(data):
        top, left = (place // columns) * high, (place % columns) * wide
        pixels = one.reshape(shape.height, shape.width, shape.channels)
        sheet[top : top + shape.height, left : left + shape.width] = pixels
    write_png(path, sheet, ImageShape(*sheet.shape))


def _broken(path: Path, error: Exception) -> JobError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return JobError(f"{path}: cannot be read as a picture ({reason})")
