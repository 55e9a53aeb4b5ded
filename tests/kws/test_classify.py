"""Whole clips: which class they get, and what the true one costs."""

import math

import numpy as np
import pytest
import torch

from speechkit.kws.classify import Accuracy, accuracy, class_posteriors
from tests.kws.helpers import padded_clip, tiny_spotter


def test_the_window_lies_about_the_middle_of_the_speech():
    spotter = tiny_spotter()
    clip = padded_clip(0.5, id_="a", hz=2_000)
    early = padded_clip(0.5, id_="b", hz=2_000)
    # what comes a second later is outside of the window
    late = np.concatenate([early.samples, np.zeros(16_000, np.int16), early.samples])
    longer = type(clip)("b", late, early.span)
    assert torch.allclose(
        class_posteriors(spotter, clip), class_posteriors(spotter, longer), atol=1e-4
    )


def test_accuracy_and_loss():
    spotter = tiny_spotter()
    clips = [padded_clip(0.5, id_=str(hz), hz=hz) for hz in (500, 1_000, 2_000)]
    labels = spotter.config.labels
    posteriors = [class_posteriors(spotter, clip) for clip in clips]
    assert all(float(p.sum()) == pytest.approx(1) for p in posteriors)
    right = [labels[int(p.argmax())] for p in posteriors]
    wrong = [labels[int(p.argmin())] for p in posteriors]
    best, worst = (
        accuracy(spotter, list(zip(clips, names, strict=True))) for names in (right, wrong)
    )
    assert (best.share, worst.share) == (1.0, 0.0)
    assert best.loss == pytest.approx(-np.mean([math.log(p.max()) for p in posteriors]), rel=1e-5)
    assert best.loss < worst.loss
    assert best.interval.low < 1 == best.interval.high


def test_a_posterior_of_zero_costs_a_finite_loss():
    spotter = tiny_spotter()
    with torch.no_grad():
        spotter.network.output.bias[0] = 1e4
    clip = padded_clip(0.5, id_="a", hz=2_000)
    result = accuracy(spotter, [(clip, spotter.config.labels[1])])
    assert result.right == 0
    assert 80 < result.loss < 90


def test_classes_weigh_alike_in_the_balanced_accuracy():
    decisions = ((0, 0), (0, 0), (0, 0), (0, 1), (2, 2), (2, 0))
    found = Accuracy(decisions, (0.0,) * 6)
    assert found.share == pytest.approx(4 / 6)
    assert found.balanced == pytest.approx((3 / 4 + 1 / 2) / 2)


def test_no_clips():
    empty = Accuracy((), ())
    assert empty.share == empty.balanced == empty.loss == 0.0
