import numpy as np
import pytest

from speechkit.audio import SAMPLE_RATE
from speechkit.kws.detector import Detector
from speechkit.kws.mining import excerpt, find_alarms
from tests.kws.helpers import bursts, clip_of, noise, tiny_spotter


@pytest.fixture(scope="module")
def clips():
    return [clip_of(bursts(seconds, seed=i), id_=str(i)) for i, seconds in enumerate((7, 2, 11))]


def test_alarms_are_ranked_apart_and_inside_their_clips(clips):
    alarms = find_alarms(
        Detector(tiny_spotter()), clips, [clip_of(noise(3))], least_score=0.0, most=100
    )
    assert len({alarm.clip_id for alarm in alarms}) == len(clips)
    assert [a.score for a in alarms] == sorted((a.score for a in alarms), reverse=True)
    by_id = {clip.id: clip for clip in clips}
    for alarm in alarms:
        assert 0 <= alarm.centre_s <= by_id[alarm.clip_id].duration_s
        others = [a.centre_s for a in alarms if a.clip_id == alarm.clip_id and a != alarm]
        assert all(abs(other_s - alarm.centre_s) >= 1.5 for other_s in others)


def test_no_more_than_asked_and_none_under_the_least_score(clips):
    detector = Detector(tiny_spotter())
    assert len(find_alarms(detector, clips, [], least_score=0.0, most=2)) == 2
    assert find_alarms(detector, clips, [], least_score=1.1, most=2) == []


def test_the_same_alarms_again(clips):
    given = {"least_score": 0.1, "most": 50, "seed": 3}
    noises = [clip_of(noise(3))]
    first, second = (
        find_alarms(Detector(tiny_spotter()), clips, noises, **given) for _ in range(2)
    )
    assert first == second


def test_an_excerpt_holds_the_alarm_with_context(clips):
    alarms = find_alarms(Detector(tiny_spotter()), clips, [], least_score=0.0, most=100)
    by_id = {clip.id: clip for clip in clips}
    for alarm in alarms:
        clip = by_id[alarm.clip_id]
        cut = excerpt(clip, alarm)
        assert len(cut.samples) <= 6.1 * SAMPLE_RATE
        assert cut.span.samples == pytest.approx(SAMPLE_RATE, abs=2)
        first = round((alarm.centre_s - 0.5) * SAMPLE_RATE) - cut.span.start
        assert np.array_equal(cut.samples, clip.samples[first : first + len(cut.samples)])
