"""Labelling selected clips one after the other: what is shown, and what is kept.

Every answer is on disk before the next clip is shown, in the same files that `al import` writes, so
that an interruption costs nothing and a second visit goes on where the first one ended.
"""

import datetime
import threading
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from speechkit.active_learning.annotations import (
    Annotation,
    Status,
    TextRules,
    check,
    read_labels,
    save,
)
from speechkit.active_learning.jsonl import Row
from speechkit.active_learning.select import read_selection
from speechkit.audio import load_cut, write_audio
from speechkit.errors import RequestError

_DONE: tuple[Status, ...] = ("labelled", "ignored")


@dataclass(frozen=True, slots=True)
class Progress:
    """Clips and seconds that are labelled or skipped, and those of the whole selection."""

    clips: int
    all_clips: int
    seconds: float
    all_seconds: float


class Labelling:
    """The clips of a selection with the labels given so far.

    Parameters
    ----------
    selection
        the folder that `al select` wrote.
    out
        the folder of labels; those that it holds are kept.
    rules
        what a text must keep to.
    choices
        the only texts there are, the classes of a spotter say; None for any text.
    annotator
        a name to write beside each label.

    Raises
    ------
    RequestError
        if there is no selection, or ``out`` holds a damaged file of labels.
    """

    def __init__(
        self,
        selection: Path,
        out: Path,
        *,
        rules: TextRules = TextRules(),
        choices: Sequence[str] | None = None,
        annotator: str | None = None,
    ) -> None:
        if out.resolve() == selection.resolve():
            raise RequestError(f"{out}: is the selection itself; give another folder to --out")
        self.rows, cuts = read_selection(selection)
        self.cuts: list[Cut] = list(cuts)
        if not self.cuts:
            raise RequestError(f"{selection}: no clip is selected; select some")
        self.out = out
        self.rules = rules
        self.choices = None if choices is None else _distinct(choices)
        self.annotator = annotator
        self.labels = read_labels(out)
        self._writing = threading.Lock()

    def __len__(self) -> int:
        return len(self.cuts)

    def given(self, index: int) -> Annotation | None:
        """Return what is known of a clip."""
        return self.labels.get(self.cuts[index].id)

    def suggestions(self, index: int) -> list[str]:
        """Return the texts to choose from: the choices, else the model's hypotheses."""
        row: Row = self.rows[index]
        if self.choices is not None:
            return self.choices
        best = [row["hypothesis"]] if row.get("hypothesis") is not None else []
        return list(dict.fromkeys([*best, *row.get("nbest", ())]))

    def text(self, index: int) -> str:
        """Return the text to begin with: the label given before, else the best hypothesis."""
        before = self.given(index)
        if before is not None and before.text is not None:
            return before.text
        hypothesis = self.rows[index].get("hypothesis") or ""
        return hypothesis if self.choices is None or hypothesis in self.choices else ""

    def next_open(self, after: int) -> int | None:
        """Return the next clip that has no answer, from the start again; None if all have one."""
        for step in range(1, len(self) + 1):
            index = (after + step) % len(self)
            before = self.given(index)
            if before is None or before.status not in _DONE:
                return index
        return None

    def label(self, index: int, text: str, *, seconds: float | None = None) -> str | None:
        """Keep a label; return None, or, of a text that cannot be one, why it was not kept."""
        cut = self.cuts[index]
        if self.choices is not None:
            chosen = [choice for choice in self.choices if _tidied(choice) == _tidied(text)]
            if not chosen:
                return f"{text!r} is none of {', '.join(self.choices)}"
            self._keep(self._annotation(cut, "labelled", chosen[0], seconds))
            return None
        checked = check(self._annotation(cut, "labelled", text, seconds), cut, self.rules)
        if checked.status == "rejected":
            return checked.detail
        self._keep(checked)
        return None

    def skip(self, index: int, *, seconds: float | None = None) -> None:
        """Set a clip aside; a label that it has stays."""
        self._keep(self._annotation(self.cuts[index], "ignored", None, seconds))

    def write_audio(self, index: int, folder: Path) -> Path:
        """Write a clip as a WAV file that a browser can play.

        Raises
        ------
        AudioError, JobError, OSError
            if the clip cannot be read, or not be written.
        """
        path = folder / f"{index:05d}.wav"
        with self._writing:  # two pages may come to one clip
            if not path.is_file():
                write_audio(path, load_cut(self.cuts[index]))
        return path

    def progress(self) -> Progress:
        """Count what is done."""
        done = [cut for cut in self.cuts if self._is_done(cut)]
        return Progress(
            len(done),
            len(self),
            sum(float(cut.duration) for cut in done),
            sum(float(cut.duration) for cut in self.cuts),
        )

    def _is_done(self, cut: Cut) -> bool:
        return cut.id in self.labels and self.labels[cut.id].status in _DONE

    def _annotation(
        self, cut: Cut, status: Status, text: str | None, seconds: float | None
    ) -> Annotation:
        return Annotation(
            id=cut.id,
            status=status,
            text=text,
            annotator=self.annotator,
            seconds=None if seconds is None else round(seconds, 1),
            updated=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        )

    def _keep(self, annotation: Annotation) -> None:
        save(self.out, [annotation], self.cuts)
        # what others saved to the folder meanwhile counts too
        self.labels = read_labels(self.out)


def _distinct(choices: Sequence[str]) -> list[str]:
    if not choices or not all(choice.strip() for choice in choices):
        raise RequestError(f"choices {list(choices)}: give labels that are not empty")
    if len(set(map(_tidied, choices))) < len(choices):
        raise RequestError(f"choices {list(choices)}: give each once")
    return list(choices)


def _tidied(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())
