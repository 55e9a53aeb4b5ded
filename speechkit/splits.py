"""Splits of manifests that keep speakers, or sentences, apart."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from lhotse import CutSet
from lhotse.cut import Cut

from speechkit.errors import RequestError
from speechkit.manifests import folds, speaker_of, text_of
from speechkit.seeds import seed_of

Sets = dict[str, list[Cut]]


def hold_out_speakers(
    cuts: Iterable[Cut], count: int, *, seed: int = 0
) -> tuple[CutSet, CutSet, tuple[str, ...]]:
    """Take all clips of some speakers out of a set.

    Which speakers depends on their names and the seed, not on the order of the manifest nor on how
    many clips each has: adding clips moves nobody, and ``count + 1`` holds out the same and one
    more.

    Returns
    -------
    (the rest, the held-out clips, the held-out speakers sorted by name); clips keep their order.

    Raises
    ------
    RequestError
        if a clip has no speaker, or ``count`` is not 1 to one less than the number of speakers.
    """
    cuts = list(cuts)
    nameless = [cut.id for cut in cuts if speaker_of(cut) is None]
    if nameless:
        raise RequestError(
            f"{len(nameless)} of {len(cuts)} clips have no speaker ({', '.join(nameless[:3])}); "
            "leave them out or split by clip"
        )
    speakers = {str(speaker_of(cut)) for cut in cuts}
    if not 1 <= count < len(speakers):
        raise RequestError(
            f"{count} speakers to hold out: there are {len(speakers)}, give 1 to "
            f"{len(speakers) - 1}"
        )
    held = set(sorted(speakers, key=lambda name: seed_of(seed, name))[:count])
    rest = CutSet.from_cuts(cut for cut in cuts if speaker_of(cut) not in held)
    dev = CutSet.from_cuts(cut for cut in cuts if speaker_of(cut) in held)
    return rest, dev, tuple(sorted(held))


def hold_out_portions(
    sets: Mapping[str, Sequence[Cut]],
    count: int,
    *,
    by: Literal["auto", "speaker", "sentence"] = "auto",
    seed: int = 0,
) -> tuple[Sets, Sets]:
    """Take one fold of ``count`` out of each of several sets of transcribed clips.

    In sets divided by sentence, clips of equal text, in small letters, are held out together, and
    a sentence that is held out so stays in the rest of no set. A set of one sentence is not
    divided.

    Parameters
    ----------
    by
        what folds hold; auto: speakers, in sets with as many of them as folds, else sentences.

    Returns
    -------
    (the held-out clips of each set, the rest of each set); clips keep their order.

    Raises
    ------
    RequestError
        if there are fewer than two folds, or a set divided by speaker has fewer of them than folds.
    """
    held: Sets = {}
    sentences: set[str] = set()
    for name, clips in sets.items():
        portion, said = _portion(clips, count, by, seed)
        held[name] = portion
        sentences |= said
    taken = {cut.id for portion in held.values() for cut in portion}
    rest = {
        name: [cut for cut in clips if cut.id not in taken and _sentence(cut) not in sentences]
        for name, clips in sets.items()
    }
    return held, rest


def _portion(clips: Sequence[Cut], count: int, by: str, seed: int) -> tuple[list[Cut], set[str]]:
    """Return a fold of clips, and its sentences if it is one of sentences."""
    speakers = {speaker_of(cut) for cut in clips}
    if by == "speaker" or (by == "auto" and None not in speakers and len(speakers) >= count):
        of = folds(clips, count, seed=seed, by="speaker").of
        return [cut for cut in clips if of[cut.id] == 0], set()
    first = {_sentence(cut): cut for cut in reversed(clips)}
    if len(first) < 2:
        return [], set()
    of = folds(first.values(), min(count, len(first)), seed=seed, by="clip").of
    said = {sentence for sentence, cut in first.items() if of[cut.id] == 0}
    return [cut for cut in clips if _sentence(cut) in said], said


def _sentence(cut: Cut) -> str:
    return (text_of(cut) or "").lower()
