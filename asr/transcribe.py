"""``speechkit asr transcribe``: files, folders or standard input to text, JSON or captions."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress

from speechkit.asr import formats
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.hypothesis import Hypothesis
from speechkit.asr.transcriber import Transcriber
from speechkit.audio import SAMPLE_RATE, Audio, as_float, resample
from speechkit.errors import AudioError, RequestError
from speechkit.files import write_text

logger = logging.getLogger(__name__)

Format = Literal["txt", "json", "srt", "ctm", "textgrid"]

_STDIN = "-"
# a folder's files with these names are audio
_SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff"}


def transcribe(
    files: list[str],
    *,
    model: Path,
    format: Format = "txt",
    out: Path | None = None,
    rate: int = SAMPLE_RATE,
    config: DecodingConfig = DecodingConfig(),
) -> int:
    """Transcribe recordings; those that cannot be read are named, and the exit status is then 1.

    Parameters
    ----------
    files
        audio files of any rate and length, folders with such files in them, or - for raw 16-bit
        mono PCM on standard input.
    model
        the folder that `speechkit asr train` wrote as OUT/model.
    format
        txt: text alone; json: tokens, times and confidences, a line a file unless with out; srt:
        captions; ctm and textgrid: times of words.
    out
        a folder that gets a file for each recording, by its name; without it all is printed.
    rate
        samples per second of the PCM on standard input.
    """
    if rate <= 0:
        raise RequestError(f"rate {rate}: must be positive")
    recordings = dict(_recordings(files))
    transcriber = Transcriber.load(model, config)
    if transcriber.recogniser.inputs.frontend is None:
        raise RequestError(
            f"{model}: reads stored features, not audio; give cuts to `speechkit asr evaluate`"
        )
    failed = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for name, source in progress.track(list(recordings.items()), description="transcribing"):
            try:
                hypothesis = _transcribe(transcriber, source, rate)
            except AudioError as error:
                failed.append(name)
                logger.warning("%s", error)
                continue
            _deliver(hypothesis, name, format, out=out, alone=len(recordings) == 1)
    if failed:
        shown = ", ".join(failed)
        logger.warning("%d of %d not transcribed: %s", len(failed), len(recordings), shown)
    return 1 if failed else 0


def _recordings(files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path or -), folders being searched; a name is a path below its folder."""
    for file in files:
        path = Path(file)
        if file == _STDIN or not path.is_dir():
            yield ("standard-input" if file == _STDIN else file), file
            continue
        found = sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        if not found:
            raise RequestError(
                f"{file}: holds no file that ends in {', '.join(sorted(_SUFFIXES))}; name files"
            )
        yield from ((p.relative_to(path).as_posix(), str(p)) for p in found)


def _transcribe(transcriber: Transcriber, source: str, rate: int) -> Hypothesis:
    if source != _STDIN:
        return transcriber.transcribe(source)
    frontend = transcriber.recogniser.inputs.frontend
    assert frontend is not None
    audio = _standard_input()
    return transcriber.transcribe(resample(audio, rate, frontend.config.sample_rate))


def _standard_input() -> Audio:
    data = sys.stdin.buffer.read()
    if len(data) % 2:
        raise AudioError("standard input: ends in half a sample; give 16-bit PCM")
    return as_float(np.frombuffer(data, dtype="<i2").astype(np.int16))


def _deliver(
    hypothesis: Hypothesis, name: str, form: Format, *, out: Path | None, alone: bool
) -> None:
    """Write a transcript to its file, or print it, with its name if it is one of several."""
    if out is not None:
        suffix = {"textgrid": "TextGrid"}.get(form, form)
        path = Path(name)
        if path.is_absolute():
            path = Path(path.name)
        write_text(out / path.with_name(f"{path.name}.{suffix}"), render(hypothesis, form, name))
        return
    if form == "json":
        line = json.dumps({"file": name, **hypothesis.to_dict()}, ensure_ascii=False) + "\n"
    elif form == "txt" and not alone:
        line = f"{name}\t{hypothesis.text}\n"
    else:
        line = ("" if alone or form == "ctm" else f"# {name}\n") + render(hypothesis, form, name)
    sys.stdout.write(line)
    sys.stdout.flush()


def render(hypothesis: Hypothesis, form: Format, name: str) -> str:
    """Return a transcript in a format."""
    end_s = hypothesis.words[-1].end_s if hypothesis.words else 0.0
    renderers: dict[Format, Callable[[], str]] = {
        "txt": lambda: formats.to_txt(hypothesis),
        "json": lambda: formats.to_json(hypothesis),
        "srt": lambda: formats.to_srt(hypothesis),
        "ctm": lambda: formats.to_ctm(hypothesis, recording=name),
        "textgrid": lambda: formats.to_textgrid(hypothesis, duration_s=end_s),
    }
    return renderers[form]()
