"""From manifests to what training and measuring need: positives, negatives, and their counts."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from speechkit import manifests
from speechkit.audio import plain_file
from speechkit.errors import RequestError
from speechkit.kws.rows import Rows, names_a_sound, normalise, sort_rows


@dataclass(frozen=True)
class Selection:
    """Cuts to work on.

    Attributes
    ----------
    positives
        keyword -> its clips, from the positive manifests alone.
    negatives
        clips of all manifests that hold none of the keywords.
    counts
        keyword -> how many rows were positive, negative, left out and unverified; left out for one
        keyword is also what holds another.
    """

    positives: dict[str, list[Cut]]
    negatives: list[Cut]
    counts: dict[str, dict[str, float]]

    @property
    def keywords(self) -> list[str]:
        """The keywords."""
        return list(self.positives)

    @property
    def cuts(self) -> list[Cut]:
        """All clips."""
        return [cut for cuts in (*self.positives.values(), self.negatives) for cut in cuts]

    def fingerprints(self) -> dict[str, str]:
        """Say in a few digits each which clips these are, and of whom: speakers decide on folds."""
        kinds = {**self.positives, "negatives": self.negatives}
        return {name: manifests.fingerprint(cuts, speakers=True) for name, cuts in kinds.items()}


def select(
    keywords: Sequence[str], *, positives: Sequence[Path], negatives: Sequence[Path]
) -> Selection:
    """Sort the rows of manifests; a row named by both lists counts as one of ``positives``.

    Rows that equal a keyword but stand in ``negatives`` are left out: they are not what was given
    to be found, and must not count as false alarms.

    Raises
    ------
    RequestError
        if there is no keyword, one is given twice, none of the rows is one, or one id stands for
        two recordings.
    """
    wanted = [normalise(keyword) for keyword in keywords]
    if not wanted or len(set(wanted)) < len(wanted):
        raise RequestError(
            f"keywords {', '.join(keywords) or '(none)'}: give each once, at least one"
        )
    if sounds := [keyword for keyword in wanted if names_a_sound(keyword)]:
        raise RequestError(f"keyword {sounds[0]}: names a kind of sound; give words to spot")
    found = read_any(positives)
    others = _without(read_any(negatives), found)
    rows = {keyword: sort_rows(found, keyword) for keyword in wanted}
    other_rows = {keyword: sort_rows(others, keyword) for keyword in wanted}
    for keyword, sorted_rows in rows.items():
        if positives and not sorted_rows.positives:
            raise RequestError(
                f"keyword {keyword!r}: no row of the positives has it as label or text; "
                f"they hold {_examples(found)}"
            )
    free = [
        *_negative_for_all(found, list(rows.values())),
        *_negative_for_all(others, list(other_rows.values())),
    ]
    return Selection(
        positives={keyword: list(rows[keyword].positives) for keyword in wanted},
        negatives=free,
        counts={k: _counts(rows[k], other_rows[k], {cut.id for cut in free}) for k in wanted},
    )


def read_any(sources: Sequence[Path] | None) -> list[Cut]:
    """Return the cuts of manifests that need not be given."""
    return list(manifests.read_all(sources)) if sources else []


def free_of(cuts: Sequence[Cut], keywords: Sequence[str]) -> list[Cut]:
    """Return the cuts that are negatives for all keywords."""
    return _negative_for_all(cuts, [sort_rows(cuts, keyword) for keyword in keywords])


def require_one_recording(cuts: Iterable[Cut]) -> None:
    """Refuse cuts of one id and two recordings, of which one would be taken for the other.

    Raises
    ------
    RequestError
        that names both.
    """
    recordings: dict[str, tuple[str, float, float]] = {}
    for cut in cuts:
        known = recordings.setdefault(cut.id, _recording(cut))
        if known != _recording(cut):
            raise RequestError(
                f"clip {cut.id}: is {known[0]} in one manifest, {_recording(cut)[0]} in another; "
                "give folders of different names, of which ids are made"
            )


def _without(cuts: Sequence[Cut], known: Sequence[Cut]) -> list[Cut]:
    """Return the cuts that are not known already."""
    require_one_recording([*known, *cuts])
    ids = {cut.id for cut in known}
    return [cut for cut in cuts if cut.id not in ids]


def _recording(cut: Cut) -> tuple[str, float, float]:
    """Return where a clip's audio is, as far as a manifest says it."""
    path = plain_file(cut) if cut.has_recording else None
    return str(path or ""), round(cut.start, 3), round(cut.duration, 3)


def _negative_for_all(cuts: Sequence[Cut], rows: Sequence[Rows]) -> list[Cut]:
    """Return the cuts that are negatives for every keyword."""
    shared = set.intersection(*({cut.id for cut in one.negatives} for one in rows))
    return [cut for cut in cuts if cut.id in shared]


def _counts(rows: Rows, others: Rows, free: Set[str]) -> dict[str, float]:
    """Count a keyword's rows; a keyword among the negatives' manifests is left out.

    So is what is negative for this keyword and, by the ids in ``free``, not for all.
    """
    negatives = rows.negatives + others.negatives
    joined = Rows(
        positives=rows.positives,
        negatives=tuple(cut for cut in negatives if cut.id in free),
        left_out=rows.left_out
        + others.left_out
        + others.positives
        + tuple(cut for cut in negatives if cut.id not in free),
        unverified=tuple(cut for cut in rows.unverified + others.unverified if cut.id in free),
    )
    return joined.counts()


def _examples(cuts: Sequence[Cut]) -> str:
    labels = sorted(
        {manifests.label_of(cut) or manifests.text_of(cut) or "" for cut in cuts} - {""}
    )
    shown = ", ".join(labels[:8])
    return f"{shown} and {len(labels) - 8} more" if len(labels) > 8 else shown or "no label or text"
