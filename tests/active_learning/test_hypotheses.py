import itertools
import math

import pytest
import torch

from speechkit import ctc
from speechkit.active_learning.hypotheses import (
    draws_of,
    from_beam,
    from_beam_and_draws,
    from_draws,
)
from speechkit.ctc_beam import BeamConfig, beam_search

FRAMES, TOKENS = 5, 3


@pytest.fixture
def posteriors():
    torch.manual_seed(3)
    return ctc.log_posteriors(torch.randn(FRAMES, TOKENS, dtype=torch.float64) * 1.5)[0]


def all_transcripts():
    for count in range(FRAMES + 1):
        for tokens in itertools.product(range(1, TOKENS), repeat=count):
            if ctc.feasible(FRAMES, tokens):
                yield tokens


def value_of(tokens):
    """Return any function of a transcript, large for rare ones."""
    return 1.0 + len(tokens) ** 2 + 3.0 * sum(tokens)


def exact(posteriors):
    tokens = list(all_transcripts())
    p = ctc.log_likelihood(posteriors, tokens).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    return sum(float(q) * value_of(y) for q, y in zip(p, tokens, strict=True))


def values(hypotheses):
    return torch.tensor([value_of(tokens) for tokens in hypotheses.tokens])


def beam_of(posteriors, width):
    return beam_search(posteriors, config=BeamConfig(beam=width, min_log_prob=-50.0))[0]


def test_a_beam_with_all_transcripts_is_exact(posteriors):
    beam = beam_of(posteriors, 200)
    assert {h.tokens for h in beam} == set(all_transcripts())
    for renormalise in (False, True):
        found = from_beam(beam, renormalise=renormalise)
        assert found.beam_mass == pytest.approx(1)
        assert found.expectation(values(found)) == pytest.approx(exact(posteriors), rel=1e-9)
        assert found.standard_error(values(found)) is None


def test_raw_weights_are_a_lower_bound_and_renormalised_ones_sum_to_one(posteriors):
    beam = beam_of(posteriors, 3)
    raw, renormalised = (from_beam(beam, renormalise=r) for r in (False, True))
    assert raw.expectation(values(raw)) < exact(posteriors)
    assert float(renormalised.weights.sum()) == pytest.approx(1)
    assert float(raw.weights.sum()) == pytest.approx(raw.beam_mass)
    assert raw.beam_mass < 1


def test_weights_of_very_improbable_hypotheses_still_sum_to_one(posteriors):
    beam = [h.__class__(h.tokens, h.log_prob - 2000, 0.0) for h in beam_of(posteriors, 3)]
    assert float(from_beam(beam, renormalise=True).weights.sum()) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["sample", "stratified"])
def test_draws_are_unbiased_and_their_standard_error_is_honest(posteriors, kind):
    beam = beam_of(posteriors, 3)
    estimates, errors = [], []
    for seed in range(200):
        draw = draws_of(posteriors, torch.Generator().manual_seed(seed), blank=0)
        found = from_draws(draw(6)) if kind == "sample" else from_beam_and_draws(beam, draw, tail=4)
        estimates.append(found.expectation(values(found)))
        errors.append(found.standard_error(values(found)))
    mean, spread = torch.tensor(estimates).mean(), torch.tensor(estimates).std()
    assert abs(float(mean) - exact(posteriors)) < 3 * float(spread) / math.sqrt(200)
    assert float(torch.tensor(errors).square().mean().sqrt()) == pytest.approx(
        float(spread), rel=0.2
    )


def test_draws_of_the_tail_are_outside_the_beam_and_equal_ones_are_joined(posteriors):
    beam = beam_of(posteriors, 3)
    draw = draws_of(posteriors, torch.Generator().manual_seed(1), blank=0)
    found = from_beam_and_draws(beam, draw, tail=30)
    assert found.tokens[:3] == tuple(h.tokens for h in beam)
    assert len(set(found.tokens)) == len(found.tokens)
    assert int(found.draws.sum()) >= 30
    assert float(found.weights.sum()) == pytest.approx(1)


def test_a_certain_clip_needs_no_draws():
    logits = torch.full((4, 3), -60.0, dtype=torch.float64)
    logits[:, 0] = 0.0

    def never(count):
        raise AssertionError

    beam = beam_search(logits, config=BeamConfig(beam=2))[0]
    found = from_beam_and_draws(beam, never, tail=4)
    assert found.tokens[0] == ()
    assert found.beam_mass == pytest.approx(1)
    assert found.expected_tokens() == 1.0
