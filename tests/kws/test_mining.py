import numpy as np
import pytest

from speechkit.audio import INT16_SCALE, SAMPLE_RATE
from speechkit.augment import Span
from speechkit.kws.detector import Detector
from speechkit.kws.mining import find_alarms
from speechkit.kws.streams import negative_streams
from tests.kws.helpers import bursts, clip_of, noise, tiny_spotter
from tests.kws.test_measure import Spoken


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
    assert first
    assert [(a.clip_id, a.centre_s, a.score) for a in first] == [
        (a.clip_id, a.centre_s, a.score) for a in second
    ]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.heard.samples, other.heard.samples)


def test_what_was_heard_is_cut_out_of_the_stream(clips):
    detector = Detector(tiny_spotter())
    alarms = find_alarms(detector, clips, [], least_score=0.0, most=100, snrs_db=(None,), seed=4)
    (stream,) = negative_streams(clips, [], snr_db=None, seed=4)
    offsets = {piece.id: piece.offset for piece in stream.pieces}
    lengths = {clip.id: len(clip.samples) for clip in clips}
    assert alarms
    for alarm in alarms:
        heard = alarm.heard
        assert heard.id == f"{alarm.clip_id}@{alarm.centre_s:.2f} {alarm.keyword}"
        centre = offsets[alarm.clip_id] + round(alarm.centre_s * SAMPLE_RATE)
        first, last = max(0, centre - 48_000), min(len(stream.audio), centre + 48_000)
        core = Span(max(0, centre - 8_000), min(len(stream.audio), centre + 8_000))
        assert heard.span == core.shifted(-first)
        assert np.allclose(heard.audio, stream.audio[first:last], atol=1e-4)
        assert set(alarm.amid) == {
            id_ for id_, at in offsets.items() if at < last and at + lengths[id_] > first
        }


def test_an_alarm_lies_in_the_middle_of_the_window_that_raised_it():
    scores = np.zeros((80, 2))
    scores[20, 0], scores[40, 1], scores[60, 0] = 0.9, 0.8, 0.7
    detector = Spoken(tiny_spotter(labels=("_background_", "one", "two")), scores)
    clip = clip_of(bursts(9.5), id_="long")
    for most, expected in (
        (9, [("one", 2.75, 0.9), ("one", 6.75, 0.7), ("two", 4.75, 0.8)]),
        (1, [("one", 2.75, 0.9), ("two", 4.75, 0.8)]),
    ):
        alarms = find_alarms(detector, [clip], [], least_score=0.5, most=most, snrs_db=(None,))
        assert [(a.keyword, a.centre_s, a.score) for a in alarms] == [
            (keyword, pytest.approx(centre_s), score) for keyword, centre_s, score in expected
        ]
        # a second in the middle of what was heard, sample for sample
        middle = round(alarms[0].centre_s * SAMPLE_RATE)
        core = alarms[0].heard.audio[alarms[0].heard.span.start : alarms[0].heard.span.end]
        np.testing.assert_allclose(core, clip.audio[middle - 8_000 : middle + 8_000], atol=1e-4)


def test_loud_noise_is_heard_whole(clips):
    alarms = find_alarms(
        Detector(tiny_spotter()),
        clips,
        [clip_of(noise(3))],
        least_score=0.0,
        most=100,
        snrs_db=(-40.0,),
    )
    assert alarms
    for alarm in alarms:
        at_the_limit = np.abs(alarm.heard.samples.astype(int)) == INT16_SCALE - 1
        assert at_the_limit.sum() == 1
