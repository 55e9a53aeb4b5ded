"""Reader of audio: mu-law with 256 levels, a byte a sample, cached so that many hours fit."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from speechkit import audio
from speechkit.density.cache import Cached, cached, stamps
from speechkit.density.corpus import Bytes, Corpus, Stream
from speechkit.errors import RequestError

SAMPLE_RATE = 12_000

_MU = 255
_MANIFESTS = ("cuts.jsonl.gz", "cuts.jsonl", "manifest.jsonl")

Reader = Callable[[str], Iterator[Bytes]]


@dataclass(frozen=True, kw_only=True)
class AudioConfig:
    """How audio is read.

    Parameters
    ----------
    sample_rate
        in Hz; 12,000 is that of the paper (arXiv 1904.10509, section 7.3). Audio at this rate is
        taken as it is.
    valid_fraction, test_fraction
        parts of the audio, whole files drawn by their names, that become these splits.
    seed
        of that draw.
    cache
        the folder for the bytes; below the user's cache folder by default.
    """

    sample_rate: int = SAMPLE_RATE
    valid_fraction: float = 0.05
    test_fraction: float = 0.05
    seed: int = 0
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.sample_rate < 1:
            raise RequestError(f"sample rate {self.sample_rate}: give a number of Hz above 0")
        parts = (self.valid_fraction, self.test_fraction)
        if min(parts) < 0 or sum(parts) >= 1:
            raise RequestError(
                f"fractions {parts[0]} for valid and {parts[1]} for test: give 0 or more each, "
                "less than 1 together"
            )


def read_audio(source: Path, config: AudioConfig = AudioConfig()) -> Corpus:
    """Read a manifest or a folder of audio, at any depth, as streams of mu-law bytes.

    A split is its files one after the other, so that a window may hold the end of one and the start
    of the next. A file that is broken is left out, with a warning.

    Parameters
    ----------
    source
        a manifest, a folder with one, or a folder of audio files.

    Raises
    ------
    RequestError
        if there is no audio, or fewer files than splits.
    """
    names, read, origin = _from_manifest(source, config) or _from_folder(source, config)
    key = {"reader": "audio", "rate": config.sample_rate, "origin": origin}
    whole = cached(config.cache, key, names=_shuffled(names, config.seed), read=read)
    return Corpus(
        name=source.name,
        kind="audio",
        sample_rate=config.sample_rate,
        splits=_splits(whole, config),
    )


def mulaw_encode(samples: ArrayLike) -> Bytes:
    """Return levels 0 to 255 of samples, which are clipped to [-1, 1]; 0.0 gives 128.

    The levels are even on the scale sign(x) ln(1 + 255 |x|) / ln 256 (ITU-T G.711's law without its
    piecewise approximation).
    """
    x = np.clip(np.asarray(samples, dtype=np.float64), -1.0, 1.0)
    scaled = np.sign(x) * np.log1p(_MU * np.abs(x)) / np.log1p(_MU)
    return np.floor((scaled + 1) / 2 * _MU + 0.5).astype(np.uint8)


def mulaw_decode(levels: Bytes) -> audio.Audio:
    """Return the samples in [-1, 1] that the levels stand for."""
    y = 2 * levels.astype(np.float64) / _MU - 1
    return (np.sign(y) * np.expm1(np.abs(y) * np.log1p(_MU)) / _MU).astype(np.float32)


def write_wav(path: Path, levels: Bytes, *, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mu-law bytes (samples,) as a 16-bit WAV, whole or not at all."""
    audio.write_audio(path, mulaw_decode(levels), sample_rate=sample_rate)


def _from_folder(source: Path, config: AudioConfig) -> tuple[list[str], Reader, Any]:
    found = audio.files_below(source)
    if not found:
        names = ", ".join(sorted(audio.SUFFIXES))
        raise RequestError(
            f"{source}: holds no audio ({names}); give a folder with audio or a manifest"
        )
    files = {path.relative_to(source).as_posix(): path for path in found}

    def read(name: str) -> Iterator[Bytes]:
        resampler: audio.StreamResampler | None = None
        for chunk, rate in audio.chunks(files[name], chunk_s=10.0):
            resampler = resampler or audio.StreamResampler(rate, config.sample_rate)
            yield mulaw_encode(resampler.push(chunk))
        if resampler:
            yield mulaw_encode(resampler.flush())

    return list(files), read, stamps(found)


def _from_manifest(source: Path, config: AudioConfig) -> tuple[list[str], Reader, Any] | None:
    """Return the clips of a manifest, or None of a folder without one."""
    if source.is_dir() and not any((source / name).is_file() for name in _MANIFESTS):
        return None
    from speechkit import manifests

    cuts = {cut.id: cut for cut in manifests.read(source)}

    def read(name: str) -> Iterator[Bytes]:
        yield mulaw_encode(audio.load_cut(cuts[name], sample_rate=config.sample_rate))

    paths = {Path(s.source) for cut in cuts.values() for s in _sources(cut)}
    origin = [manifests.fingerprint(cuts.values()), stamps(sorted(p for p in paths if p.exists()))]
    return list(cuts), read, origin


def _sources(cut: Any) -> list[Any]:
    """Return the files of a plain cut; a mixed one has none that it owns."""
    recording = getattr(cut, "recording", None)
    return [s for s in recording.sources if s.type == "file"] if recording else []


def _shuffled(names: list[str], seed: int) -> list[str]:
    """Return names in the order of a hash: the same whatever else the folder holds."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())


def _splits(whole: Cached, config: AudioConfig) -> dict[str, Stream]:
    """Cut the stream between files, where the fractions of validation and test are reached."""
    parts = {"valid": config.valid_fraction, "test": config.test_fraction}
    parts = {name: part for name, part in parts.items() if part}
    if len(whole.entries) <= len(parts):
        raise RequestError(
            f"{len(whole.entries)} audio files for the splits train, {', '.join(parts)}: a file "
            "belongs to one split; cut them into more files, or set a fraction to 0"
        )
    stops: NDArray[np.int64] = np.array([entry.stop for entry in whole.entries])
    splits, last = {}, len(stops)
    for spare, (name, part) in enumerate(reversed(parts.items())):
        wanted = stops[last - 1] - part * stops[-1]
        # at least one file for this split, and for each one that is still to come
        first = int(np.searchsorted(stops, wanted, side="left")) + 1
        first = min(max(first, len(parts) - spare), last - 1)
        splits[name] = Stream(whole.data[stops[first - 1] : stops[last - 1]])
        last = first
    return {"train": Stream(whole.data[: stops[last - 1]]), **dict(reversed(splits.items()))}
