"""Splits of a manifest that keep speakers apart."""

from collections.abc import Iterable

from lhotse import CutSet
from lhotse.cut import Cut

from speechkit.errors import RequestError
from speechkit.manifests import speaker_of
from speechkit.seeds import seed_of


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
