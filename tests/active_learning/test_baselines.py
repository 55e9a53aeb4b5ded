import itertools
import math

import pytest
import torch

from speechkit import ctc
from speechkit.active_learning import baselines
from speechkit.active_learning.baselines import disagreement
from speechkit.active_learning.scorers import RECOGNISER, SPOTTER, parse, split
from speechkit.errors import RequestError
from tests.active_learning.helpers import TinyRecogniser, cut_of, pool_of, utterances

NAMES = sorted(set(RECOGNISER) - {"committee"})


@pytest.fixture(scope="module")
def model():
    return TinyRecogniser(dtype=torch.float64)


def scores(text, model, cuts, seed=0):
    (strategy,) = parse([text], RECOGNISER, seed=seed)
    return strategy.columns(utterances(model, cuts))[text]


@pytest.mark.parametrize("name", NAMES)
def test_contract(name, model):
    cuts = [cut for cut in pool_of(6) if cut.duration > 0.1]
    found = scores(name, model, cuts)
    assert len(found) == len(cuts)
    assert torch.tensor(found, dtype=torch.float64).isfinite().all()
    # neither order nor company matter, and nothing is left to chance
    assert scores(name, model, cuts) == found
    alone = [scores(name, model, [cut])[0] for cut in reversed(cuts)]
    for a, b in zip(found, reversed(alone), strict=True):
        assert a == pytest.approx(b, rel=1e-6)
    assert not model.network.training


def test_confidences_against_enumeration(model):
    cut = cut_of("x", 0.09)
    batch = utterances(model, [cut])
    frames = int(batch.frames[0])
    everything = [
        y
        for n in range(frames + 1)
        for y in itertools.product(range(1, model.tokens), repeat=n)
        if ctc.feasible(frames, y)
    ]
    log_p = ctc.log_likelihood(batch.posteriors(0), everything)
    best, second = log_p.topk(2).values.tolist()
    tokens = max(1, len(everything[int(log_p.argmax())]))
    found = {name: scores(name, model, [cut])[0] for name in NAMES if name != "embedding"}
    assert found["confidence"] == pytest.approx(-best)
    assert found["confidence_per_token"] == pytest.approx(-best / tokens)
    assert found["pctc"] == pytest.approx(-best / frames)
    assert found["margin"] == pytest.approx(second - best)
    entropy = torch.distributions.Categorical(logits=batch.logits[0]).entropy()
    assert found["entropy"] == pytest.approx(float(entropy.mean()))
    assert found["entropy_sum"] == pytest.approx(float(entropy.sum()))
    assert found["longest"] == -found["shortest"] == 0.09


def test_random_follows_seed_and_id(model):
    cuts = pool_of(4)
    assert scores("random", model, cuts, seed=1) != scores("random", model, cuts, seed=2)
    assert scores("random:seed=2", model, cuts, seed=1) == scores("random", model, cuts, seed=2)


def test_the_true_gradient_is_that_of_autograd(model):
    cut = cut_of("x", 0.2, text="ab")
    (found,) = scores("true_gradient", model, [cut])
    features = model.features([cut])[0]
    logits, lengths, _ = model.network(features, torch.tensor([features.shape[1]]))
    loss = ctc.loss(logits, lengths, [model.tokens_of("ab")]).sum()
    gradients = torch.autograd.grad(loss, list(model.network.parameters()))
    assert found == pytest.approx(sum(float(g.square().sum()) for g in gradients), rel=1e-9)


@pytest.mark.parametrize("text", ["xyz", "ab" * 40])
def test_a_transcript_that_cannot_be_is_said(model, text, caplog):
    good, bad = cut_of("good", 0.2, text="ab"), cut_of("bad", 0.2, text=text)
    found = scores("true_gradient", model, [bad, good])
    assert found == [None, *scores("true_gradient", model, [good])]
    assert "bad" in caplog.text


def test_oracles_score_nothing_without_a_transcript(model):
    good, bad = cut_of("good", 0.2, text="ab"), cut_of("bad", 0.2)
    bad.supervisions = []
    for name in ("true_gradient", "true_errors"):
        assert scores(name, model, [good, bad]) == [*scores(name, model, [good]), None]


def test_true_errors(model, monkeypatch):
    """Against the transcript as the model would write it: without capitals, here."""
    monkeypatch.setattr(model, "tokens_of", lambda text: ("said", text.lower()))
    monkeypatch.setattr(model, "text_of", lambda t: t[1] if t[:1] == ("said",) else "ab a b")
    cut = cut_of("x", 0.2, text="Ab B")
    assert scores("true_errors", model, [cut]) == [pytest.approx(0.5)]
    cut.supervisions[0].text = ""
    assert scores("true_errors", model, [cut]) == [3.0]


def test_disagreement():
    assert disagreement(["abcd", "abcd", "abcd"]) == 0
    assert disagreement(["abcd", "abcx"]) == pytest.approx(0.25)
    assert disagreement(["", "abcd"]) == 1
    assert disagreement(["", ""]) == 0


def test_transcripts_under_dropout_differ():
    model = TinyRecogniser(dropout=0.3)
    found = scores("dropout:passes=4", model, pool_of(6))
    assert all(value >= 0 for value in found)
    assert max(found) > 0


def test_dropout_needs_dropout():
    bare = TinyRecogniser(dropout=0.0)
    with pytest.raises(RequestError, match="no layer of dropout"):
        scores("dropout", bare, pool_of(2))


def test_a_committee_of_twins_agrees(model, monkeypatch):
    cuts = [cut_of(str(i), 0.4) for i in range(4)]
    others = {"twin": TinyRecogniser(dtype=torch.float64), "other": TinyRecogniser(5)}
    baselines._member.cache_clear()
    monkeypatch.setattr(baselines.checkpoint, "load_model", lambda folder: others[folder.name])
    assert scores("committee:models=twin", model, cuts) == [0, 0, 0, 0]
    assert sum(scores("committee:models=twin+other", model, cuts)) > 0
    baselines._member.cache_clear()


def test_sketches_keep_distances(model):
    cuts = pool_of(8)
    batch = utterances(model, cuts)
    (small,) = parse(["embedding:size=40"], RECOGNISER, seed=0)
    rows = torch.tensor(small.columns(batch)["embedding:size=40"])
    assert rows.shape == (8, 1600)
    exact = []
    for place, best in enumerate(batch.best()):
        gradient = ctc.logit_gradients(batch.posteriors(place), [best.tokens]).gradients[0]
        hidden = batch.hidden[place, : len(gradient)]
        exact.append((gradient.mT @ torch.cat([hidden, torch.ones(len(hidden), 1)], 1)).flatten())
    close, true = torch.pdist(rows.double()), torch.pdist(torch.stack(exact))
    assert float(torch.corrcoef(torch.stack([close, true]))[0, 1]) > 0.95


def test_names_with_parameters():
    texts = split(["egl:weights=raw,k=4,entropy", " random ", "entropy"])
    assert texts == ["egl:weights=raw,k=4", "entropy", "random"]
    first, *_ = parse(texts, RECOGNISER, seed=7)
    assert first.name == "egl:weights=raw,k=4"
    assert (first.scorer.weights, first.scorer.k, first.scorer.seed) == ("raw", 4, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("egel", "did you mean egl"),
        ("egl:kk=4", "no parameter"),
        ("egl:k=many", "no number"),
        ("egl:weights=best", "weights best"),
        ("committee", "models"),
        (" , ", "no strategy"),
    ],
)
def test_unknown_names_are_said(text, message):
    with pytest.raises(RequestError, match=message):
        parse([text], RECOGNISER, seed=0)


def test_a_spotter_has_its_own_strategies():
    assert {"egl", "entropy", "margin", "random"} <= set(SPOTTER)
    with pytest.raises(RequestError, match="pctc"):
        parse(["pctc"], SPOTTER, seed=0)


def test_a_single_hypothesis_has_a_margin():
    from speechkit.ctc_beam import Hypothesis

    certain = baselines._margin([Hypothesis((1,), math.log(0.9), 0.0)])
    assert certain == pytest.approx(math.log(0.1 / 0.9))
