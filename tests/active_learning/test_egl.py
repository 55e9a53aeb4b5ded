import itertools
import math

import pytest
import torch

from speechkit import ctc
from speechkit.active_learning import egl as egl_module
from speechkit.active_learning.cotangents import principal
from speechkit.active_learning.egl import Egl
from speechkit.active_learning.gradient_norms import record
from speechkit.active_learning.keyword_scorers import (
    ClassConfidence,
    ClassEgl,
    ClassEntropy,
    ClassMargin,
)
from speechkit.active_learning.models import Clip, Windows, _possible
from speechkit.ctc_beam import Hypothesis
from speechkit.errors import RequestError
from tests.active_learning.helpers import TinyRecogniser, cut_of, pool_of, utterances

SHORT = [cut_of("a", 0.08), cut_of("b", 0.1), cut_of("c", 0.09, noise=3.0)]
ALL = 400


@pytest.fixture(scope="module")
def model():
    return TinyRecogniser(dtype=torch.float64)


def loss_gradient(model, features, tokens, parameters):
    logits, lengths, _ = model.network(features[None], torch.tensor([len(features)]))
    nll = ctc.loss(logits, lengths, [tokens])
    gradients = torch.autograd.grad(nll.sum(), parameters, allow_unused=True)
    return nll.item(), torch.cat([g.flatten() for g in gradients if g is not None])


def parameters_of(model, parameters):
    if parameters == "all":
        return list(model.network.parameters())
    if parameters == "output":
        return list(model.output_layer.parameters())
    return [p for n, p in model.network.named_parameters() if n.split(".")[0] in parameters]


def enumerated(model, cut, parameters="all", power=2):
    """Return the sum over all transcripts, one forward and backward pass each."""
    features = model.features([cut])[0][0]
    frames = (len(features) + 1) // 2
    total, mass, mean = 0.0, 0.0, 0.0
    for count in range(frames + 1):
        for tokens in itertools.product(range(1, model.tokens), repeat=count):
            if ctc.feasible(frames, tokens):
                chosen = parameters_of(model, parameters)
                nll, gradient = loss_gradient(model, features, tokens, chosen)
                p = math.exp(-nll)
                total += p * float(gradient.norm()) ** power
                mean, mass = mean + p * gradient, mass + p
    assert mass == pytest.approx(1, abs=1e-9)
    assert float(mean.abs().max()) < 1e-9  # the expected gradient is 0
    return total


@pytest.mark.parametrize("parameters", ["all", "output", "inner+output", "down"])
@pytest.mark.parametrize("weights", ["raw", "renorm", "stratified"])
def test_a_beam_of_all_transcripts_gives_the_enumerated_value(
    model, parameters, weights, monkeypatch
):
    everything = Egl(weights=weights, k=ALL, parameters=parameters, tolerance=0.0)
    batch = utterances(model, SHORT)
    monkeypatch.setattr(egl_module, "_LIMIT_ELEMENTS", 10**9)
    found = everything.score(batch)
    expected = [enumerated(model, cut, parameters) for cut in SHORT]
    assert found[""] == pytest.approx(expected, rel=1e-4)  # the beam prunes at -10 nats a frame
    assert found["beam_mass"] == pytest.approx([1, 1, 1], abs=1e-4)


def test_lengths_instead_of_squares(model):
    found = Egl(k=ALL, power=1).score(utterances(model, SHORT[:1]))
    assert found[""] == pytest.approx([enumerated(model, SHORT[0], power=1)], rel=1e-4)


@pytest.mark.parametrize("parameters", ["all", "output", "logits"])
@pytest.mark.parametrize("weights", ["raw", "renorm", "sample", "stratified"])
def test_a_padded_batch_is_the_clips_alone(model, parameters, weights):
    cuts = pool_of(7)
    scorer = Egl(weights=weights, parameters=parameters, k=5, seed=3)
    together = scorer.score(utterances(model, cuts))
    alone = [scorer.score(utterances(model, [cut])) for cut in cuts]
    for name, values in together.items():
        single = [one[name][0] for one in alone]
        if None in values:
            assert values == single, name
        else:
            assert values == pytest.approx(single, rel=1e-9), name


def test_norms_are_those_of_single_clips_by_autograd(model):
    cuts = pool_of(4)
    batch = utterances(model, cuts)
    exact = Egl(k=6, tolerance=0.0)
    found = exact.score(batch)[""]
    for cut, hypotheses, value in zip(cuts, exact.hypotheses(batch), found, strict=True):
        features = model.features([cut])[0][0]
        chosen = parameters_of(model, "all")
        squares = [
            loss_gradient(model, features, y, chosen)[1].square().sum() for y in hypotheses.tokens
        ]
        assert value == pytest.approx(hypotheses.expectation(torch.stack(squares)), rel=1e-9)


@pytest.mark.parametrize("parameters", ["all", "output", "logits"])
@pytest.mark.parametrize("weights", ["sample", "stratified"])
def test_estimates_from_draws_are_unbiased(model, parameters, weights):
    batch = utterances(model, SHORT[:1])
    exact = Egl(k=ALL, parameters=parameters).score(batch)[""][0]
    found = [
        Egl(weights=weights, k=4, tail=3, parameters=parameters, seed=seed).score(batch)[""][0]
        for seed in range(200)
    ]
    spread = torch.tensor(found).std().item() / math.sqrt(len(found))
    assert abs(sum(found) / len(found) - exact) < 3 * spread


def test_the_tolerance_bounds_what_is_left_out(model):
    batch = utterances(model, pool_of(6))
    exact = Egl(tolerance=0.0).score(batch)[""]
    assert Egl(tolerance=1e-3).score(batch)[""] == pytest.approx(exact, rel=0.01)
    # the default, of which the documents speak
    found = Egl().score(batch)[""]
    assert found == pytest.approx(exact, rel=0.02)
    assert found != pytest.approx(exact, rel=1e-6)


def test_a_few_passes_are_unbiased(model):
    batch = utterances(model, pool_of(1))
    exact = Egl(tolerance=0.0).score(batch)[""][0]
    found = [Egl(passes=3, seed=seed).score(batch)[""][0] for seed in range(200)]
    spread = torch.tensor(found).std().item()
    assert 0 < spread < exact / 2
    assert abs(sum(found) / len(found) - exact) < 3 * spread / math.sqrt(len(found))


@pytest.mark.parametrize("batched", [True, False])
def test_norms_together_are_the_sum_of_each(model, batched, monkeypatch):
    batch = utterances(model, pool_of(3))
    cotangents = torch.randn(7, *batch.logits.shape, dtype=torch.float64)
    with record(model.network) as norms:
        norms._batched = batched
        logits, _, _ = model.network(batch.features, batch.lengths)
        together, each = norms.total(logits, cotangents), norms.squared(logits, cotangents)
    torch.testing.assert_close(together, each.sum(0), rtol=1e-12, atol=0)


def test_impossible_hypotheses_are_dropped():
    kept, gone = Hypothesis((), -1.0, 0.0), Hypothesis((1, 1), -math.inf, 0.0)
    assert _possible([kept, gone]) == [kept]


def test_mixtures_keep_the_weighted_sum_and_are_few():
    torch.manual_seed(0)
    basis = torch.randn(3, 8, 5, dtype=torch.float64)
    gradients = torch.einsum("kr,rtv->ktv", torch.randn(9, 3, dtype=torch.float64), basis)
    weights = torch.rand(9, dtype=torch.float64)
    few = principal(gradients, weights, tolerance=0.0)
    assert len(few) <= 4
    matrix = torch.randn(40, 30, dtype=torch.float64)
    expected = weights @ (gradients.flatten(1) @ matrix).square().sum(1)
    torch.testing.assert_close((few.flatten(1) @ matrix).square().sum(), expected)
    # of mixtures that fade the smallest go, and the others keep the sum of squares
    fading = gradients.flatten(1) @ torch.diag(0.5 ** torch.arange(40.0, dtype=torch.float64))
    whole, fewer = (principal(fading, weights, tolerance=t) for t in (0.0, 1e-2))
    assert len(fewer) < len(whole)
    left_out = 1 - whole[: len(fewer)].square().sum() / whole.square().sum()
    assert 0 < left_out <= 1e-2
    torch.testing.assert_close(fewer.square().sum(), weights @ fading.square().sum(1))
    nothing = principal(torch.zeros(4, 2, 3), torch.ones(4), tolerance=1e-3)
    assert nothing.shape == (1, 2, 3)
    assert not nothing.any()


def test_units(model):
    batch = utterances(model, pool_of(3))
    plain = Egl(k=4).score(batch)[""]
    frames = Egl(k=4, normalise="frames").score(batch)[""]
    seconds = Egl(k=4, normalise="seconds").score(batch)[""]
    tokens = Egl(k=4, normalise="tokens").score(batch)[""]
    assert [a / b for a, b in zip(plain, frames, strict=True)] == pytest.approx(
        batch.frames.tolist()
    )
    assert [a / b for a, b in zip(plain, seconds, strict=True)] == pytest.approx(
        [clip.cut.duration for clip in batch.clips]
    )
    sets = Egl(k=4).hypotheses(batch)
    expected = [one.expectation(torch.tensor([float(len(y)) for y in one.tokens])) for one in sets]
    assert max(expected) > 1
    assert [a / b for a, b in zip(plain, tokens, strict=True)] == pytest.approx(expected)


def test_the_model_is_in_evaluation_mode_and_left_so(model):
    batch = utterances(model, pool_of(3))
    first = Egl().score(batch)
    model.network.train()
    assert Egl().score(utterances(model, pool_of(3))) == first
    assert not model.network.training
    assert all(p.requires_grad for p in model.network.parameters())


def test_a_large_batch_is_cut_without_a_difference(model, monkeypatch):
    batch = utterances(model, pool_of(5))
    whole = Egl(k=4).score(batch)
    monkeypatch.setattr(egl_module, "_LIMIT_ELEMENTS", 1)
    parts = Egl(k=4).score(batch)
    assert parts[""] == pytest.approx(whole[""], rel=1e-9)
    assert parts["distinct"] == whole["distinct"]


def test_silence_keeps_the_empty_transcript(model):
    quiet = TinyRecogniser(dtype=torch.float64)
    with torch.no_grad():
        quiet.output_layer.bias[0] = 12.0
    batch = utterances(quiet, SHORT)
    scorer = Egl(k=3)
    assert all(h.tokens[0] == () for h in scorer.hypotheses(batch))
    assert all(0 < value < 1 for value in scorer.score(batch)[""])


@pytest.mark.parametrize(
    "wrong",
    [
        {"weights": "beam"},
        {"k": 0},
        {"normalise": "words"},
        {"power": 3},
        {"tail": 0},
        {"passes": 3, "weights": "sample"},
        {"passes": 3, "power": 1},
        {"passes": 3, "parameters": "output"},
    ],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RequestError, match="egl"):
        Egl(**wrong)


def test_unknown_parameters_are_refused(model):
    with pytest.raises(RequestError, match="no parameter matches"):
        Egl(parameters="encoder").score(utterances(model, SHORT))


class Classifier(torch.nn.Module):
    def __init__(self, recurrent):
        super().__init__()
        self.recurrent = torch.nn.GRU(5, 4, batch_first=True) if recurrent else None
        self.hidden = torch.nn.Linear(4 if recurrent else 5, 6)
        self.output = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = self.recurrent(x)[0] if self.recurrent is not None else x
        return self.output(torch.tanh(self.hidden(x[:, -1])))


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("parameters", ["all", "output", "hidden+output", "logits"])
def test_a_spotters_expectation_over_its_classes_is_exact(recurrent, parameters):
    torch.manual_seed(1)
    network = Classifier(recurrent).double().eval()
    features = torch.randn(3, 10, 5, dtype=torch.float64)
    clips = [Clip(cut_of(str(i)), x) for i, x in enumerate(features)]

    class Spotter:
        def __init__(self):
            self.network = network

        def eval(self):
            return self

    batch = Windows.of(Spotter(), clips)
    found = ClassEgl(parameters=parameters).score(batch)[""]
    for x, value in zip(features, found, strict=True):
        logits = network(x[None])[0]
        log_p = logits.log_softmax(0)
        wanted = {
            "all": list(network.parameters()),
            "output": list(network.output.parameters()),
            "hidden+output": [*network.hidden.parameters(), *network.output.parameters()],
            "logits": [logits],
        }[parameters]
        squares = [
            sum(g.square().sum() for g in torch.autograd.grad(-lp, wanted, retain_graph=True))
            for lp in log_p
        ]
        assert value == pytest.approx((log_p.exp() @ torch.stack(squares)).item(), rel=1e-9)
    assert ClassEntropy().score(batch)[""] == pytest.approx(
        torch.distributions.Categorical(logits=batch.logits).entropy().tolist()
    )
    ranked = batch.logits.softmax(1).sort(dim=1, descending=True).values
    assert ClassMargin().score(batch)[""] == pytest.approx((ranked[:, 1] - ranked[:, 0]).tolist())
    assert ClassConfidence().score(batch)[""] == pytest.approx((1 - ranked[:, 0]).tolist())
