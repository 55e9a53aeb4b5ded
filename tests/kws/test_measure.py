"""Measuring: hand-made scores with known answers, and thresholds against brute force."""

import dataclasses

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechkit.augment import Span
from speechkit.kws.detector import Detector
from speechkit.kws.events import onsets
from speechkit.kws.measure import (
    Curve,
    Occurrence,
    Scored,
    listen,
    listen_amid,
    mean_frr,
    operating_point,
    scores_of,
)
from speechkit.kws.spotter import Spotter
from speechkit.kws.streams import Piece, Stream
from tests.kws.helpers import bursts, noise, samples, tiny_spotter


def occurrence(values, *, first_delay_s=0.0):
    """A keyword whose hit window covers all of these scores, a tenth of a second apart."""
    values = np.array(values, float)
    delays_s = first_delay_s + 0.1 * np.arange(len(values))
    return Occurrence("k", onsets(values, 10), delays_s)


def negatives(*streams, refractory=3):
    return [onsets(np.array(values, float), refractory) for values in streams]


def scored(positives=(), alarms=(), hours=1.0):
    return Scored([occurrence(p) for p in positives], negatives(*alarms), hours)


def test_misses_and_false_alarms_are_counted_by_hand():
    one = scored(
        positives=[[0.1, 0.9], [0.6, 0.2], [0.3, 0.3]],
        alarms=[[0.7, 0, 0, 0, 0.5, 0.4], [0.2] * 9],
        hours=2.0,
    )
    curve = one.curve()
    assert [curve.misses(t) for t in (0.2, 0.5, 0.65, 0.95)] == [0, 1, 2, 3]
    assert [curve.false_alarms(t) for t in (0.2, 0.4, 0.5, 0.7, 0.75)] == [3, 2, 2, 1, 0]
    row = operating_point([one], fa_per_hour=0.5)
    assert row["threshold"] == pytest.approx(0.5, abs=1e-4)
    assert row["threshold"] > 0.5
    assert (row["misses"], row["positives"], row["false_alarms"]) == (1, 3, 1)
    assert row["frr"] == pytest.approx(1 / 3)
    assert row["frr_low"] < 1 / 3 < row["frr_high"]
    assert row["measured_fa_per_hour"] == 0.5
    assert row["fa_per_hour_low"] < 0.5 < row["fa_per_hour_high"]
    assert (row["status"], row["threshold_from"]) == ("ok", "eval")


def test_the_trade_off_lists_every_step():
    one = scored(positives=[[0.9], [0.4]], alarms=[[0.6]], hours=2.0)
    rates, frr = one.curve().trade_off()
    # at or below 0.4, up to 0.6, up to 0.9
    assert rates.tolist() == [0.5, 0.5, 0.0]
    assert frr.tolist() == [0.0, 0.5, 0.5]


values = st.one_of(
    st.sampled_from([0.0, 1e-300, 1e-9, 0.5, 1 - 1e-9, 1 - 1e-12, 1 - 2**-53, 1.0]),
    st.floats(0, 1),
)


@given(
    st.lists(st.lists(values, max_size=12), max_size=4),
    st.floats(0.1, 5),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.sampled_from([0, 1, 3]),
)
@example([[1.0]], 1.0, 0.5, 0)
@example([[0.0]], 1.0, 0.5, 0)
@example([[1 - 2**-53]], 1.0, 0.5, 0)
@example([[1 - 1e-12], [1 - 5e-13]], 2.0, 0.5, 0)
@example([[0.9, 0.5, 0.5, 0.9]], 1.0, 1.0, 2)
def test_the_threshold_is_the_lowest_from_which_on_the_target_is_met(
    streams, hours, target, refractory
):
    curve = Scored([], negatives(*streams, refractory=refractory), hours).curve()
    threshold = curve.threshold_for(target)
    edges = np.unique([v for s in streams for v in s])
    # all thresholds that can differ: each score, and between it and the next
    candidates = np.unique(np.concatenate([[0.0], edges, np.nextafter(edges, 2)]))
    met = [curve.false_alarms(t) <= target * hours for t in candidates]
    good = [bool(np.all(met[i:])) for i in range(len(met))]
    lowest = candidates[good.index(True)]
    if all(met):  # lower down than where there are most alarms they merge
        lowest = candidates[np.argmax([curve.false_alarms(t) for t in candidates])]
    if lowest > 1:
        assert threshold is None
        return
    assert threshold is not None
    assert lowest <= threshold <= 1
    above = [t for t in candidates if t >= threshold]
    assert all(curve.false_alarms(t) <= target * hours for t in [threshold, *above])
    # and so low that no other score lies between
    assert not ((edges >= lowest) & (edges < threshold)).any()


def test_the_target_may_be_met_below_too_but_only_the_upper_range_counts():
    """At 0.4 all of it is one event, at 0.6 it is two: a target of one needs more than 0.9."""
    one = scored(alarms=[[0.9, 0.5, 0.5, 0.5, 0.9]], hours=1.0)
    assert one.curve().false_alarms(0.4) == 1
    assert one.curve().threshold_for(1.0) == pytest.approx(0.9, abs=1e-4)
    assert one.curve().threshold_for(2.0) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("target", [2.0, 10.0, 1e4])
def test_where_any_threshold_meets_the_target_events_are_not_merged(target):
    """At 0 every stream is one event, which begins before the keyword."""
    rng = np.random.default_rng(0)
    quiet = rng.uniform(0, 0.5, (4, 40))
    words = [[*rng.uniform(0, 0.2, 20), 0.9] for _ in range(4)]
    one = scored(positives=words, alarms=[list(stream) for stream in quiet], hours=1e3)
    row = operating_point([one], fa_per_hour=target)
    assert (row["misses"], row["status"]) == (0, "ok")
    assert row["false_alarms"] == one.curve().alarms.counts.max()
    alone = scored(positives=words, alarms=[], hours=1e3)
    assert operating_point([alone], fa_per_hour=target)["misses"] == 0


def test_a_target_in_floats_allows_the_whole_number_that_it_stands_for():
    alarms = [[0.1 + 0.01 * i] for i in range(58)]
    row = operating_point([scored(positives=[[0.05]], alarms=alarms, hours=100)], fa_per_hour=0.58)
    assert 0.58 * 100 < 58
    assert row["false_alarms"] == 58


def test_a_threshold_stays_a_hair_above_the_score_that_spoils_it():
    one = scored(positives=[[0.8]], alarms=[[0.5]], hours=1.0)
    threshold = one.curve().threshold_for(0.5)
    assert 0.5 + 1e-7 < threshold < 0.5 + 1e-4


def test_scores_that_crowd_against_one_are_still_told_apart():
    """Ten more in the logit: 1 - 1e-13 against 1 - 1e-15."""
    one = scored(positives=[[1 - 1e-15]], alarms=[[1 - 1e-13]], hours=1.0)
    row = operating_point([one], fa_per_hour=0.5)
    assert (row["misses"], row["false_alarms"]) == (0, 0)


def test_a_false_alarm_of_score_one_cannot_be_excluded():
    one = scored(positives=[[1.0]], alarms=[[1.0]], hours=4.0)
    row = operating_point([one], fa_per_hour=0.1)
    assert row["status"] == "not reached"
    assert row["threshold"] is None
    assert row["frr"] is None
    assert row["misses"] is None
    # one of two targets: an FRR, and 1.0 for the one that is not reached
    assert mean_frr(one, [0.1, 0.25]) == 0.5


def test_a_target_under_one_event_is_unresolved():
    one = scored(positives=[[0.9]], alarms=[[0.5]], hours=1.9)
    assert operating_point([one], fa_per_hour=0.5)["status"] == "unresolved"
    longer = dataclasses.replace(one, negative_hours=2.0)
    assert operating_point([longer], fa_per_hour=0.5)["status"] == "ok"


def test_a_frozen_threshold_is_taken_as_it_is():
    one = scored(positives=[[0.9], [0.6]], alarms=[[0.8], [0.7]], hours=4.0)
    one = dataclasses.replace(one, threshold=0.65)
    row = operating_point([one], fa_per_hour=0.25, frozen=True)
    assert (row["threshold"], row["threshold_from"], row["status"]) == (0.65, "dev", "ok")
    assert (row["misses"], row["false_alarms"]) == (1, 2)
    assert row["measured_fa_per_hour"] == 0.5


@pytest.mark.parametrize("lacking", [{"positives": []}, {"hours": 0.0}])
def test_without_positives_or_negatives_there_is_no_figure(lacking):
    one = scored(**{"positives": [[0.9]], "alarms": [], **lacking})
    row = operating_point([one], fa_per_hour=1)
    assert row["frr"] is None
    assert row["measured_fa_per_hour"] is None


def test_pooling_adds_up():
    one = scored(positives=[[0.9], [0.2]], alarms=[[0.5]], hours=1.0)
    two = scored(positives=[[0.4]], alarms=[[0.3], [0.6]], hours=2.5)
    both = (one + two).curve()
    assert (both.positives, both.negative_hours) == (3, 3.5)
    for t in (0.0, 0.25, 0.35, 0.45, 0.55, 0.8, 1.0):
        assert both.misses(t) == one.curve().misses(t) + two.curve().misses(t)
        assert both.false_alarms(t) == one.curve().false_alarms(t) + two.curve().false_alarms(t)
    assert (one + Scored()).curve().misses(0.5) == one.curve().misses(0.5)


def test_folds_are_pooled_each_at_its_own_threshold():
    one = scored(positives=[[0.9], [0.2]], alarms=[[0.5]], hours=1.0)
    two = scored(positives=[[0.4]], alarms=[[0.3], [0.6]], hours=3.0)
    one, two = (dataclasses.replace(s, threshold=h) for s, h in ((one, 0.6), (two, 0.35)))
    row = operating_point([one, two], fa_per_hour=0.25, frozen=True)
    assert (row["misses"], row["positives"], row["false_alarms"]) == (1, 3, 1)
    assert (row["negative_hours"], row["measured_fa_per_hour"]) == (4.0, 0.25)
    assert (row["threshold"], row["threshold_from"]) == (None, "dev")
    common = operating_point([one, two], fa_per_hour=0.25)
    assert common == operating_point([one + two], fa_per_hour=0.25)
    assert (common["misses"], common["false_alarms"]) == (2, 1)
    assert common["threshold"] == pytest.approx(0.5, abs=1e-4)


def test_latency_runs_from_the_end_of_the_keyword_to_the_first_detection():
    one = Scored(
        [
            occurrence([0.1, 0.6, 0.9], first_delay_s=-0.2),
            occurrence([0.9], first_delay_s=0.3),
            occurrence([0.2], first_delay_s=0.0),
        ],
        negatives([0.1]),
        3.0,
    )
    assert one.latencies_s(0.5) == pytest.approx([-0.1, 0.3])
    assert one.latencies_s(0.7) == pytest.approx([0.0, 0.3])
    assert len(one.latencies_s(0.95)) == 0
    half, high = (dataclasses.replace(one, threshold=h) for h in (0.5, 0.95))
    row = operating_point([half], fa_per_hour=1, frozen=True)
    assert (row["latency_p50_s"], row["latency_p95_s"]) == pytest.approx((0.1, 0.28))
    assert operating_point([high], fa_per_hour=1, frozen=True)["latency_p50_s"] is None


def test_the_mean_over_targets():
    one = scored(positives=[[0.9], [0.45]], alarms=[[0.5], [0.4]], hours=1.0)
    assert mean_frr(one, [0.5, 1.0, 2.0]) == pytest.approx((0.5 + 0.0 + 0.0) / 3)


class Spoken(Detector):
    """A detector with given scores, whatever it hears."""

    def __init__(self, spotter: Spotter, scores) -> None:
        super().__init__(spotter)
        given = np.array(scores, float)
        self.given = given if given.ndim == 2 else given[:, None]

    def scores(self, chunk):
        return self.given

    def tail_scores(self):
        return self.given[:0]


def stream(seconds, *spans_s):
    pieces = [Piece(f"{i}", Span(samples(a), samples(b)), 0) for i, (a, b) in enumerate(spans_s)]
    return Stream(np.zeros(samples(seconds), np.float32), tuple(pieces))


def missed(peak, *, span_s):
    """Whether a single score over the threshold in one window is a hit."""
    scores = np.zeros(60)
    scores[peak] = 0.9
    detector = Spoken(tiny_spotter(), scores)
    heard = listen(detector, positives={"computer": [stream(8, span_s)]}, negatives=[])
    return bool(heard["computer"].curve().misses(0.5))


def test_a_hit_falls_between_the_start_and_a_second_and_a_half_behind_the_end():
    # window w is decided at 1.5125 s + w * 0.1 s
    assert missed(10, span_s=(2.52, 3.0))
    assert not missed(10, span_s=(2.51, 3.0))
    assert not missed(35, span_s=(3.0, 3.52))
    assert missed(35, span_s=(3.0, 3.51))


def test_an_event_that_begins_before_the_keyword_hides_it():
    scores = np.zeros(60)
    scores[[8, 12]] = 0.9
    detector = Spoken(tiny_spotter(), scores)
    streams = {"computer": [stream(8, (2.52, 3.0))]}
    assert listen(detector, positives=streams, negatives=[])["computer"].curve().misses(0.5) == 1


def test_two_keywords_in_a_stream_are_two_occurrences():
    scores = np.zeros(60)
    scores[[5, 30]] = [0.9, 0.6]
    detector = Spoken(tiny_spotter(), scores)
    streams = {"computer": [stream(8, (1.5, 2.0), (4.0, 4.4))]}
    curve = listen(detector, positives=streams, negatives=[])["computer"].curve()
    assert [curve.misses(t) for t in (0.5, 0.7, 0.95)] == [0, 1, 2]


def test_listening_follows_the_detector_event_by_event():
    """The exact counts, against what the same detector reports at a threshold."""
    spotter = tiny_spotter(seed=1, refractory_s=0.3)
    streams = [Stream(bursts(s, seed=s), ()) for s in (7, 12)]
    audio = bursts(9, seed=4)
    spoken = Stream(audio, (Piece("a", Span(samples(3), samples(4)), 0),))
    heard = listen(Detector(spotter), positives={"computer": [spoken]}, negatives=streams)
    curve = heard["computer"].curve()
    assert curve.negative_hours == pytest.approx(19 / 3600)
    edges = curve.alarms.edges
    for threshold in [*((edges[1:] + edges[:-1]) / 2)[::7], 0.0]:
        alarms, hits = 0, []
        detector = Detector(spotter, thresholds={"computer": threshold})
        for one in [*streams, spoken]:
            detector.reset()
            found = detector.push(one.audio) + detector.flush()
            if one is spoken:
                hits = [d for d in found if 3.0 <= d.time_s <= 5.5]
            else:
                alarms += len(found)
        assert curve.false_alarms(threshold) == alarms
        assert curve.misses(threshold) == (not hits)


def test_amid_other_audio_what_hits_no_keyword_is_a_false_alarm():
    # decided at 2.0 (hit), 3.5 (hit, late), 5.5 and 7.0 s (false alarms)
    scores = np.zeros(70)
    scores[[5, 20, 40, 55]] = [0.9, 0.8, 0.7, 0.6]
    detector = Spoken(tiny_spotter(), scores)
    heard = listen_amid(detector, stream(9, (1.5, 1.9), (3.0, 3.2)), "computer")
    curve = heard.curve()
    assert [curve.misses(t) for t in (0.5, 0.85, 0.95)] == [0, 1, 2]
    assert [curve.false_alarms(t) for t in (0.5, 0.65, 0.75)] == [2, 1, 0]
    # windows 0 to 31 hit one or both
    assert heard.negative_hours == pytest.approx(38 * 0.1 / 3600)


def test_amid_other_audio_an_event_counts_once_whether_it_hits_or_not():
    spotter = tiny_spotter(seed=1, refractory_s=0.3)
    one = Stream(bursts(20, seed=4), (Piece("a", Span(samples(8), samples(9)), 0),))
    curve = listen_amid(Detector(spotter), one, "computer").curve()
    for threshold in curve.alarms.edges[::5]:
        detector = Detector(spotter, thresholds={"computer": threshold})
        found = detector.push(one.audio) + detector.flush()
        hits = [d for d in found if 8.0 <= d.time_s <= 10.5]
        assert curve.misses(threshold) == (not hits)
        assert curve.false_alarms(threshold) == len(found) - len(hits)


def test_features_stand_in_for_audio():
    spotter = tiny_spotter()
    audio = noise(5)
    plain = scores_of(Detector(spotter), Stream(audio, ()))
    features = spotter.frontend.stream().push(audio)
    short = scores_of(Detector(spotter), Stream(audio, (), features))
    np.testing.assert_allclose(short, plain[: len(short)], atol=1e-6)
    # only the windows that the silence behind the end completes are lacking
    assert len(plain) - len(short) in (7, 8)


def test_several_keywords_share_the_negatives():
    labels = ("_background_", "left", "right")
    spotter = tiny_spotter(labels=labels)
    audio = Stream(noise(4), ())
    spans = (Piece("x", Span(samples(2), samples(3)), 0),)
    positives = {"right": [Stream(noise(4, seed=1), spans)], "left": []}
    heard = listen(Detector(spotter), positives=positives, negatives=[audio])
    scores = scores_of(Detector(spotter), audio)
    for column, keyword in enumerate(("left", "right")):
        np.testing.assert_allclose(heard[keyword].negatives[0].score, scores[:, column])
    assert len(heard["right"].occurrences) == 1
    assert heard["left"].occurrences == []


def test_a_curve_of_nothing():
    curve = Scored().curve()
    assert isinstance(curve, Curve)
    assert curve.threshold_for(0.5) == 0.0
    assert (curve.misses(0.5), curve.false_alarms(0.5)) == (0, 0)
