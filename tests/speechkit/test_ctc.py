"""CTC mathematics, against the enumeration of every path of tiny problems and torch's loss."""

import itertools
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit import ctc, ctc_lattice, ctc_scaled
from speechkit.errors import JobError, RequestError


def logits(*shape, seed=0, scale=1.5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=dtype)


def enumerate_paths(z, *, blank=0):
    """Return for every transcript its probability and occupancy (T, V), from all V^T paths."""
    frames, vocabulary = z.shape
    p = z.softmax(-1)
    found = {}
    for path in itertools.product(range(vocabulary), repeat=frames):
        chance = math.prod(p[t, k].item() for t, k in enumerate(path))
        total, occupied = found.get(ctc.collapse(path, blank=blank), (0.0, torch.zeros_like(z)))
        hot = F.one_hot(torch.tensor(path), vocabulary).double()
        found[ctc.collapse(path, blank=blank)] = (total + chance, occupied + chance * hot)
    return {y: (total, occupied / total) for y, (total, occupied) in found.items()}


def torch_loss(z, hypotheses):
    """Return torch's own loss (K,) of hypotheses of one clip (T, V)."""
    return F.ctc_loss(
        z.log_softmax(-1)[:, None].expand(-1, len(hypotheses), -1),
        torch.tensor([k for y in hypotheses for k in y], dtype=torch.int64),
        torch.full((len(hypotheses),), len(z)),
        torch.tensor([len(y) for y in hypotheses]),
        reduction="none",
    )


@pytest.mark.parametrize(
    ("frames", "vocabulary", "blank"), [(1, 2, 0), (4, 4, 0), (5, 3, 2), (6, 3, 1), (3, 5, 4)]
)
def test_likelihoods_and_occupancies_equal_enumeration(frames, vocabulary, blank):
    z = logits(frames, vocabulary)
    expected = enumerate_paths(z, blank=blank)
    ys = list(expected)
    assert () in ys
    found = ctc.log_likelihood(z, ys, blank=blank).exp()
    torch.testing.assert_close(found.sum(), torch.tensor(1.0).double(), rtol=0, atol=1e-13)
    chances = torch.tensor([expected[y][0] for y in ys], dtype=torch.float64)
    torch.testing.assert_close(found, chances, rtol=1e-12, atol=0)
    occupied = ctc.occupancies(z, ys, blank=blank)
    exact = torch.stack([expected[y][1] for y in ys])
    torch.testing.assert_close(occupied, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("frames", [1, 4, 6])
def test_the_expected_gradient_is_zero(frames):
    z = logits(frames, 3, seed=frames)
    ys = list(enumerate_paths(z))
    result = ctc.logit_gradients(z, ys)
    mean = (result.log_likelihood.exp()[:, None, None] * result.gradients).sum(0)
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("frames", "vocabulary"), [(3, 4), (40, 7), (130, 32)])
def test_gradients_equal_autograd(frames, vocabulary):
    z = logits(frames, vocabulary).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    sizes = [0, 1, 2, frames // 3, frames // 2]
    ys = [torch.randint(1, vocabulary, (n,), generator=generator).tolist() for n in sizes]
    ys.append([1] * ((frames + 1) // 2))
    result = ctc.logit_gradients(z, ys)
    for k, y in enumerate(ys):
        nll = torch_loss(z, [y])[0]
        (gradient,) = torch.autograd.grad(nll, z)
        torch.testing.assert_close(result.gradients[k], gradient, rtol=0, atol=1e-9)
        torch.testing.assert_close(result.log_likelihood[k], -nll.detach(), rtol=1e-12, atol=1e-9)


def test_what_cannot_be_is_flagged_and_leaves_no_nan():
    z = logits(3, 4)
    ys = [(1, 2, 3), (1, 1), (1, 1, 2), (1, 2, 1, 2), ()]
    result = ctc.logit_gradients(z, ys)
    assert result.possible.tolist() == [True, True, False, False, True]
    assert result.log_likelihood[2:4].tolist() == [-math.inf] * 2
    assert result.gradients.isfinite().all()
    assert not result.gradients[2:4].any()
    assert not ctc.occupancies(z, ys)[2:4].any()


def test_impossible_tokens_are_no_nan():
    z = logits(4, 3)
    z[:, 2] = -math.inf
    z[1, 0] = -math.inf
    result = ctc.logit_gradients(z, [(1,), (2,), ()])
    assert result.possible.tolist() == [True, False, False]
    expected = enumerate_paths(z.clamp(min=-1e4))[1,]
    assert result.log_likelihood[0].exp().item() == pytest.approx(expected[0], rel=1e-12)
    exact = z.softmax(-1) - expected[1]
    torch.testing.assert_close(result.gradients[0], exact, rtol=0, atol=1e-12)


def test_a_padded_batch_equals_single_clips():
    lengths = torch.tensor([70, 1, 130, 64, 0])
    z = logits(5, 130, 6)
    z[1, 1:] = math.nan
    ys = [[1, 2, 3], [], [5], [], [1, 2], [4, 4], [2] * 60, [1, 3] * 9, [], [3]]
    clips = [0, 0, 1, 1, 1, 2, 2, 3, 4, 4]
    result = ctc.logit_gradients(z, ys, lengths=lengths, clips=clips)
    occupied = ctc.occupancies(z, ys, lengths=lengths, clips=clips)
    for k, (y, clip) in enumerate(zip(ys, clips, strict=True)):
        size = lengths[clip]
        alone = ctc.logit_gradients(z[clip, :size], [y])
        assert result.log_likelihood[k].item() == pytest.approx(alone.log_likelihood.item())
        torch.testing.assert_close(
            result.gradients[k, :size], alone.gradients[0], rtol=0, atol=1e-12
        )
        assert not result.gradients[k, size:].any()
        assert not occupied[k, size:].any()
    assert result.log_likelihood[-2:].tolist() == [pytest.approx(0.0, abs=1e-12), -math.inf]


def test_parts_equal_the_whole(monkeypatch):
    z = logits(2, 70, 5)
    ys, clips = [[1, 2], [3], [], [4, 4, 1], [2]], [0, 1, 0, 1, 1]
    whole = ctc.logit_gradients(z, ys, clips=clips)
    monkeypatch.setattr(ctc, "TABLE_CELLS", 1000)
    parts = ctc.logit_gradients(z, ys, clips=clips)
    torch.testing.assert_close(whole.gradients, parts.gradients, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        whole.log_likelihood, ctc.log_likelihood(z, ys, clips=clips), rtol=1e-14, atol=0
    )


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_probabilities_equal_logarithms_where_they_are_certain(data):
    frames, vocabulary = data.draw(st.integers(1, 150)), data.draw(st.integers(2, 6))
    scale = data.draw(st.sampled_from([0.1, 1.0, 5.0, 30.0, 300.0]))
    z = logits(frames, vocabulary, seed=data.draw(st.integers(0, 99)), scale=scale)
    token = st.integers(1, vocabulary - 1)
    likely = list(ctc.sample(z, 3, torch.Generator().manual_seed(0)))
    ys = data.draw(st.lists(st.lists(token, max_size=12), max_size=4)) + likely
    posteriors = ctc.log_posteriors(z)
    (job,) = ctc._jobs(posteriors, ys, None, 0)
    exact, fast = torch.zeros(2, frames, len(ys), vocabulary).double()
    totals = ctc_lattice.forward_backward(posteriors, job, blank=0, occupied=exact)
    found, certain = ctc_scaled.forward_backward(posteriors.exp(), job, blank=0, occupied=fast)
    assert certain[-len(likely) :].all()
    torch.testing.assert_close(found[certain], totals[certain], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(fast[:, certain], exact[:, certain], rtol=0, atol=1e-9)
    assert not fast[:, ~certain].any()
    torch.testing.assert_close(ctc.occupancies(z, ys), exact.transpose(0, 1), rtol=0, atol=1e-9)


def test_paths_that_were_dropped_early_and_count_later_are_computed_in_logarithms():
    """All that is left of the mass at the end comes from what was 1e-250 of it on the way."""
    names = [0] * 24 + [21] * 46 + list(range(1, 21)) + [21] * 4 + [22]
    z = torch.full((len(names), 23), -26.0).double()
    z[24:70] = -80.0
    z[24:70, 0] = -26.0
    z[torch.arange(len(names)), names] = 0.0
    y = [*range(1, 21), 21, 22]
    result = ctc.logit_gradients(z, [y])
    assert result.log_likelihood.item() == pytest.approx(-torch_loss(z, [y]).item(), rel=1e-9)
    assert result.log_likelihood.item() == pytest.approx(
        ctc.log_likelihood(z, [y]).item(), rel=1e-12
    )


def test_a_hypothesis_beyond_the_range_of_doubles_is_computed_in_logarithms():
    z = torch.zeros(60, 3).double()
    z[:, 0] = 200.0  # 40 labels cost 8,000 nats
    y = [1, 2] * 20
    posteriors = ctc.log_posteriors(z)
    (job,) = ctc._jobs(posteriors, [y], None, 0)
    exact, fast = torch.zeros(2, 60, 1, 3).double()
    _, certain = ctc_scaled.forward_backward(posteriors.exp(), job, blank=0, occupied=fast)
    total = ctc_lattice.forward_backward(posteriors, job, blank=0, occupied=exact)
    assert not certain.any()
    assert total.item() == pytest.approx(-torch_loss(z, [y]).item(), rel=1e-9)
    result = ctc.logit_gradients(z, [y])
    assert result.log_likelihood.item() == total.item()
    torch.testing.assert_close(ctc.occupancies(z, [y]), exact.transpose(0, 1), rtol=0, atol=0)


def test_single_precision_input_is_enough_for_long_clips():
    exact = logits(1500, 32, scale=3.0)
    y = torch.randint(1, 32, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    result = ctc.logit_gradients(exact, [y])
    rounded = ctc.logit_gradients(exact.float(), [y])
    assert rounded.log_likelihood.item() == pytest.approx(
        result.log_likelihood.item(), rel=0, abs=1e-4
    )
    norms = [r.gradients.pow(2).sum().item() for r in (result, rounded)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    occupied = ctc.occupancies(exact.float().log_softmax(-1), [y])
    torch.testing.assert_close(occupied.sum(-1), torch.ones(1, 1500).double(), atol=1e-9, rtol=0)


def test_no_hypotheses_give_empty_results():
    z = logits(4, 3)
    assert ctc.log_likelihood(z, []).shape == (0,)
    assert ctc.occupancies(z, []).shape == (0, 4, 3)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_occupancies_are_distributions_that_hold_the_labels(data):
    frames = data.draw(st.integers(1, 90))
    vocabulary = data.draw(st.integers(2, 6))
    token = st.integers(1, vocabulary - 1)
    ys = data.draw(st.lists(st.lists(token, max_size=8), min_size=1, max_size=4))
    z = logits(frames, vocabulary, seed=data.draw(st.integers(0, 99)), scale=3.0)
    occupied = ctc.occupancies(z, ys)
    result = ctc.logit_gradients(z, ys)
    for k, y in enumerate(ys):
        possible = ctc.feasible(frames, y)
        assert bool(result.possible[k]) == possible
        assert (occupied[k] >= 0).all()
        sums = occupied[k].sum(-1)
        torch.testing.assert_close(sums, torch.full_like(sums, possible), rtol=0, atol=1e-10)
        # each label takes a frame or more
        for label, times in Counter(y).items():
            assert occupied[k, :, label].sum() >= times * possible - 1e-9
        torch.testing.assert_close(
            result.gradients[k], (z.softmax(-1) - occupied[k]) * possible, rtol=0, atol=1e-12
        )


@given(st.lists(st.integers(1, 3), max_size=12))
def test_the_fewest_frames_hold_a_target_and_one_less_does_not(target):
    frames = ctc.frames_needed(target)
    assert frames >= len(target)
    assert ctc.feasible(frames, target)
    assert not ctc.feasible(frames - 1, target)
    assert ctc.log_likelihood(logits(frames, 4), [target]).isfinite().all()
    if frames > 1:
        assert not ctc.log_likelihood(logits(frames - 1, 4), [target]).isfinite().any()


@given(st.lists(st.integers(0, 3), max_size=12))
def test_collapse_merges_runs_before_it_removes_blanks(path):
    tokens = ctc.collapse(path)
    assert 0 not in tokens
    doubled = [token for token in path for _ in range(2)]
    assert ctc.collapse(doubled) == tokens
    spaced = [token for label in tokens for token in (0, label)]
    assert ctc.collapse(spaced) == tokens
    assert ctc.collapse([3 - token for token in path], blank=3) == tuple(3 - t for t in tokens)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_loss_equals_enumeration_for_targets_of_both_forms(dtype):
    z = logits(3, 5, 3).to(dtype)
    lengths = torch.tensor([5, 2, 4])
    targets = [[1, 1, 2], [], [2]]
    padded = torch.tensor([[1, 1, 2], [-1, -1, -1], [2, -1, -1]])
    found = ctc.loss(z, lengths, targets)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(
        found, ctc.loss(z, lengths, padded, torch.tensor([3, 0, 1])), rtol=0, atol=0
    )
    for b, y in enumerate(targets):
        chance, _ = enumerate_paths(z[b, : lengths[b]].double())[tuple(y)]
        assert found[b].item() == pytest.approx(-math.log(chance), rel=1e-5)


def test_the_loss_has_the_gradients_of_this_module():
    z = logits(2, 9, 4).requires_grad_()
    lengths = torch.tensor([9, 6])
    targets = [[1, 2, 2], [3]]
    (gradient,) = torch.autograd.grad(ctc.loss(z, lengths, targets).sum(), z)
    exact = ctc.logit_gradients(z, targets, lengths=lengths, clips=[0, 1]).gradients
    torch.testing.assert_close(gradient, exact, rtol=0, atol=1e-12)


def test_a_target_that_does_not_fit_costs_infinity_and_moves_nothing():
    z = logits(3, 4, 3, dtype=torch.float32).requires_grad_()
    nll = ctc.loss(z, torch.tensor([4, 2, 4]), [[1, 2], [1, 1], [1, 2, 1, 2, 1]])
    assert nll[1:].tolist() == [math.inf] * 2
    nll.mean().backward()
    assert z.grad.isfinite().all()
    assert z.grad[0].any()
    assert not z.grad[1:].any()


def test_autocast_does_not_reach_the_loss():
    z = logits(1, 50, 5, dtype=torch.float32)
    plain = ctc.loss(z, torch.tensor([50]), [[1, 2, 3]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(ctc.loss(z, torch.tensor([50]), [[1, 2, 3]]), plain)


def test_all_targets_may_be_empty():
    z = logits(2, 4, 3)
    found = ctc.loss(z, torch.tensor([4, 3]), [[], []])
    blanks = z.log_softmax(-1)[..., 0]
    torch.testing.assert_close(found, -torch.stack([blanks[0].sum(), blanks[1, :3].sum()]))


@pytest.mark.parametrize("target", [[0], [3], [-1], [1, 2, 5]])
def test_a_label_that_is_no_token_is_refused(target):
    z = logits(1, 9, 3)
    with pytest.raises(RequestError, match="from 0 to 2"):
        ctc.loss(z, torch.tensor([9]), [target])
    with pytest.raises(RequestError, match="other than the blank 0"):
        ctc.log_likelihood(z, [target])


def test_wrong_requests_are_refused():
    z = logits(2, 4, 3)
    with pytest.raises(RequestError, match="say in clips"):
        ctc.log_likelihood(z, [[1]])
    with pytest.raises(RequestError, match="from 0 to 1"):
        ctc.log_likelihood(z, [[1]], clips=[2])
    with pytest.raises(RequestError, match="1 lengths for 2 clips"):
        ctc.frame_entropy(z, torch.tensor([4]))
    with pytest.raises(RequestError, match="1 targets for 2 clips"):
        ctc.loss(z, torch.tensor([4, 4]), [[1]])
    with pytest.raises(RequestError, match="give target_lengths"):
        ctc.loss(z, torch.tensor([4, 4]), torch.ones(2, 1))
    z[1, 2, 0] = math.nan
    with pytest.raises(JobError, match="clip 1 hold NaN"):
        ctc.greedy(z)


def test_greedy_gives_tokens_their_most_probable_frames():
    path = [0, 2, 2, 0, 2, 1, 1, 0]
    z = torch.full((2, 9, 3), -2.0).double()
    for t, token in enumerate(path):
        z[:, t, token] = 2.0 + t % 3
    first, second = ctc.greedy(z, torch.tensor([8, 3]))
    assert first.tokens == (2, 2, 1) == ctc.collapse(path)
    assert first.frames == (2, 4, 5)
    exact = z[0].log_softmax(-1)
    assert first.log_probs == pytest.approx([exact[t, path[t]].item() for t in first.frames])
    assert first.log_prob == pytest.approx(exact[:8].max(-1).values.sum().item())
    assert (second.tokens, second.frames) == ((2,), (2,))
    assert ctc.greedy(z, torch.tensor([0, 1]))[0] == ctc.BestPath((), (), (), 0.0)


def test_samples_come_as_often_as_they_should():
    z = logits(5, 3, scale=2.0)
    count = 20_000
    draws = ctc.sample(z, count, torch.Generator().manual_seed(5))
    assert sum(draws.values()) == count
    assert list(draws.values()) == sorted(draws.values(), reverse=True)
    expected = enumerate_paths(z)
    assert set(draws) <= set(expected)
    # three standard errors for each, with room for one outlier in a few dozen transcripts
    errors = [
        (draws.get(y, 0) - count * chance) / math.sqrt(count * chance * (1 - chance))
        for y, (chance, _) in expected.items()
        if count * chance > 20
    ]
    assert len(errors) > 8
    assert max(map(abs, errors)) < 3


def test_samples_depend_on_the_seed_alone():
    z = logits(40, 6)
    state = torch.random.get_rng_state()
    first, again, other = (
        ctc.sample(z, 50, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert list(first.items()) == list(again.items())
    assert first != other
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_token_of_probability_zero_is_never_drawn():
    z = torch.zeros(200, 4)
    z[:, [0, 2]] = -math.inf
    draws = ctc.sample(z, 100, torch.Generator().manual_seed(0))
    assert {token for y in draws for token in y} == {1, 3}
    assert ctc.sample(z[:0], 3, torch.Generator()) == {(): 3}


def test_entropy():
    z = torch.zeros(2, 3, 4)
    z[1, 0, 1:] = -math.inf
    found = ctc.frame_entropy(z, torch.tensor([3, 2]))
    expected = [[math.log(4)] * 3, [0.0, math.log(4), 0.0]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
