"""Errors against jiwer's measures, empty sides, tables; intervals that cover."""

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr.bootstrap import compare, wer_interval
from speechkit.asr.scoring import Counts, Pair, Transcript, score
from speechkit.errors import RequestError

TEXT = st.lists(st.sampled_from(["a", "bb", "ab", "c"]), max_size=6).map(" ".join)


def corpus(*pairs, speakers=None):
    speakers = speakers or [None] * len(pairs)
    return score(
        Transcript(str(i), *pair, speaker=speaker)
        for i, (pair, speaker) in enumerate(zip(pairs, speakers, strict=True))
    )


@given(st.lists(st.tuples(TEXT.filter(bool), TEXT), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_rates_equal_jiwers(pairs):
    scored = corpus(*pairs)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert scored.words.rate == pytest.approx(jiwer.wer(references, hypotheses))
    assert scored.characters.rate == pytest.approx(jiwer.cer(references, hypotheses))
    for utterance in scored.utterances:
        sides = utterance.alignment
        words = [pair.reference for pair in sides if pair.reference is not None]
        assert words == utterance.transcript.reference.split()
        words = [pair.hypothesis for pair in sides if pair.hypothesis is not None]
        assert words == utterance.transcript.hypothesis.split()
        assert len(utterance.correct) == len(words)


def test_kinds_of_errors():
    one = corpus(("the cat sat down", "cat  sit down\tnow")).utterances[0]
    assert one.words == Counts(hits=2, substitutions=1, deletions=1, insertions=1)
    assert one.words.rate == 3 / 4
    assert one.alignment == (
        Pair("delete", "the", None),
        Pair("equal", "cat", "cat"),
        Pair("substitute", "sat", "sit"),
        Pair("equal", "down", "down"),
        Pair("insert", None, "now"),
    )
    assert one.correct == [True, False, True, False]


def test_empty_sides():
    scored = corpus(("", ""), ("", "a b"), ("a b", ""), ("a b", "a b"))
    assert [u.words.errors for u in scored.utterances] == [0, 2, 2, 0]
    assert [u.words.rate for u in scored.utterances] == [0, 2, 1, 0]
    assert [u.characters.errors for u in scored.utterances] == [0, 3, 3, 0]
    assert scored.words == Counts(hits=2, deletions=2, insertions=2)
    assert scored.words.rate == 1
    assert scored.wrong_utterances == 2
    assert corpus().words.rate == 0


def test_speakers_and_confusions():
    scored = corpus(
        ("b d", "d d"), ("b", "d"), ("a", "a"), ("e", "b"), speakers=["x", "y", "x", None]
    )
    parts = scored.by_speaker()
    assert list(parts) == [None, "y", "x"]
    assert parts["x"].words == Counts(hits=2, substitutions=1)
    assert scored.confusions("substitute") == [
        (Pair("substitute", "b", "d"), 2),
        (Pair("substitute", "e", "b"), 1),
    ]
    assert len(scored.confusions("substitute", top=1)) == 1
    assert scored.confusions("insert") == []


def test_repeated_ids_are_refused():
    with pytest.raises(RequestError, match="'1' occurs 2 times"):
        score([Transcript("1", "a", "a"), Transcript("1", "b", "b")])


def noisy(rng, *, count=60, rate=0.2):
    references = [" ".join(rng.choice(list("abcd"), size=8)) for _ in range(count)]
    return [
        (text, " ".join("x" if rng.random() < rate else word for word in text.split()))
        for text in references
    ]


def test_intervals_cover_the_truth(rng):
    covered = 0
    for trial in range(20):
        interval = wer_interval(corpus(*noisy(rng)), seed=trial)
        assert interval.low < interval.high
        covered += interval.low <= 0.2 <= interval.high
    assert covered >= 16


def test_intervals_are_repeatable_and_handle_edges(rng):
    scored = corpus(*noisy(rng))
    assert wer_interval(scored, seed=1) == wer_interval(scored, seed=1)
    assert wer_interval(scored, seed=1) != wer_interval(scored, seed=2)
    perfect = wer_interval(corpus(("a", "a")))
    assert (perfect.low, perfect.high) == (0, 0)
    nothing = wer_interval(corpus())
    assert (nothing.low, nothing.high) == (0, 0)


def test_paired_comparison(rng):
    pairs = noisy(rng, rate=0.3)
    first = corpus(*pairs)
    # the second system repairs the first word of each utterance
    second = corpus(*((ref, " ".join([ref.split()[0], *hyp.split()[1:]])) for ref, hyp in pairs))
    change = compare(first, second)
    assert change.value == pytest.approx(second.words.rate - first.words.rate)
    assert change.interval.low < change.value < change.interval.high < 0
    assert change.improved == 1
    # pairing removes the differences between utterances
    alone = [wer_interval(system) for system in (first, second)]
    width = change.interval.high - change.interval.low
    assert width < sum(i.high - i.low for i in alone)
    same = compare(first, first)
    assert (same.value, same.interval.low, same.interval.high, same.improved) == (0, 0, 0, 0)


def test_characters_are_compared_too():
    first, second = corpus(("abcd", "abcx"), ("ef", "ef")), corpus(("abcd", "axxx"), ("ef", "ef"))
    change = compare(first, second, unit="characters")
    assert change.value == pytest.approx(2 / 6)
    assert compare(first, second).value == 0
    assert change.to_dict()["points"].startswith("+33.33 (")


def test_comparison_pairs_by_id():
    first = score([Transcript("1", "a b", "a b"), Transcript("2", "c", "x")])
    second = score([Transcript("2", "c", "x"), Transcript("1", "a b", "a b")])
    change = compare(first, second)
    assert np.allclose([change.interval.low, change.interval.high], 0)
    with pytest.raises(RequestError, match="different utterances"):
        compare(first, corpus(("a b", "a b")))
    with pytest.raises(RequestError, match="references differ"):
        compare(first, score([Transcript("1", "a", "a"), Transcript("2", "c", "x")]))
