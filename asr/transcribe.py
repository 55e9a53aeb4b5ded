"""``speechkit asr transcribe``: files, folders or standard input to text, JSON or captions."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn

from speechkit.asr import formats
from speechkit.asr.decoding import DecodingConfig
from speechkit.asr.hypothesis import Hypothesis
from speechkit.asr.transcriber import Transcriber
from speechkit.audio import SAMPLE_RATE, SUFFIXES, files_below, info, resample
from speechkit.errors import JobError, RequestError
from speechkit.files import write_text
from speechkit.pcm import standard_input

logger = logging.getLogger(__name__)

Format = Literal["txt", "json", "srt", "ctm", "textgrid"]

_STDIN = "-"
_CHUNK_S = 1.0


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
        a folder that gets a file for each recording, by its name, which is that below the folder
        given, with the folder's own name in front where several are given; without it all is
        printed.
    rate
        samples per second of the PCM on standard input.
    """
    if rate <= 0:
        raise RequestError(f"rate {rate}: must be positive")
    recordings = list(_recordings(files))
    paths = _paths([name for name, _ in recordings], format, out)
    transcriber = Transcriber.load(model, config)
    if transcriber.recogniser.inputs.frontend is None:
        raise RequestError(
            f"{model}: reads stored features, not audio; give cuts to `speechkit asr evaluate`"
        )
    failed = []
    with _progress() as progress:
        bar = progress.add_task("", total=len(recordings))
        for (name, source), path in zip(recordings, paths, strict=True):
            progress.update(bar, description=escape(name))
            try:
                hypothesis, duration_s = _transcribe(transcriber, source, rate)
            except JobError as error:
                failed.append(name)
                logger.warning("%s", error)
                continue
            finally:
                progress.advance(bar)
            if path is not None:
                write_text(path, render(hypothesis, format, name=name, duration_s=duration_s))
            else:
                _print(hypothesis, name, format, duration_s, alone=len(recordings) == 1)
    if failed:
        shown = ", ".join(failed)
        logger.warning("%d of %d not transcribed: %s", len(failed), len(recordings), shown)
    return 1 if failed else 0


def _progress() -> Progress:
    """Show which recording is heard and for how long, since one may last for hours."""
    console = Console(stderr=True)
    columns = (SpinnerColumn(), *Progress.get_default_columns(), TimeElapsedColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _recordings(files: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, path or -), folders being searched.

    A name is a path below its folder, with the folder's own name in front if there are several
    inputs.
    """
    for file in files:
        path = Path(file)
        if file == _STDIN or not path.is_dir():
            yield ("standard-input" if file == _STDIN else file), file
            continue
        found = files_below(path)
        if not found:
            raise RequestError(
                f"{file}: holds no file that ends in {', '.join(sorted(SUFFIXES))}; name files"
            )
        front = Path() if len(files) == 1 else Path(path.name)
        yield from ((str(front / p.relative_to(path).as_posix()), str(p)) for p in found)


def _paths(names: list[str], form: Format, out: Path | None) -> list[Path | None]:
    """Return the file of each transcript below ``out``, or None for each that is printed.

    Raises
    ------
    RequestError
        if two transcripts would be one file.
    """
    if out is None:
        return [None] * len(names)
    suffix = {"textgrid": "TextGrid"}.get(form, form)
    owners: dict[Path, str] = {}
    for name in names:
        path = Path(name)
        # nothing is written outside of the folder
        inside = Path(path.name) if path.is_absolute() or ".." in path.parts else path
        file = out / inside.with_name(f"{inside.name}.{suffix}")
        if file in owners:
            raise RequestError(
                f"{owners[file]} and {name}: would both be written to {file}; give the folder that "
                "holds both, or transcribe them into different folders"
            )
        owners[file] = name
    return list(owners)


def _transcribe(transcriber: Transcriber, source: str, rate: int) -> tuple[Hypothesis, float]:
    """Return the transcript and the recording's length in seconds."""
    if source != _STDIN:
        return transcriber.transcribe(source), info(source).duration
    frontend = transcriber.recogniser.inputs.frontend
    assert frontend is not None
    audio = np.concatenate(list(standard_input(max(1, round(_CHUNK_S * rate)))))
    heard = resample(audio, rate, frontend.config.sample_rate)
    return transcriber.transcribe(heard), len(audio) / rate


def _print(
    hypothesis: Hypothesis, name: str, form: Format, duration_s: float, *, alone: bool
) -> None:
    """Print a transcript, with its name if it is one of several."""
    if form == "json":
        line = json.dumps({"file": name, **hypothesis.to_dict()}, ensure_ascii=False) + "\n"
    elif form == "txt" and not alone:
        line = f"{name}\t{hypothesis.text}\n"
    else:
        head = "" if alone or form == "ctm" else f"# {name}\n"
        line = head + render(hypothesis, form, name=name, duration_s=duration_s)
    sys.stdout.write(line)
    sys.stdout.flush()


def render(hypothesis: Hypothesis, form: Format, *, name: str, duration_s: float) -> str:
    """Return the transcript of a recording of so many seconds in a format."""
    renderers: dict[Format, Callable[[], str]] = {
        "txt": lambda: formats.to_txt(hypothesis),
        "json": lambda: formats.to_json(hypothesis),
        "srt": lambda: formats.to_srt(hypothesis),
        "ctm": lambda: formats.to_ctm(hypothesis, recording=name),
        "textgrid": lambda: formats.to_textgrid(hypothesis, duration_s=duration_s),
    }
    return renderers[form]()
