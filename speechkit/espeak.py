"""Speech from text by espeak-ng, through ctypes and the package `espeakng-loader` (GPL-3).

espeak-ng keeps state between utterances (the phase of its pitch flutter, random generators,
filter memories), and neither its re-initialisation nor its seed resets all of it. Here a fresh
copy of the library is therefore loaded for every utterance, which costs about two milliseconds
and makes equal calls give equal samples, whatever was spoken before.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speechkit.audio import SAMPLE_RATE, Audio, as_float, resample
from speechkit.errors import JobError, RequestError

RATES_WPM = (80, 450)
# the constants of espeak-ng's speak_lib.h
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _IPA = 2, 0x8000, 1, 2
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_WORD, _END = 1, 5
# no variant clips at this volume, some do at the default of 100
_QUIET = 40
_TRIM_BELOW_PEAK = 0.004
_TRIM_KEEP_S = 0.01
_LOCK = threading.Lock()

Word = tuple[str, float, float]


@dataclass(frozen=True)
class Voice:
    """A voice: an accent (a language of espeak-ng), a variant (the timbre) and a manner.

    Parameters
    ----------
    name
        "en-us", or with a variant "en-us+f3".
    pitch, pitch_range
        0 to 99; 50 is what the accent and variant ask for.
    """

    name: str
    rate_wpm: int = 175
    pitch: int = 50
    pitch_range: int = 50

    def __post_init__(self) -> None:
        slow, fast = RATES_WPM
        if not slow <= self.rate_wpm <= fast:
            raise RequestError(f"rate_wpm {self.rate_wpm}: must be from {slow} to {fast}")
        for key in ("pitch", "pitch_range"):
            if not 0 <= getattr(self, key) <= 99:
                raise RequestError(f"{key} {getattr(self, key)}: must be from 0 to 99")


@dataclass(frozen=True)
class Utterance:
    """Speech at 16 kHz without silence around it, and its (word, start_s, end_s) in order."""

    audio: Audio
    words: list[Word]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("message", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # in characters, from 1
        ("length", ctypes.c_int),
        ("audio_ms", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@dataclass(frozen=True)
class _Mark:
    """A word or the end of a clause, at a sample of the raw output."""

    type: int
    position: int
    sample: int


def is_installed() -> bool:
    """Say whether the extra that this module needs is there."""
    try:
        _loader()
    except RequestError:
        return False
    return True


@cache
def variants() -> frozenset[str]:
    """Return what can follow the plus sign of a voice name."""
    return frozenset(os.listdir(Path(_loader().get_data_path(), "voices", "!v")))


def speak(text: str, voice: Voice) -> Utterance:
    """Speak ``text``; equal calls give equal samples.

    Raises
    ------
    RequestError
        if the extra is missing, there is no such voice, or the text has nothing to say.
    """
    with _library() as (library, interrupted):
        rate_hz, samples, marks = _synthesize(library, text, voice, interrupted)
    level = np.abs(samples.astype(np.int32))
    loud = level > _TRIM_BELOW_PEAK * level.max(initial=0)
    words = _words(text, marks, rate_hz, loud)
    if not loud.any() or not words:
        raise RequestError(f"text {text!r}: {voice.name} has nothing to say; give words")
    audio = resample(as_float(samples), rate_hz, SAMPLE_RATE)
    first, last = np.flatnonzero(loud)[[0, -1]] / rate_hz
    begin = max(0, round((first - _TRIM_KEEP_S) * SAMPLE_RATE))
    end = min(len(audio), round((last + _TRIM_KEEP_S) * SAMPLE_RATE))
    return Utterance(audio[begin:end], _shift(words, begin / SAMPLE_RATE, end / SAMPLE_RATE))


def phonemes(texts: Sequence[str], *, accent: str = "en-us") -> list[str]:
    """Return each text as IPA; the words are separated by spaces.

    Raises
    ------
    RequestError
        as for `speak`.
    """
    with _library() as (library, interrupted):
        _choose(library, accent)
        return [_phonemes(library, text) for text in texts if not interrupted]


def _loader() -> Any:
    try:
        import espeakng_loader
    except ImportError as error:
        raise RequestError(
            "the synthetic corpus needs espeakng-loader; "
            "install it: pip install 'sparse-speechkit[synth]'"
        ) from error
    return espeakng_loader


@contextmanager
def _kept_back() -> Iterator[list[int]]:
    """Yield the interrupts so far, which are raised at the end.

    ctypes drops what is raised while C calls Python: the speech would lack a block, and nobody
    would know. And a library that was not unloaded would speak the next utterance otherwise.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted  # signals are handled in the main one
        return
    former = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, former)
        if noted:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, list[int]]]:
    """Yield the library as newly loaded, and the interrupts kept back until it is unloaded."""
    loader = _loader()
    with _LOCK, _kept_back() as interrupted:
        library = ctypes.CDLL(loader.get_library_path())
        try:
            if (
                library.espeak_Initialize(
                    _SYNCHRONOUS, 0, os.fsencode(loader.get_data_path()), _DONT_EXIT
                )
                < 0
            ):
                raise JobError(f"espeak-ng cannot read its data in {loader.get_data_path()}")
            library.espeak_ng_SetRandSeed(ctypes.c_long(1))  # else it is the time of day
            yield library, interrupted
        finally:
            library.espeak_Terminate()
            _unload(library._handle)


def _unload(handle: int) -> None:
    if sys.platform == "win32":
        ctypes.windll.kernel32.FreeLibrary(ctypes.c_void_p(handle))
    else:
        ctypes.CDLL(None).dlclose(ctypes.c_void_p(handle))


def _choose(library: ctypes.CDLL, name: str) -> None:
    variant = name.partition("+")[2]
    unknown = variant and variant not in variants()
    if unknown or library.espeak_SetVoiceByName(name.encode()) != 0:
        raise RequestError(
            f"voice {name!r}: espeak-ng has no such voice; give one of its languages, such as "
            "en-us, which may be followed by a variant, such as +f3"
        )


def _synthesize(
    library: ctypes.CDLL, text: str, voice: Voice, interrupted: list[int]
) -> tuple[int, NDArray[np.int16], list[_Mark]]:
    """Return (sample rate, samples, marks) of the raw output."""
    blocks: list[NDArray[np.int16]] = [np.zeros(0, dtype=np.int16)]
    marks: list[_Mark] = []

    def collect(samples: Any, count: int, events: Any) -> int:
        if interrupted:
            return 1  # speak no further
        if count > 0:
            blocks.append(np.ctypeslib.as_array(samples, shape=(count,)).copy())
        for event in events:
            if event.type == 0:
                return 0
            marks.append(_Mark(event.type, event.text_position - 1, event.sample))
        return 0

    callback = _Callback(collect)
    library.espeak_SetSynthCallback(callback)
    _choose(library, voice.name)
    settings = {
        _RATE: voice.rate_wpm,
        _VOLUME: _QUIET,
        _PITCH: voice.pitch,
        _RANGE: voice.pitch_range,
        _WORD_GAP: 0,
    }
    for parameter, value in settings.items():
        library.espeak_SetParameter(parameter, value, 0)
    data = text.encode() + b"\0"
    status = library.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, 1, 0, _UTF8, None, None)
    if status != 0 or library.espeak_Synchronize() != 0:
        raise JobError(f"espeak-ng cannot speak {text!r} as {voice.name} (status {status})")
    return library.espeak_ng_GetSampleRate(), np.concatenate(blocks), marks


def _words(text: str, marks: list[_Mark], rate_hz: int, loud: NDArray[np.bool_]) -> list[Word]:
    """Return the words of ``text`` with their times in the raw output.

    espeak-ng runs some words together ("in the") and reports only the first of them: the
    unreported ones share its time in proportion to their letters. It counts a pause to the word
    before it; here that word ends with its last ``loud`` sample.
    """
    spans = _token_spans(text)
    starts: dict[int, int] = {}
    for mark in marks:
        if mark.type == _WORD:
            token = max((i for i, (at, _) in enumerate(spans) if at <= mark.position), default=0)
            starts.setdefault(token, mark.sample)
    if not starts:
        return []
    starts[0] = starts.pop(min(starts))
    groups = [*sorted(starts), len(spans)]
    words: list[Word] = []
    for first, after in pairwise(groups):
        start = starts[first]
        pause = min((m.sample for m in marks if m.type == _END and m.sample > start), default=start)
        spoken = np.flatnonzero(loud[start:pause])
        end = start + int(spoken[-1]) + 1 if len(spoken) else start
        end = min(end, starts.get(after, end))
        tokens = [text[at:stop] for at, stop in spans[first:after]]
        words += _divide(tokens, start / rate_hz, end / rate_hz)
    return words


def _token_spans(text: str) -> list[tuple[int, int]]:
    spans, position = [], 0
    for token in text.split():
        begin = text.index(token, position)
        position = begin + len(token)
        spans.append((begin, position))
    return spans


def _divide(tokens: list[str], start_s: float, end_s: float) -> list[Word]:
    letters = np.cumsum([0, *map(len, tokens)])
    edges = np.interp(letters, [0, letters[-1]], [start_s, end_s]).tolist()
    return list(zip(tokens, edges, edges[1:], strict=False))


def _shift(words: list[Word], begin_s: float, end_s: float) -> list[Word]:
    """Return the words in the time of the part from ``begin_s`` to ``end_s``."""

    def moved(time_s: float) -> float:
        return min(max(time_s, begin_s), end_s) - begin_s

    return [(word, moved(start_s), moved(stop_s)) for word, start_s, stop_s in words]


def _phonemes(library: ctypes.CDLL, text: str) -> str:
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    buffer = ctypes.create_string_buffer(text.encode())
    rest = ctypes.c_void_p(ctypes.addressof(buffer))
    clauses = []
    while rest.value:
        clauses.append(library.espeak_TextToPhonemes(ctypes.byref(rest), _UTF8, _IPA).decode())
    return " ".join(clauses)
