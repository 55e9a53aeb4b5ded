"""NeMo manifest rows as lhotse cuts.

A row has `audio_filepath`, and where known `duration`, `offset`, `sample_rate`, `text`, `label` and
`speaker`. `start` and `end` bound what the text and label speak of, in seconds within the clip.
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
from lhotse import MonoCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource

from speechkit.audio import MOST_FRAMES, SAMPLE_RATE
from speechkit.errors import RequestError

logger = logging.getLogger(__name__)

Row = dict[str, Any]

# these keys have fields of their own in a cut; all others go to the supervision's `custom`
_FIELDS = ("audio_filepath", "duration", "offset", "sample_rate", "text", "speaker", "start", "end")
# beyond these a row is mistaken: a rate is in samples a second, a length in seconds (30 years)
_FASTEST, _LONGEST_S = 10_000_000, 1e9
_FEATURE_KEYS = ("feats", "features", "feature_path", "frames", "utt")


def to_cuts(rows: Iterable[tuple[int, Row]], manifest: Path) -> list[MonoCut]:
    """Turn rows into cuts, in their order.

    No audio is opened where a row gives duration and sample rate. Durations in such manifests are
    rounded, commonly to a millisecond, so a file may be shorter than its cut by half of one. A
    file that cannot be opened never stops the reading: loading it or `data check` names it.

    Parameters
    ----------
    rows
        line numbers, for messages, and rows.
    manifest
        the absolute path of the file they come from; audio paths are relative to its folder.

    Raises
    ------
    RequestError
        if a row names no audio, or holds a value of the wrong type.
    """
    clips = [_clip(row, f"{manifest}, line {number}", manifest.parent) for number, row in rows]
    # clips of one file share a recording, which must reach to the end of the last of them
    extents: dict[Path, int] = {}
    for clip in clips:
        extents[clip.audio] = max(extents.get(clip.audio, 0), clip.start + clip.length)
    return [_cut(clip, extents[clip.audio]) for clip in clips]


@dataclass(frozen=True, kw_only=True)
class _Clip:
    """A checked row; start and length in samples at the file's rate."""

    audio: Path
    file_id: str
    sample_rate: int
    start: int
    length: int
    supervision: Row

    @property
    def id(self) -> str:
        seconds = self.start / self.sample_rate
        return f"{self.file_id}@{seconds:.3f}" if self.start else self.file_id


def _clip(row: Row, where: str, folder: Path) -> _Clip:
    name = row.get("audio_filepath")
    if not isinstance(name, str) or not name:
        raise RequestError(f"{where}: {_no_audio(row)}")
    audio = Path(os.path.abspath(folder / name))
    duration_s, rate, frames = _seconds(row, "duration", where), row.get("sample_rate"), 0
    if duration_s is None or rate is None:
        rate, frames = _header(audio, rate)
    if type(rate) is not int or not 0 < rate <= _FASTEST:
        raise RequestError(
            f"{where}: sample_rate {rate!r} must be a whole number from 1 to {_FASTEST}"
        )
    start = round((_seconds(row, "offset", where) or 0.0) * rate)
    length = frames - start if duration_s is None else round(duration_s * rate)
    if length < 1:
        # an empty or unreadable file, which a data check is to name: as long as the row speaks of
        bounds = (_seconds(row, name, where) or 0.0 for name in ("start", "end"))
        length = 1 + round(max(bounds) * rate)
    return _Clip(
        audio=audio,
        file_id=_file_id(name, audio, folder),
        sample_rate=rate,
        start=start,
        length=length,
        supervision=_supervision(row, where, length / rate),
    )


def _supervision(row: Row, where: str, duration_s: float) -> Row:
    text, speaker = row.get("text"), row.get("speaker")
    if text is not None and not isinstance(text, str):
        raise RequestError(f"{where}: text {text!r} must be a string or null")
    start_s, end_s = _seconds(row, "start", where) or 0.0, _seconds(row, "end", where)
    end_s = duration_s if end_s is None else min(end_s, duration_s)
    if end_s <= start_s:
        raise RequestError(f"{where}: start {start_s} s must lie before end {end_s} s")
    custom = {key: value for key, value in row.items() if key not in _FIELDS}
    if custom.get("label") is not None:
        custom["label"] = str(custom["label"])
    return {
        "start": start_s,
        "duration": end_s - start_s,
        "text": text,
        # all clips of an empty one would be of one speaker
        "speaker": None if speaker is None else str(speaker).strip() or None,
        "custom": custom,
    }


def _cut(clip: _Clip, extent: int) -> MonoCut:
    recording = Recording(
        id=clip.file_id,
        sources=[AudioSource(type="file", channels=[0], source=str(clip.audio))],
        sampling_rate=clip.sample_rate,
        num_samples=extent,
        duration=extent / clip.sample_rate,
    )
    return MonoCut(
        id=clip.id,
        start=clip.start / clip.sample_rate,
        duration=clip.length / clip.sample_rate,
        channel=0,
        supervisions=[
            SupervisionSegment(id=clip.id, recording_id=clip.file_id, **clip.supervision)
        ],
        recording=recording,
    )


def _no_audio(row: Row) -> str:
    name = next((row[key] for key in ("id", "utt", "text", "file") if row.get(key)), None)
    problem = f"has no audio_filepath (id or text {name!r}; keys: {', '.join(row)})"
    if any(key in row for key in _FEATURE_KEYS):
        return f"{problem}; features come in through their own `data prepare`, not as a manifest"
    return f"{problem}; give lhotse cuts, or NeMo rows with audio_filepath"


def _seconds(row: Row, key: str, where: str) -> float | None:
    value = row.get(key)
    if value is None:
        return None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= _LONGEST_S:
        raise RequestError(
            f"{where}: {key} {value!r} must be a number of seconds, from 0 to {_LONGEST_S:g}"
        )
    return float(value)


def _header(audio: Path, rate: Any) -> tuple[Any, int]:
    """Return (sample rate, samples) of a file; of an unreadable one, a usable rate and 0."""
    try:
        header = soundfile.info(os.fsencode(audio))
    except (soundfile.LibsndfileError, TypeError, UnicodeError):
        logger.warning("%s: missing or unreadable", audio)
        return (SAMPLE_RATE if rate is None else rate), 0
    # beyond that a length is made up, which loading refuses
    return header.samplerate, header.frames if header.frames <= MOST_FRAMES else 0


def _file_id(name: str, audio: Path, folder: Path) -> str:
    if audio.is_relative_to(folder):
        return f"{folder.name}/{audio.relative_to(folder).as_posix()}"
    if Path(name).is_absolute():
        return audio.as_posix()
    return Path(os.path.normpath(f"{folder.name}/{name}")).as_posix()
