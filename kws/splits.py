"""Decoded clips of one split, positives by keyword, and how they are divided."""

import hashlib
import json
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

from lhotse.cut import Cut

from speechkit.kws.clips import Clip, load_clips, load_noises
from speechkit.kws.dealing import NEGATIVES, deal, require_all
from speechkit.kws.rows import is_silent
from speechkit.kws.select import require_one_recording

# a dev set is one part of so many
_PARTS = 6


@dataclass(frozen=True)
class Split:
    """Decoded clips of one split.

    Attributes
    ----------
    silent
        ids of negatives without speech.
    broken
        id -> why a clip was left out.
    """

    positives: dict[str, list[Clip]]
    negatives: list[Clip]
    noises: list[Clip]
    silent: frozenset[str] = frozenset()
    broken: dict[str, str] = field(default_factory=dict)

    def fingerprints(self) -> dict[str, Any]:
        """Say in a few digits each which clips these are."""
        return {
            "positives": {k: clips_fingerprint(clips) for k, clips in self.positives.items()},
            "negatives": clips_fingerprint(self.negatives),
            "noises": clips_fingerprint(self.noises),
        }


def decode(
    positives: dict[str, list[Cut]],
    negatives: Sequence[Cut],
    *,
    noises: Sequence[Cut],
    decoded: dict[str, Clip] | None = None,
) -> Split:
    """Decode cuts; broken clips are named in the log and left out.

    ``decoded`` is as for `speechkit.kws.clips.load_clips`.

    Raises
    ------
    RequestError
        if one id stands for two recordings.
    JobError
        if of a keyword, or of the negatives or noises given, no clip can be used.
    """
    given = [cut for cuts in (*positives.values(), negatives, noises) for cut in cuts]
    require_one_recording(given)
    found = {
        k: load_clips(cuts, what=f"positives of {k!r}", decoded=decoded)
        for k, cuts in positives.items()
    }
    others = load_clips(negatives, what="negatives", decoded=decoded)
    quiet = load_noises(noises, decoded=decoded)
    return Split(
        {keyword: loaded.clips for keyword, loaded in found.items()},
        others.clips,
        quiet.clips,
        frozenset(cut.id for cut in negatives if is_silent(cut)),
        {id_: why for one in (*found.values(), others, quiet) for id_, why in one.broken.items()},
    )


def part(split: Split, keep: Set[str], *, noises: Set[str]) -> Split:
    """Return the clips of a split whose ids are in ``keep``, and the noises of other ids."""
    return Split(
        {k: [c for c in clips if c.id in keep] for k, clips in split.positives.items()},
        [clip for clip in split.negatives if clip.id in keep],
        [clip for clip in split.noises if clip.id in noises],
        split.silent & frozenset(keep),
        {id_: why for id_, why in split.broken.items() if id_ in keep or id_ in noises},
    )


def set_aside(
    clips: Split, positives: dict[str, list[Cut]], negatives: Sequence[Cut], *, seed: int
) -> tuple[Split, Split]:
    """Divide clips into training and dev, by speaker where one is known.

    Noises serve both when there are few of them.

    Raises
    ------
    RequestError
        if one of them lacks a keyword or negatives.
    """
    kinds = {**positives, NEGATIVES: negatives}
    fold_of = deal(kinds, _PARTS, by="speaker", seed=seed)
    require_all(kinds, fold_of, [{0}, set(range(1, _PARTS))])
    dev = {id_ for id_, fold in fold_of.items() if fold == 0}
    quiet = {clip.id for clip in clips.noises}
    # a noise that is a negative too must not be trained on in one place and measured in another
    noise_dev = (quiet & dev) | set(sorted(quiet - fold_of.keys())[::_PARTS])
    noise_train = quiet - noise_dev
    if len(quiet) < _PARTS or not noise_dev or not noise_train:
        noise_dev = noise_train = quiet
    return (
        part(clips, fold_of.keys() - dev, noises=noise_train),
        part(clips, dev, noises=noise_dev),
    )


def clips_fingerprint(clips: Iterable[Clip]) -> str:
    """Say in a few digits which clips these are, and in which order, by which they are drawn."""
    return hashlib.sha256(json.dumps([clip.id for clip in clips]).encode()).hexdigest()[:16]
