"""Dealing clips to folds: each fold has its part of every kind, and no speaker is in two."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lhotse import MonoCut, SupervisionSegment

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws.dealing import deal, require_all


def clip(id_, speaker=None):
    supervision = SupervisionSegment(
        id=id_, recording_id=id_, start=0, duration=1, text="x", speaker=speaker
    )
    return MonoCut(id=id_, start=0, duration=1, channel=0, supervisions=[supervision])


def clips(name, speakers, each):
    return [clip(f"{name}-{s}-{i}", s) for s in speakers for i in range(each)]


@pytest.mark.parametrize("seed", range(20))
def test_few_speakers_of_a_keyword_are_in_every_fold(seed):
    kinds = {
        "computer": clips("p", [f"k{i}" for i in range(8)], 20),
        "negatives": clips("n", [f"n{i}" for i in range(100)], 10),
    }
    of = deal(kinds, 5, by="speaker", seed=seed)
    require_all(kinds, of, [{fold} for fold in range(5)])
    assert max(Counter(of[c.id] for c in kinds["computer"]).values()) == 40


@given(
    speakers=st.lists(st.sampled_from(["a", "b", "c", "d", "e", None]), min_size=1, max_size=40),
    kinds=st.integers(1, 3),
    count=st.integers(2, 4),
)
def test_every_clip_has_a_fold_and_every_speaker_one(speakers, kinds, count):
    cuts = [clip(f"{i}", speaker) for i, speaker in enumerate(speakers)]
    of_kind = {str(k): cuts[k::kinds] for k in range(kinds)}
    of = deal(of_kind, count, by="speaker")
    assert of.keys() == {cut.id for cut in cuts}
    for name in set(speakers) - {None}:
        assert len({of[cut.id] for cut in cuts if manifests.speaker_of(cut) == name}) == 1
    turned = {kind: cuts[::-1] for kind, cuts in of_kind.items()}
    assert deal(turned, count, by="speaker") == of


def test_by_clip_is_as_the_folds_of_each_kind():
    kinds = {"a": clips("a", ["s"], 11), "b": clips("b", ["s"], 7)}
    alone = [manifests.folds(cuts, 3, by="clip", seed=2).of for cuts in kinds.values()]
    assert deal(kinds, 3, by="clip", seed=2) == alone[0] | alone[1]


def test_a_fold_that_lacks_a_kind_is_refused():
    kinds = {"computer": clips("p", ["one", "two"], 9)}
    of = deal(kinds, 3, by="speaker")
    require_all(kinds, of, [{0}, {1, 2}])
    with pytest.raises(RequestError, match=r"computer: none of 18 clips \(2 speakers\).*fold 2"):
        require_all(kinds, of, [{0}, {2}])
