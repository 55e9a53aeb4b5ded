"""The prefix beam search, against the enumeration of every transcript of tiny problems."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import ctc
from speechkit.ctc_beam import BeamConfig, Hypothesis, beam_search
from speechkit.errors import RequestError

EXHAUSTIVE = BeamConfig(beam=400, min_log_prob=-1e9, max_gap=1e9)


def logits(*shape, seed=0, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def enumerate_transcripts(z, *, blank=0):
    """Return all transcripts that fit, best first, with their exact log-probabilities."""
    labels = [token for token in range(z.shape[1]) if token != blank]
    ys = [
        y
        for size in range(len(z) + 1)
        for y in itertools.product(labels, repeat=size)
        if ctc.feasible(len(z), y)
    ]
    chances = ctc.log_likelihood(z, ys, blank=blank).tolist()
    return sorted(zip(ys, chances, strict=True), key=lambda pair: -pair[1])


class Bigram:
    """Scores each token given the one before; -inf where the table has none."""

    def __init__(self, table, final=None):
        self.table = table
        self.final = final or {}
        self.asked = 0

    def start(self):
        return None

    def score(self, state, token):
        self.asked += 1
        return self.table.get((state, token), -math.inf), token

    def finish(self, state):
        return self.final.get(state, 0.0)

    def total(self, tokens):
        pairs = itertools.pairwise((None, *tokens))
        ends = tokens[-1] if tokens else None
        return sum(self.table.get(pair, -math.inf) for pair in pairs) + self.finish(ends)


def random_bigram(vocabulary, seed=0):
    scores = iter(logits(vocabulary * (vocabulary + 1), seed=seed).flatten().tolist())
    tokens = range(1, vocabulary)
    table = {(a, b): next(scores) for a in (None, *tokens) for b in tokens}
    return Bigram(table, {token: next(scores) for token in tokens})


def plain_search(z, beam):
    """Return the scores of the prefixes that the textbook search ends with, blank 0."""
    kept = {(): (1.0, 0.0)}
    for chances in z.softmax(-1).tolist():
        found = {}

        def add(prefix, in_blank, in_label, found=found):
            before = found.get(prefix, (0.0, 0.0))
            found[prefix] = (before[0] + in_blank, before[1] + in_label)

        for prefix, (in_blank, in_label) in kept.items():
            last = prefix[-1] if prefix else 0
            both = in_blank + in_label
            add(prefix, both * chances[0], in_label * chances[last])
            for token in range(1, len(chances)):
                add((*prefix, token), 0.0, (in_blank if token == last else both) * chances[token])
        best = sorted(found.items(), key=lambda item: -sum(item[1]))
        kept = dict(best[:beam])
    return {prefix: math.log(sum(masses)) for prefix, masses in kept.items() if sum(masses) > 0}


@pytest.mark.parametrize("beam", [1, 2, 5, 40])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
def test_the_search_equals_the_textbook_one(beam, scale):
    for seed in range(4):
        z = logits(8 + 9 * seed, 2 + seed, seed=seed, scale=scale)
        (found,) = beam_search(z, config=BeamConfig(beam=beam, min_log_prob=-1e9))
        expected = plain_search(z, beam)
        scores = {hypothesis.tokens: hypothesis.score for hypothesis in found}
        assert scores == {y: pytest.approx(score) for y, score in expected.items()}


@pytest.mark.parametrize(
    ("frames", "vocabulary", "blank"), [(1, 2, 0), (5, 4, 0), (7, 3, 2), (6, 3, 1)]
)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_a_wide_beam_finds_every_transcript(frames, vocabulary, blank, scale):
    z = logits(frames, vocabulary, scale=scale)
    expected = enumerate_transcripts(z, blank=blank)
    (found,) = beam_search(z, config=EXHAUSTIVE, blank=blank)
    assert [hypothesis.tokens for hypothesis in found] == [y for y, _ in expected]
    exact = pytest.approx([chance for _, chance in expected], rel=1e-12, abs=1e-12)
    assert [hypothesis.log_prob for hypothesis in found] == exact
    # nothing was pruned, so that the search saw every path
    assert [hypothesis.score for hypothesis in found] == exact


@pytest.mark.parametrize("seed", range(5))
def test_a_narrow_beam_finds_the_best_of_them_exactly_scored(seed):
    z = logits(7, 4, seed=seed, scale=2.0)
    expected = dict(enumerate_transcripts(z))
    (found,) = beam_search(z, config=BeamConfig(beam=24, nbest=4))
    assert [hypothesis.tokens for hypothesis in found] == list(expected)[:4]
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(expected[hypothesis.tokens], rel=1e-12)


def test_a_padded_batch_equals_single_clips():
    lengths = torch.tensor([40, 13, 1, 0, 33])
    z = logits(5, 40, 7, scale=3.0)
    z[1, 13:] = math.nan
    together = beam_search(z, lengths)
    for clip, length, found in zip(z, lengths, together, strict=True):
        (alone,) = beam_search(clip[:length])
        assert [hypothesis.tokens for hypothesis in alone] == [
            hypothesis.tokens for hypothesis in found
        ]
        for one, other in zip(alone, found, strict=True):
            assert one.log_prob == pytest.approx(other.log_prob, rel=1e-12)
            assert one.score == pytest.approx(other.score, rel=1e-12)
    assert together[3] == [Hypothesis((), 0.0, 0.0)]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_hypotheses_are_distinct_sorted_and_no_better_than_exact(data):
    frames = data.draw(st.integers(1, 60))
    vocabulary = data.draw(st.integers(2, 9))
    scale = data.draw(st.sampled_from([0.1, 1.0, 4.0, 12.0]))
    z = logits(frames, vocabulary, seed=data.draw(st.integers(0, 99)), scale=scale)
    z[:, 0] += data.draw(st.sampled_from([0.0, 3.0]))
    config = BeamConfig(
        beam=data.draw(st.integers(1, 12)),
        max_tokens=data.draw(st.integers(1, 9)),
        min_log_prob=data.draw(st.sampled_from([-1e9, -12.0, -2.0])),
    )
    scorer = data.draw(st.sampled_from([None, Bigram(random_bigram(vocabulary).table)]))
    (found,) = beam_search(z, config=config, scorer=scorer)
    assert 1 <= len(found) <= config.beam
    assert len({hypothesis.tokens for hypothesis in found}) == len(found)
    exact = ctc.log_likelihood(z, [hypothesis.tokens for hypothesis in found]).tolist()
    assert [hypothesis.log_prob for hypothesis in found] == pytest.approx(exact, rel=1e-12)
    bonuses = [scorer.total(hypothesis.tokens) if scorer else 0.0 for hypothesis in found]
    for hypothesis, bonus in zip(found, bonuses, strict=True):
        assert hypothesis.score <= hypothesis.log_prob + bonus + 1e-9
    keys = [hypothesis.score if scorer else hypothesis.log_prob for hypothesis in found]
    assert keys == sorted(keys, reverse=True)


def test_the_beam_beats_the_best_path():
    # two frames: the best path is all blank, the best transcript is one label
    z = torch.tensor([[0.6, 0.4], [0.6, 0.4]]).double().log()
    (best, second) = beam_search(z)[0]
    assert ctc.greedy(z)[0].tokens == ()
    assert (best.tokens, second.tokens) == ((1,), ())
    assert math.exp(best.log_prob) == pytest.approx(0.64)


def test_long_clips_do_not_underflow():
    z = logits(3000, 5, scale=0.5)
    (best, *_) = beam_search(z, config=BeamConfig(beam=4))[0]
    assert best.log_prob < -1000
    assert -3000 * math.log(5) < best.score <= best.log_prob


def test_tokens_may_be_pruned_to_none():
    z = torch.full((4, 3), -30.0).double()
    z[:, 0] = 0.0
    z[2, :2] = torch.tensor([-math.inf, 0.0])
    config = BeamConfig(min_log_prob=-1.0)
    (found,) = beam_search(z, config=config)
    assert found[0].tokens == (1,)
    assert beam_search(z[:2], config=config)[0][0].tokens == ()


def test_a_large_vocabulary_is_pruned_to_the_same_best():
    z = logits(30, 500, scale=4.0)
    (narrow,) = beam_search(z, config=BeamConfig(beam=8, max_tokens=12))
    (wide,) = beam_search(z, config=BeamConfig(beam=8, max_tokens=500, min_log_prob=-1e9))
    assert [hypothesis.tokens for hypothesis in narrow[:3]] == [
        hypothesis.tokens for hypothesis in wide[:3]
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_scorer_that_says_nothing_changes_nothing(seed):
    z = logits(25, 5, seed=seed, scale=3.0)
    config = BeamConfig(beam=30, min_log_prob=-1e9, max_gap=1e9)
    silent = Bigram({(a, b): 0.0 for a in (None, 1, 2, 3, 4) for b in (1, 2, 3, 4)})
    (plain,) = beam_search(z, config=config)
    (scored,) = beam_search(z, config=config, scorer=silent)
    assert {h.tokens: pytest.approx(h.score) for h in plain} == {h.tokens: h.score for h in scored}


@pytest.mark.parametrize("seed", range(3))
def test_a_scorer_ranks_as_enumeration_does(seed):
    z = logits(5, 4, seed=seed)
    scorer = random_bigram(4, seed=seed)
    expected = {y: chance + scorer.total(y) for y, chance in enumerate_transcripts(z)}
    ranked = sorted(expected, key=expected.__getitem__, reverse=True)
    (found,) = beam_search(z, config=EXHAUSTIVE, scorer=scorer)
    assert [hypothesis.tokens for hypothesis in found] == ranked
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.tokens], rel=1e-9)


def test_a_scorer_forbids_tokens_and_ends():
    z = logits(6, 4)
    z[:, 1] += 3.0
    # only 2 3 2 3 ..., which must end in 3; the empty transcript may end as well
    alternate = {(None, 2): 0.0, (2, 3): 0.0, (3, 2): 0.0}
    (found,) = beam_search(z, config=EXHAUSTIVE, scorer=Bigram(alternate, {2: -math.inf}))
    assert {h.tokens for h in found} == {(), (2, 3), (2, 3, 2, 3), (2, 3, 2, 3, 2, 3)}
    assert all(math.isfinite(h.score) for h in found)


def test_without_a_legal_end_the_hypotheses_come_back_marked():
    z = logits(4, 3)
    nothing_ends = Bigram({(None, 1): 0.0}, {None: -math.inf, 1: -math.inf})
    (found,) = beam_search(z, scorer=nothing_ends)
    assert {h.tokens for h in found} == {(), (1,)}
    assert all(h.score == -math.inf and math.isfinite(h.log_prob) for h in found)


def test_a_scorer_that_forbids_what_the_clip_says_gives_the_empty_transcript():
    z = torch.full((3, 3), -math.inf).double()
    z[:, 1] = 0.0
    (found,) = beam_search(z, scorer=Bigram({}))
    assert found == [Hypothesis((), -math.inf, -math.inf)]


def test_a_scorer_is_asked_once_for_each_prefix_and_token():
    z = logits(200, 4, scale=4.0)
    scorer = Bigram({(a, b): -0.1 for a in (None, 1, 2, 3) for b in (1, 2, 3)})
    met = []
    score = scorer.score
    scorer.start = lambda: ()
    scorer.score = lambda state, token: (
        met.append((*state, token)) or score(state[-1] if state else None, token)[0],
        (*state, token),
    )
    scorer.finish = lambda state: 0.0
    beam_search(z, config=BeamConfig(beam=4), scorer=scorer)
    assert len(met) == len(set(met))


@pytest.mark.parametrize("name", ["beam", "nbest", "max_tokens"])
def test_a_beam_of_nothing_is_refused(name):
    with pytest.raises(RequestError, match=f"{name} 0: must be 1 or more"):
        BeamConfig(**{name: 0})


def test_bonuses_of_any_size_are_added_up():
    z = logits(30, 3)
    (found,) = beam_search(
        z, config=BeamConfig(beam=4), scorer=Bigram({(None, 1): -1000.0, (1, 2): 900.0})
    )
    assert all(math.isfinite(h.score) for h in found)
    # silence costs no bonus, and 1 2 has made up for most of its own
    assert found[0].tokens == ()
    assert all(h.score < -900 for h in found if h.tokens == (1,))
