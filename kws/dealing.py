"""Dealing clips to folds, so that each fold has its part of every keyword and of the negatives."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Literal

from lhotse.cut import Cut

from speechkit.errors import RequestError
from speechkit.manifests import fold_order, speaker_of

NEGATIVES = "the negatives"

Kinds = Mapping[str, Sequence[Cut]]
# what is dealt as one: whether it is a speaker, and its name
_Group = tuple[bool, str]


def deal(
    kinds: Kinds, count: int, *, by: Literal["speaker", "clip"], seed: int = 0
) -> dict[str, int]:
    """Return clip id -> fold, 0 to ``count - 1``.

    The kinds are dealt one after the other. Speakers (or clips) are taken in the order of a hash,
    each for the fold that holds the fewest clips of the kind; a speaker's clips of all kinds go
    along, and clips without a speaker go singly.

    Parameters
    ----------
    kinds
        clips by kind: those of a keyword, or the negatives; what is scarce goes first.
    """
    group_of = {cut.id: _group(cut, by) for cuts in kinds.values() for cut in cuts}
    fold_of_group: dict[_Group, int] = {}
    for cuts in kinds.values():
        own = Counter(group_of[cut.id] for cut in cuts)
        sizes = [0] * count
        for group in own.keys() & fold_of_group.keys():
            sizes[fold_of_group[group]] += own[group]
        left = own.keys() - fold_of_group.keys()
        for group in sorted(left, key=lambda group: (fold_order(seed, group[1]), group)):
            fold_of_group[group] = sizes.index(min(sizes))
            sizes[fold_of_group[group]] += own[group]
    return {id_: fold_of_group[group] for id_, group in group_of.items()}


def require_all(kinds: Kinds, fold_of: Mapping[str, int], parts: Iterable[Set[int]]) -> None:
    """Refuse parts, folds to train on or to measure on, that lack a kind.

    Raises
    ------
    RequestError
        if one of ``parts`` has no clip of a kind.
    """
    for folds in parts:
        for kind, cuts in kinds.items():
            if not any(fold_of[cut.id] in folds for cut in cuts):
                speakers = {speaker_of(cut) for cut in cuts} - {None}
                raise RequestError(
                    f"{kind}: none of {len(cuts)} clips ({len(speakers)} speakers) falls into fold "
                    f"{' or '.join(map(str, sorted(folds)))}; give more, fewer folds, or divide by "
                    "clip"
                )


def _group(cut: Cut, by: Literal["speaker", "clip"]) -> _Group:
    speaker = speaker_of(cut) if by == "speaker" else None
    return (True, speaker) if speaker else (False, cut.id)
