import pytest
from lhotse import MonoCut, SupervisionSegment

from speechkit.errors import RequestError
from speechkit.seeds import seed_of
from speechkit.splits import hold_out_speakers


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
