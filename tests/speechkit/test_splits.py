import pytest
from lhotse import MonoCut, SupervisionSegment

from speechkit.errors import RequestError
from speechkit.seeds import seed_of
from speechkit.splits import hold_out_portions, hold_out_speakers


def clips(*speakers):
    return [
        MonoCut(
            id=f"c{i}",
            start=0,
            duration=1,
            channel=0,
            supervisions=[
                SupervisionSegment(id=f"c{i}", recording_id="r", start=0, duration=1, speaker=name)
            ],
        )
        for i, name in enumerate(speakers)
    ]


def test_speakers_are_kept_apart_whatever_the_order():
    cuts = clips(*"abcdefghij" * 3)
    rest, dev, held = hold_out_speakers(cuts, 3, seed=7)
    assert len(held) == 3
    assert list(held) == sorted(held)
    assert {cut.supervisions[0].speaker for cut in dev} == set(held)
    assert {cut.supervisions[0].speaker for cut in rest} == set("abcdefghij") - set(held)
    assert len(rest) + len(dev) == len(cuts)
    assert hold_out_speakers(cuts[::-1], 3, seed=7)[2] == held
    assert any(hold_out_speakers(cuts, 3, seed=seed)[2] != held for seed in range(5))
    assert set(held) < set(hold_out_speakers(cuts, 4, seed=7)[2])


@pytest.mark.parametrize("count", [0, -1, 2, 9])
def test_impossible_counts(count):
    with pytest.raises(RequestError, match=f"{count} speakers to hold out: there are 2"):
        hold_out_speakers(clips("a", "b"), count)


def test_unknown_speakers():
    with pytest.raises(RequestError, match=r"1 of 2 clips have no speaker \(c1\)"):
        hold_out_speakers(clips("a", None), 1)


def test_seeds_differ_by_every_part():
    seeds = {seed_of(*parts) for parts in [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), (1, 2, "")]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, "a") == seed_of(3, "a")


def said(name, texts, speakers):
    cuts = clips(*speakers)
    for cut, text in zip(cuts, texts, strict=True):
        cut.id = f"{name}-{cut.id}"
        cut.supervisions[0].text = text
    return cuts


def ids(sets):
    return [cut.id for cuts in sets.values() for cut in cuts]


def test_portions_share_no_sentence_with_the_rest():
    long = [f"line {i // 2}" for i in range(80)]  # each sentence twice
    sets = {
        "one voice": said("a", long, "x" * 80),
        "same lines": said("b", [text.upper() for text in long], ["y", None] * 40),
        "many voices": said("c", [f"other {i}" for i in range(80)], "abcdefgh" * 10),
        "few": said("d", ["one", "two", "two"], "zzz"),
        "single": said("e", ["alone", "alone"], "zz"),
    }
    held, rest = hold_out_portions(sets, 8, seed=3)
    assert {name: len(cuts) for name, cuts in held.items()} == {
        "one voice": 10,
        "same lines": 10,
        "many voices": 10,
        "few": len(held["few"]),
        "single": 0,
    }
    assert 1 <= len(held["few"]) <= 2
    assert len({cut.supervisions[0].speaker for cut in held["many voices"]}) == 1
    sentences = {cut.supervisions[0].text.lower() for cut in held["one voice"] + held["same lines"]}
    assert not sentences & {cut.supervisions[0].text.lower() for cut in rest["one voice"]}
    assert not sentences & {cut.supervisions[0].text.lower() for cut in rest["same lines"]}
    assert not set(ids(held)) & set(ids(rest))
    assert len(rest["many voices"]) == 70
    assert hold_out_portions(sets, 8, seed=3) == (held, rest)
    assert ids(hold_out_portions(sets, 8, seed=4)[0]) != ids(held)


def test_portions_by_speaker_need_as_many_of_them():
    with pytest.raises(RequestError, match="by speaker"):
        hold_out_portions({"a": said("a", ["one", "two"], "xx")}, 2, by="speaker")
