"""From manifests to what training and measuring need: positives, negatives, and their counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse.cut import Cut

from speechkit import manifests
from speechkit.audio import plain_file
from speechkit.errors import RequestError
from speechkit.kws.rows import Rows, normalise, sort_rows


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
        keyword -> how many rows were positive, negative, left out and unverified.
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
    found = list(manifests.read_all(positives)) if positives else []
    others = _without(list(manifests.read_all(negatives)) if negatives else [], found)
    rows = {keyword: sort_rows(found, keyword) for keyword in wanted}
    other_rows = {keyword: sort_rows(others, keyword) for keyword in wanted}
    for keyword, sorted_rows in rows.items():
        if positives and not sorted_rows.positives:
            raise RequestError(
                f"keyword {keyword!r}: no row of the positives has it as label or text; "
                f"they hold {_examples(found)}"
            )
    return Selection(
        positives={keyword: list(rows[keyword].positives) for keyword in wanted},
        negatives=[
            *_negative_for_all(found, list(rows.values())),
            *_negative_for_all(others, list(other_rows.values())),
        ],
        counts={k: _counts(rows[k], other_rows[k]) for k in wanted},
    )


def free_of(cuts: Sequence[Cut], keywords: Sequence[str]) -> list[Cut]:
    """Return the cuts that are negatives for all keywords."""
    return _negative_for_all(cuts, [sort_rows(cuts, keyword) for keyword in keywords])


def _without(cuts: Sequence[Cut], known: Sequence[Cut]) -> list[Cut]:
    """Return the cuts that are not known already."""
    recordings = {cut.id: _recording(cut) for cut in known}
    for cut in cuts:
        if cut.id in recordings and recordings[cut.id] != _recording(cut):
            raise RequestError(
                f"clip {cut.id}: is {recordings[cut.id][0]} among the positives and "
                f"{_recording(cut)[0]} among the negatives; give folders of different names, of "
                "which ids are made"
            )
    return [cut for cut in cuts if cut.id not in recordings]


def _recording(cut: Cut) -> tuple[str, float, float]:
    """Return where a clip's audio is, as far as a manifest says it."""
    path = plain_file(cut) if cut.has_recording else None
    return str(path or ""), round(cut.start, 3), round(cut.duration, 3)


def _negative_for_all(cuts: Sequence[Cut], rows: Sequence[Rows]) -> list[Cut]:
    """Return the cuts that are negatives for every keyword."""
    shared = set.intersection(*({cut.id for cut in one.negatives} for one in rows))
    return [cut for cut in cuts if cut.id in shared]


def _counts(rows: Rows, others: Rows) -> dict[str, float]:
    """Count a keyword's rows; a keyword among the negatives' manifests is left out."""
    joined = Rows(
        positives=rows.positives,
        negatives=rows.negatives + others.negatives,
        left_out=rows.left_out + others.left_out + others.positives,
        unverified=rows.unverified + others.unverified,
    )
    return joined.counts()


def _examples(cuts: Sequence[Cut]) -> str:
    labels = sorted(
        {manifests.label_of(cut) or manifests.text_of(cut) or "" for cut in cuts} - {""}
    )
    shown = ", ".join(labels[:8])
    return f"{shown} and {len(labels) - 8} more" if len(labels) > 8 else shown or "no label or text"
