"""Events: the trigger, the onsets and the counts against the definition written out."""

import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechkit.kws.events import Onsets, Trigger, count_detected, count_events, onsets

# few distinct values, so that equal scores and scores equal to the threshold are common
scores = st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.5000001, 0.9, 1.0]), max_size=40)
refractories = st.sampled_from([0, 1, 2, 3, 7, 100])
thresholds = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.5, 0.50000005, 0.9, 0.95, 1.0, 1.1])


def event_starts(values, threshold, refractory):
    """The definition: a window above starts an event if none of those before it was near."""
    above = [i for i, value in enumerate(values) if value >= threshold]
    return [i for k, i in enumerate(above) if k == 0 or not i - above[k - 1] < refractory]


def pushed(values, threshold, refractory, cuts):
    trigger = Trigger(threshold, refractory)
    found, bounds = [], [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    for start, end in itertools.pairwise(bounds):
        found += [start + i for i in trigger.push(np.array(values[start:end]))]
    return found


@given(scores, thresholds, refractories, st.lists(st.integers(0, 40), max_size=5))
@example([0.9] * 12, 0.9, 3, [])
@example([], 0.5, 7, [])
def test_trigger_and_onsets_follow_the_definition(values, threshold, refractory, cuts):
    wanted = event_starts(values, threshold, refractory)
    assert pushed(values, threshold, refractory, cuts) == wanted
    assert onsets(np.array(values, float), refractory).starts(threshold).tolist() == wanted


def test_a_long_event_is_one_however_long():
    assert event_starts([0.9] * 100, 0.5, 5) == [0]
    assert pushed([0.9] * 100, 0.5, 5, [3, 50]) == [0]


def test_a_gap_of_the_refractory_time_parts_events():
    values = np.array([0.9, 0, 0, 0.9, 0, 0, 0, 0.9])
    assert onsets(values, 4).starts(0.5).tolist() == [0, 7]
    assert onsets(values, 3).starts(0.5).tolist() == [0, 3, 7]


def test_reset_forgets_the_last_event():
    trigger = Trigger(0.5, 10)
    assert trigger.push(np.array([0.9, 0.9])) == [0]
    assert trigger.push(np.array([0.9])) == []
    trigger.reset()
    assert trigger.push(np.array([0.9])) == [0]


def probes(edges):
    """Every edge, both its neighbours, and a point in each gap."""
    edges = np.asarray(edges, float)
    between = (edges[1:] + edges[:-1]) / 2
    return np.concatenate(
        [edges, np.nextafter(edges, -9), np.nextafter(edges, 9), between, [-1.0, 0.0, 2.0]]
    )


@given(st.lists(scores, max_size=4), refractories)
def test_the_count_of_events_is_exact_at_every_threshold(streams, refractory):
    count = count_events([onsets(np.array(s, float), refractory) for s in streams])
    assert len(count.counts) == len(count.edges) + 1
    assert (np.diff(count.edges) > 0).all()
    for threshold in probes([*count.edges, *(v for s in streams for v in s)]):
        wanted = sum(len(event_starts(s, threshold, refractory)) for s in streams)
        assert count.at(threshold) == wanted


@given(
    st.lists(st.tuples(scores, st.integers(0, 10), st.integers(0, 30)), max_size=4), refractories
)
def test_the_count_of_detected_is_exact_at_every_threshold(cases, refractory):
    occurrences = []
    for values, first, length in cases:
        whole = onsets(np.array(values, float), refractory)
        inside = slice(first, first + length)
        occurrences.append(Onsets(whole.floor[inside], whole.score[inside]))
    count = count_detected(occurrences)
    for threshold in probes([*count.edges, *(v for c in cases for v in c[0])]):
        wanted = sum(
            any(first <= i < first + length for i in event_starts(values, threshold, refractory))
            for values, first, length in cases
        )
        assert count.at(threshold) == wanted


def test_at_takes_many_thresholds_at_once():
    count = count_events([onsets(np.array([0.2, 0.9, 0.4]), 0)])
    assert count.at(np.array([0.1, 0.2, 0.3, 0.4, 0.9, 0.95])).tolist() == [3, 3, 2, 2, 1, 0]


def test_nothing_gives_no_events():
    for count in (count_events([]), count_detected([]), count_events([onsets(np.zeros(0), 3)])):
        assert count.at(np.array([0.0, 0.5, 1.0])).tolist() == [0, 0, 0]


def test_a_higher_threshold_may_give_more_events():
    """Two peaks joined by a shoulder are one event under the shoulder, two above it."""
    count = count_events([onsets(np.array([0.9, 0.5, 0.5, 0.5, 0.9]), 3)])
    assert [int(count.at(t)) for t in (0.4, 0.5, 0.6, 0.9, 0.91)] == [1, 1, 2, 2, 0]


def test_a_higher_threshold_may_find_more_keywords():
    """An event that began before the keyword hides it, unless the threshold parts the two."""
    whole = onsets(np.array([0.6, 0.6, 0.6, 0.9, 0.6]), 2)
    keyword = Onsets(whole.floor[2:], whole.score[2:])
    count = count_detected([keyword])
    assert [int(count.at(t)) for t in (0.5, 0.6, 0.7, 0.9, 0.95)] == [0, 0, 1, 1, 0]


@pytest.mark.parametrize("length", [1, 2, 9, 10, 11, 30])
def test_streams_shorter_and_longer_than_the_refractory_time(length):
    found = onsets(np.linspace(0.1, 0.9, length), 10)
    assert found.starts(0.0).tolist() == [0]
    assert found.floor.shape == (length,)
