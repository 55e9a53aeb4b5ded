"""Bits per byte, and what general compressors need for the same bytes."""

import bz2
import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from speechkit.density.corpus import Bytes
from speechkit.errors import RequestError

_CHUNK = 1 << 20


def bits_per_byte(nats: float, count: int) -> float:
    """Return bits per byte of ``count`` bytes whose negative log-likelihoods sum to ``nats``."""
    if count < 1:
        raise RequestError(f"{count} bytes scored: there is nothing to average")
    return nats / count / math.log(2)


@dataclass(frozen=True, slots=True)
class Baseline:
    """Bits per byte of the validation bytes.

    Parameters
    ----------
    name
        the compressor, as its command line.
    alone
        of the validation bytes on their own.
    after_training
        of the validation bytes once the training bytes were compressed: the size of both less that
        of the training bytes. The fair comparison with a model that was trained on them, as far as
        the compressor's memory reaches.
    reach_bytes
        how far back the compressor looks.
    """

    name: str
    alone: float
    after_training: float
    reach_bytes: int


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes:
        """Take more bytes."""

    def flush(self) -> bytes:
        """Return the rest."""


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    reach_bytes: int
    start: Callable[[], _Compressor]


_PROGRAMS = (
    _Program("gzip -9", 1 << 15, lambda: zlib.compressobj(9, wbits=31)),
    _Program("bzip2 -9", 900_000, lambda: bz2.BZ2Compressor(9)),
    _Program("xz -9", 1 << 26, lambda: lzma.LZMACompressor(preset=9)),
    _Program("xz -9e", 1 << 26, lambda: lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME)),
)


def compressor_baselines(train: Bytes, valid: Bytes) -> list[Baseline]:
    """Return what gzip, bzip2 and xz need for a byte of ``valid``.

    xz takes 700 MB of memory and, on one core, about a second for 1.5 MB.

    Raises
    ------
    RequestError
        if there are no validation bytes.
    """
    if len(valid) == 0:
        raise RequestError("no validation bytes: there is nothing to compress")
    baselines = []
    for program in _PROGRAMS:
        alone = _compressed_size(program, valid)
        more = _compressed_size(program, train, valid) - _compressed_size(program, train)
        baselines.append(
            Baseline(
                name=program.name,
                alone=8 * alone / len(valid),
                after_training=8 * more / len(valid),
                reach_bytes=program.reach_bytes,
            )
        )
    return baselines


def unigram_bits_per_byte(train: Bytes, valid: Bytes) -> float:
    """Return bits per byte of a code for single bytes by their counts in ``train``, plus one."""
    counts = np.bincount(train, minlength=256) + 1
    code = -np.log2(counts / counts.sum())
    return float(code[valid].mean())


def _compressed_size(program: _Program, *parts: Bytes) -> int:
    compressor = program.start()
    size = sum(len(compressor.compress(chunk)) for part in parts for chunk in _chunks(part))
    return size + len(compressor.flush())


def _chunks(data: Bytes) -> Iterator[bytes]:
    return (data[start : start + _CHUNK].tobytes() for start in range(0, len(data), _CHUNK))
