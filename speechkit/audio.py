"""Reading, resampling and writing audio: mono float32 in [-1, 1], 16 kHz unless said otherwise.

Every failure is an `AudioError` that names the file and the reason, so that a job over many clips
can list the bad ones and go on.
"""

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import soundfile
import soxr
from numpy.typing import ArrayLike, NDArray

from speechkit.errors import AudioError, JobError, RequestError
from speechkit.files import atomic_path

if TYPE_CHECKING:
    from lhotse.cut import Cut

SAMPLE_RATE = 16_000
INT16_SCALE = 32_768.0
# of files that are looked for in folders
SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"})

# manifests round durations to milliseconds, so that a file may end this much early
_ROUNDING_S = 0.002

# integers of 32 bits that were not scaled; energies of more would overflow
_LOUDEST = 2.0**31

_PROMISED = re.compile(r"^\s*(?:data|SSND)\s*:\s*(\d+) \(should be (\d+)\)", re.MULTILINE)
_UNKNOWN_SIZE = 0x7FFFF000
# a year and more at any rate
MOST_FRAMES = 2**43
# of a WAV file without samples
MOST_HEADER_BYTES = 4096

# of a page of Ogg (RFC 3533): its sign, the bytes before the table of segments, and all at most
_OGG_PAGE, _OGG_HEADER, _OGG_PAGE_MOST = b"OggS", 27, 65_307

Audio = NDArray[np.float32]


def as_float(samples: ArrayLike) -> Audio:
    """Return mono samples as float32 in [-1, 1]; int16 is scaled, floats are taken as they are.

    Raises
    ------
    AudioError
        if the array is not one-dimensional, is of another type, or holds NaN or numbers that are
        no samples.
    """
    array = np.asarray(samples)
    if array.ndim != 1:
        raise AudioError(
            f"samples of shape {array.shape}: give one channel as a one-dimensional array"
        )
    if array.dtype == np.int16:
        return array.astype(np.float32) / np.float32(INT16_SCALE)
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(f"samples of type {array.dtype}: give int16, or floats in [-1, 1]")
    audio = array.astype(np.float32)
    _refuse_nonsense(audio, "the array")
    return audio


def as_int16(audio: Audio) -> NDArray[np.int16]:
    """Return floats in [-1, 1] as int16; what lies outside is clipped."""
    scaled = np.clip(np.round(audio * INT16_SCALE), -INT16_SCALE, INT16_SCALE - 1)
    return scaled.astype(np.int16)


def info(path: Path | str) -> Any:
    """Return what soundfile says of a file: ``samplerate``, ``channels``, ``frames``, ``duration``.

    Raises
    ------
    AudioError
        as for `load`, as far as the header tells.
    """
    with _open(path):
        # as bytes, since names need not be UTF-8
        return soundfile.info(os.fsencode(path))


def files_below(folder: Path | str) -> list[Path]:
    """Return the files below a folder, links followed, that are audio by their names, sorted.

    Not those whose name, or whose folder's name, begins with a dot: systems leave such files beside
    others.
    """
    found: list[Path] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(where)
        # sorted: of two names for one folder, the first counts
        folders[:] = [] if real in seen else sorted(name for name in folders if name[0] != ".")
        if real in seen:
            continue  # by a link that leads back, say
        seen.add(real)
        paths = (Path(where, name) for name in names if name[0] != ".")
        found += (p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(found)


def load(
    path: Path | str,
    *,
    sample_rate: int = SAMPLE_RATE,
    offset_s: float = 0.0,
    duration_s: float | None = None,
) -> Audio:
    """Read a file (wav, flac, ogg, opus, mp3), mix its channels to one and resample.

    Parameters
    ----------
    offset_s, duration_s
        the part to read; all of it by default.

    Raises
    ------
    AudioError
        if the file is missing, is no audio, is truncated, holds no samples, or holds NaN.
    """
    with _open(path) as file:
        start = round(offset_s * file.samplerate)
        wanted = file.frames - start if duration_s is None else round(duration_s * file.samplerate)
        if file.frames and not 0 <= start < file.frames:
            raise AudioError(
                f"{path}: ends at {file.frames / file.samplerate:.3f} s, wanted is a part from "
                f"{offset_s:.3f} s on"
            )
        if wanted <= 0:
            raise AudioError(f"{path}: holds no samples")
        try:
            file.seek(start)
            samples = file.read(wanted, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError) as error:
            raise AudioError(f"{path}: cannot be decoded ({_reason(error)})") from error
        if len(samples) < wanted - _ROUNDING_S * file.samplerate:
            raise AudioError(
                f"{path}: truncated: {wanted / file.samplerate:.3f} s expected from "
                f"{offset_s:.3f} s on, {len(samples) / file.samplerate:.3f} s there"
            )
        native_rate = file.samplerate
    audio = resample(_mono(samples, path), native_rate, sample_rate)
    if len(samples) and not len(audio):
        raise AudioError(f"{path}: at {native_rate} Hz, {len(samples)} samples last no time")
    return audio


def load_cut(cut: "Cut", *, sample_rate: int = SAMPLE_RATE) -> Audio:
    """Load the audio of a lhotse cut.

    A plain cut of a file is read directly; one that lhotse has mixed, padded or perturbed goes
    through lhotse.

    Raises
    ------
    AudioError
        as for `load`, and when lhotse cannot produce the audio.
    """
    if (path := plain_file(cut)) is not None:
        return load(path, sample_rate=sample_rate, offset_s=cut.start, duration_s=cut.duration)
    try:
        samples = cut.load_audio()
    except Exception as error:
        # lhotse raises many unrelated types here, all of which mean the same to a caller
        raise AudioError(f"{cut.id}: cannot be loaded ({_reason(error)})") from error
    if samples is None:
        raise AudioError(f"{cut.id}: has no audio")
    return resample(_mono(samples.T, cut.id), cut.sampling_rate, sample_rate)


def plain_file(cut: "Cut") -> Path | None:
    """Return the file that a cut is a plain part of; None if lhotse must make the audio.

    It must where the cut takes some of several channels. A manifest that names one channel says
    nothing of the others, which are mixed.
    """
    recording: Any = getattr(cut, "recording", None)
    return file_of(cut) if recording is not None and recording.num_channels == 1 else None


def file_of(cut: "Cut") -> Path | None:
    """Return the one file that a cut's audio is from, all of whose channels it may not take."""
    recording: Any = getattr(cut, "recording", None)
    if recording is None or recording.transforms:
        return None
    sources = recording.sources
    return Path(sources[0].source) if [source.type for source in sources] == ["file"] else None


def chunks(path: Path | str, *, chunk_s: float = 1.0) -> Iterator[tuple[Audio, int]]:
    """Yield (mono chunk, native sample rate) along a file, in memory bounded by the chunk."""
    with _open(path) as file:
        if file.frames == 0:
            raise AudioError(f"{path}: holds no samples")
        size, rate = max(1, round(chunk_s * file.samplerate)), file.samplerate
        left = file.frames
        while left > 0:
            # not file.blocks, which fills up what a damaged file lacks with what came before
            wanted = min(size, left)
            try:
                block = file.read(wanted, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError) as error:
                raise AudioError(f"{path}: cannot be decoded ({_reason(error)})") from error
            if len(block):
                yield _mono(block, path), rate
            left -= len(block)
            if len(block) < wanted:
                if left > _ROUNDING_S * rate:
                    raise AudioError(
                        f"{path}: truncated: {file.frames / rate:.3f} s expected, "
                        f"{(file.frames - left) / rate:.3f} s there"
                    )
                return


def resample(audio: Audio, from_rate: int, to_rate: int) -> Audio:
    """Resample by soxr's high-quality filter; the same array when the rates are equal."""
    if from_rate == to_rate:
        return audio
    return np.asarray(soxr.resample(audio, from_rate, to_rate), dtype=np.float32)


class StreamResampler:
    """The streaming twin of `resample`: same samples, whatever the chunks."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        if min(from_rate, to_rate) <= 0:
            raise RequestError(f"sample rates {from_rate} and {to_rate}: must be positive")
        self._stream = (
            None
            if from_rate == to_rate
            else soxr.ResampleStream(from_rate, to_rate, 1, dtype="float32")
        )

    def push(self, chunk: Audio) -> Audio:
        """Take a chunk at the old rate; return what is ready at the new one."""
        return chunk if self._stream is None else self._stream.resample_chunk(chunk)

    def flush(self) -> Audio:
        """Return the rest of the stream."""
        empty = np.zeros(0, dtype=np.float32)
        return empty if self._stream is None else self._stream.resample_chunk(empty, last=True)


def write_audio(path: Path | str, audio: Audio, *, sample_rate: int = SAMPLE_RATE) -> None:
    """Write 16-bit samples as what the name ends in, .wav or .flac; whole or not at all.

    Raises
    ------
    JobError
        as for `writing`.
    """
    with writing(path, sample_rate=sample_rate) as write:
        write(audio)


@contextmanager
def writing(
    path: Path | str, *, sample_rate: int = SAMPLE_RATE
) -> Iterator[Callable[[Audio], int]]:
    """Yield what writes a piece of audio behind the others, and says at which sample it begins.

    The file gets its name when all of it is there.

    Raises
    ------
    JobError
        if it cannot be written, for want of space say.
    """
    samples = 0
    with atomic_path(path) as temporary:
        name = os.fsencode(temporary)
        try:
            with soundfile.SoundFile(name, "w", sample_rate, 1, "PCM_16") as file:

                def write(audio: Audio) -> int:
                    nonlocal samples
                    file.write(as_int16(audio))
                    samples += len(audio)
                    return samples - len(audio)

                yield write
            # what is lost while the file is closed, soundfile does not tell
            whole = samples == 0 or soundfile.info(name).frames == samples
        except soundfile.LibsndfileError as error:
            raise JobError(f"{path}: cannot be written ({_reason(error)})") from error
        if not whole:
            raise JobError(f"{path}: cannot be written whole; is the disk full?")


def _open(path: Path | str) -> soundfile.SoundFile:
    path = Path(path)
    try:
        status = path.stat()
    except FileNotFoundError:
        raise AudioError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # of a name that no file can have
        reason = getattr(error, "strerror", None) or _reason(error)
        raise AudioError(f"{path}: cannot be opened ({reason})") from error
    if path.is_dir():
        raise AudioError(f"{path}: is a folder, not an audio file")
    if status.st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes)")
    try:
        file = soundfile.SoundFile(os.fsencode(path))
        _refuse_truncated(file, path)
        _refuse_endless(file, path)
        _refuse_unclosed(file, path)
        return file
    except (soundfile.LibsndfileError, TypeError) as error:
        raise AudioError(f"{path}: is not readable as audio ({_reason(error)})") from error


def _refuse_truncated(file: soundfile.SoundFile, path: Path) -> None:
    """Refuse a WAV or AIFF whose header promises more than the file holds, and half a page of Ogg.

    libsndfile reads what is there and notes the difference in its log, or not even that. Programs
    that write to a pipe cannot know the length and promise the most that fits: that is no
    truncation.
    """
    if file.format == "OGG" and (lacking := _lacking_of_last_page(path)):
        file.close()
        raise AudioError(f"{path}: truncated: its last page of Ogg lacks {lacking} bytes")
    sizes = _PROMISED.search(file.extra_info)
    if sizes is None:
        return
    promised, found = int(sizes[1]), int(sizes[2])
    if found < promised < _UNKNOWN_SIZE:
        file.close()
        raise AudioError(f"{path}: truncated: {promised} bytes of samples expected, {found} there")


def _refuse_endless(file: soundfile.SoundFile, path: Path) -> None:
    """Refuse a FLAC from a pipe, whose header leaves the length open: libsndfile makes up one."""
    if file.frames > MOST_FRAMES:
        file.close()
        raise AudioError(f"{path}: its header states no length; encode it again, from a file")


def _refuse_unclosed(file: soundfile.SoundFile, path: Path) -> None:
    """Refuse a WAV whose header says that there are no samples, which yet are there."""
    size = path.stat().st_size
    if file.format in ("WAV", "WAVEX") and file.frames == 0 and size > MOST_HEADER_BYTES:
        file.close()
        raise AudioError(
            f"{path}: its header promises no samples, but {size} bytes are there: the recording "
            "was not closed; write its header anew"
        )


def _lacking_of_last_page(path: Path) -> int:
    """Return how many bytes are missing at the end of an Ogg file."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _OGG_PAGE_MOST))
        tail = file.read()
    start = tail.rfind(_OGG_PAGE)
    if start < 0:
        return 0  # something else stands behind the last page
    page = tail[start:]
    if len(page) < _OGG_HEADER:
        return _OGG_HEADER - len(page)
    segments = page[_OGG_HEADER - 1]
    table = page[_OGG_HEADER : _OGG_HEADER + segments]
    return max(0, _OGG_HEADER + segments + sum(table) - len(page))


def _mono(samples: NDArray[Any], name: Path | str) -> Audio:
    """Mix (samples, channels) to one channel, and refuse what cannot be sound."""
    audio = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1, dtype=np.float32)
    _refuse_nonsense(audio, name)
    return np.ascontiguousarray(audio, dtype=np.float32)


def _refuse_nonsense(audio: NDArray[Any], name: Path | str) -> None:
    if not np.isfinite(audio).all():
        raise AudioError(f"{name}: holds NaN or infinite samples")
    peak = np.abs(audio).max(initial=0.0)
    if peak > _LOUDEST:
        raise AudioError(f"{name}: samples of {peak:.3g}; floats are in [-1, 1]: is it damaged?")


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
