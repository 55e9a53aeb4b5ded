"""Labels that come back from annotators: their states, and a store that never loses one."""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import jiwer
from lhotse import CutSet, SupervisionSegment
from lhotse.cut import Cut, MixedCut

from speechkit import manifests
from speechkit.active_learning.jsonl import Row, read_rows, write_rows
from speechkit.errors import RequestError
from speechkit.files import locked

LABELS_NAME = "labels.jsonl"

# in the order of what an import may replace: never a label by something less; a clip that was
# skipped may be tried after all, and a text that cannot be a label be given up
Status = Literal["unlabelled", "rejected", "ignored", "labelled"]
_RANKS: dict[Status, int] = {"unlabelled": 0, "rejected": 1, "ignored": 1, "labelled": 2}


@dataclass(frozen=True, kw_only=True)
class TextRules:
    """What an annotator's text must keep to.

    Attributes
    ----------
    characters
        the characters that a text may hold beside spaces; None for any that can be seen.
    allow_empty
        take an empty text for a label (nothing is said), not for a mistake.
    max_characters_per_s
        more than this in a second of audio cannot have been said.
    """

    characters: str | None = None
    allow_empty: bool = False
    max_characters_per_s: float = 40.0

    def fault(self, text: str, duration_s: float) -> str | None:
        """Return why a text cannot be a label; None if it can."""
        if not text:
            return None if self.allow_empty else "empty text; skip a clip in which nothing is said"
        hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn")}
        allowed = None if self.characters is None else {*self.characters, " "}
        unknown = hidden | (set() if allowed is None else set(text) - allowed)
        if unknown:
            return f"unknown characters {' '.join(repr(c) for c in sorted(unknown))}"
        if len(text) > self.max_characters_per_s * duration_s:
            return f"{len(text)} characters in {duration_s:.2f} s cannot have been said"
        return None


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What is known of one clip.

    Attributes
    ----------
    status
        unlabelled: nobody has done it; rejected: the text cannot be a label; ignored: skipped by
        the annotator; labelled.
    text
        the label; of a rejected one, what was given.
    detail
        why it was rejected.
    texts
        all texts, if several annotators did the clip, the newest first.
    disagreement
        their mean word error rate against the newest; None of a single one.
    annotator, seconds, updated
        who, how long it took, and when, as far as the tool says.
    previous
        labels that later ones have replaced, the oldest first.
    """

    id: str
    status: Status
    text: str | None = None
    detail: str | None = None
    texts: tuple[str, ...] = ()
    disagreement: float | None = None
    annotator: str | None = None
    seconds: float | None = None
    updated: str | None = None
    previous: tuple[str, ...] = ()


def resolve(id_: str, given: Sequence[Annotation]) -> Annotation:
    """Return the annotation of a clip from all that were given for it.

    The newest label counts; where times are missing, the one that comes first. The clip is ignored
    if all who opened it skipped it.
    """
    newest_first = sorted(given, key=lambda annotation: annotation.updated or "", reverse=True)
    labels = [annotation for annotation in newest_first if annotation.status == "labelled"]
    if not labels:
        tried = [annotation for annotation in newest_first if annotation.status == "rejected"]
        return (tried or newest_first or [Annotation(id=id_, status="unlabelled")])[0]
    texts = tuple(annotation.text or "" for annotation in labels)
    if len(texts) == 1:
        return labels[0]
    return replace(labels[0], texts=texts, disagreement=disagreement(texts))


def disagreement(texts: Sequence[str]) -> float:
    """Return the mean word error rate of the other texts against the first one.

    Against an empty text, which has no rate, any words count as 1.
    """
    reference, *others = (text.strip() for text in texts)
    rates = [
        jiwer.wer(reference, other) if reference and other else float(reference != other)
        for other in others
    ]
    return sum(rates) / len(rates)


def check(annotation: Annotation, cut: Cut, rules: TextRules) -> Annotation:
    """Return the annotation with a tidied text, rejected if that cannot be a label."""
    if annotation.status != "labelled":
        return annotation
    words = unicodedata.normalize("NFC", annotation.text or "").strip().split(" ")
    # not at any white space: a tab inside a text is a mistake, which the rules name
    text = " ".join(word for word in words if word)
    fault = rules.fault(text, cut.duration)
    if fault is None:
        return replace(annotation, text=text)
    return replace(annotation, text=text, status="rejected", detail=fault)


def merge(old: Annotation | None, new: Annotation) -> Annotation:
    """Return what to keep: a label gives way to a newer label alone, and that remembers it."""
    if old is None:
        return new
    if _RANKS[new.status] < _RANKS[old.status]:
        return old
    stale = bool(old.updated and new.updated and new.updated < old.updated)
    kept, other = (old, new) if stale and old.status == new.status else (new, old)
    replaced = _texts(other) if other.status == "labelled" else ()
    known = {*old.previous, *_texts(kept)}
    gone = tuple(text for text in replaced if text not in known)
    return replace(kept, previous=old.previous + gone)


def read_labels(folder: Path) -> dict[str, Annotation]:
    """Read the labels saved in a folder, by id; none if there is no file.

    Raises
    ------
    RequestError
        if the file is damaged; it is left as it is.
    """
    path = folder / LABELS_NAME
    if not path.exists():
        return {}
    known = {field.name for field in fields(Annotation)}
    labels = {}
    for number, row in enumerate(read_rows(path), start=1):
        if not isinstance(row.get("id"), str) or row.get("status") not in _RANKS:
            raise RequestError(f"{path}, row {number}: needs an id and a status; mend the file")
        values = {name: value for name, value in row.items() if name in known}
        lists = {name: tuple(row.get(name) or ()) for name in ("texts", "previous")}
        labels[row["id"]] = Annotation(**values | lists)
    return labels


def settled(path: Path) -> set[str]:
    """Return the ids that need no label any more: of a manifest's cuts, and of skipped clips.

    Parameters
    ----------
    path
        a manifest, or a folder with one, perhaps with labels.jsonl beside it.
    """
    ids = {cut.id for cut in manifests.read(path, allow_empty=True)}
    return ids | {id_ for id_, label in read_labels(path).items() if label.status == "ignored"}


def save(folder: Path, annotations: Iterable[Annotation], cuts: Iterable[Cut]) -> CutSet:
    """Merge annotations into a folder's labels.jsonl and cuts.jsonl.gz; return the labelled cuts.

    Each file is replaced as a whole, labels first; others who save to the same folder wait.

    Parameters
    ----------
    cuts
        of all clips that the folder is about, those with saved labels included.
    """
    by_id = {cut.id: cut for cut in cuts}
    with locked(folder):
        labels = read_labels(folder)
        for annotation in annotations:
            labels[annotation.id] = merge(labels.get(annotation.id), annotation)
        write_rows(folder / LABELS_NAME, (_row(labels[id_]) for id_ in sorted(labels)))
        kept = _saved_cuts(folder) | by_id
        done = [
            with_text(kept[id_], label.text or "")
            for id_, label in sorted(labels.items())
            if label.status == "labelled" and id_ in kept
        ]
        manifests.write(done, folder / manifests.CUTS_NAME)
    return CutSet.from_cuts(done)


def counts(annotations: Iterable[Annotation]) -> dict[str, int]:
    """Return how many clips are in each state."""
    found = Counter(annotation.status for annotation in annotations)
    return {status: found[status] for status in reversed(_RANKS)}


def with_text(cut: Cut, text: str | None) -> Cut:
    """Return a cut with a text over all of it, in place of what it held.

    What was derived from the old text, its normalised form and a label, goes too.
    """
    first = cut.supervisions[0] if cut.supervisions else None
    custom = dict((first and first.custom) or {})
    for derived in ("text_norm", "label"):
        custom.pop(derived, None)
    supervision = SupervisionSegment(
        id=cut.id,
        recording_id=first.recording_id if first else cut.id,
        start=0.0,
        duration=cut.duration,
        text=text,
        speaker=first.speaker if first else None,
        language=first.language if first else None,
        custom=custom or None,
    )
    bare = cut.drop_supervisions()
    (bare.tracks[0].cut if isinstance(bare, MixedCut) else bare).supervisions = [supervision]
    return bare


def _saved_cuts(folder: Path) -> dict[str, Cut]:
    path = folder / manifests.CUTS_NAME
    return {cut.id: cut for cut in manifests.read(path, allow_empty=True)} if path.exists() else {}


def _row(annotation: Annotation) -> Row:
    """Return the row to write, without what is empty."""
    row = asdict(annotation).items()
    return {name: value for name, value in row if value is not None and value != ()}


def _texts(annotation: Annotation) -> tuple[str, ...]:
    """Return all texts of an annotation, the oldest first."""
    given = annotation.texts or (() if annotation.text is None else (annotation.text,))
    return given[::-1]
