"""Calibration: known curves are found again; reliability by hand."""

import numpy as np
import pytest

from speechkit.asr.confidence import Calibration, fit, reliability
from speechkit.errors import RequestError


def test_reliability_by_hand():
    found = reliability([0.05, 0.95, 0.96, 1.0], [False, True, False, True], bins=10)
    assert [(b.low, b.count) for b in found.bins] == [(0.0, 1), (0.9, 3)]
    assert found.bins[1].accuracy == pytest.approx(2 / 3)
    assert found.bins[1].confidence == pytest.approx(0.97)
    assert found.error == pytest.approx((0.05 + 3 * (0.97 - 2 / 3)) / 4)


def test_normalised_cross_entropy_at_its_landmarks():
    right = [True, True, True, False]
    assert reliability([0.75] * 4, right).normalised_cross_entropy == pytest.approx(0)
    assert reliability([1, 1, 1, 0], right).normalised_cross_entropy == pytest.approx(1, abs=1e-4)
    assert reliability([0, 0, 0, 1], right).normalised_cross_entropy < 0
    assert reliability([0.5], [True]).normalised_cross_entropy is None


def test_an_overconfident_system_is_calibrated(rng):
    truth = rng.random(4000)
    correct = rng.random(4000) < truth
    # claims with three times the logit, as a network trained for long does
    claimed = Calibration(slope=3.0, offset=0.5)(truth)
    calibration = fit(claimed[:2000], correct[:2000])
    assert calibration.slope == pytest.approx(1 / 3, rel=0.15)
    assert calibration.offset == pytest.approx(-0.5 / 3, abs=0.12)
    before = reliability(claimed[2000:], correct[2000:])
    after = reliability(calibration(claimed[2000:]), correct[2000:])
    assert before.error > 0.1
    assert after.error < 0.05
    assert after.normalised_cross_entropy > max(before.normalised_cross_entropy, 0.2)


def test_words_that_confidence_separates_wholly_leave_room_for_doubt():
    calibration = fit([0.9] * 50 + [0.3], [True] * 50 + [False])
    assert 0.9 < calibration(0.9) < 0.99
    assert 0.3 < calibration(0.3) < 0.7
    few = fit([0.9, 0.8], [True, False])
    assert few(0.8) == pytest.approx(1 / 3, abs=0.01)
    assert few(0.9) == pytest.approx(2 / 3, abs=0.01)


def test_confidence_that_misleads_becomes_the_share_of_right_words():
    confidence = np.linspace(0, 1, 101)
    calibration = fit(confidence, confidence < 0.3)
    assert calibration.slope == 0
    np.testing.assert_allclose(calibration([0.0, 0.5, 1.0]), 30 / 101)


def test_the_default_changes_nothing():
    given = np.array([0.0, 0.2, 0.9, 1.0])
    np.testing.assert_allclose(Calibration()(given), given, atol=2e-6)
    calibration = Calibration(0.5, -1.0)
    assert Calibration.from_dict(calibration.to_dict()) == calibration


def test_bad_input():
    with pytest.raises(RequestError, match="2 words, 2 of them right"):
        fit([0.5, 0.6], [True, True])
    with pytest.raises(RequestError, match="0 confidences for 0 words"):
        reliability([], [])
    with pytest.raises(RequestError, match="1 confidences for 2 words"):
        reliability([0.5], [True, False])
    with pytest.raises(RequestError, match="outside"):
        reliability([float("nan")], [True])
