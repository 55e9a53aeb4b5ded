"""From clips to a spotter with a frozen threshold: what is heard, and what is stored."""

import numpy as np
import pytest
from lhotse import MonoCut, SupervisionSegment

from speechkit.kws.detector import Detector
from speechkit.kws.evaluate import measure_conditions
from speechkit.kws.fit import FitConfig
from speechkit.kws.measure import listen, operating_point
from speechkit.kws.rows import AMID_IDS
from speechkit.kws.scenes import SceneConfig
from speechkit.kws.splits import Split
from speechkit.kws.spotter import Spotter, Threshold
from speechkit.kws.streams import keyword_streams, negative_streams
from speechkit.kws.train import TrainConfig, _apart_from, freeze, train_spotter
from tests.kws.helpers import bursts, clip_of, noise, padded_clip, tiny_spotter
from tests.kws.test_measure import scored

QUICK = FitConfig(epochs=1, steps=2, workers=0)
SNR_DB, FA_PER_HOUR = 3.0, 400.0


def split(number):
    """Clips of their own for each number."""
    positives = [padded_clip(hz=600.0 + 10 * i, id_=f"{number}-{i}") for i in range(4)]
    negatives = [
        clip_of(bursts(3.0, seed=10 * number + i), id_=f"{number}-other-{i}") for i in range(4)
    ]
    noises = [clip_of(noise(4.0, seed=number), id_=f"{number}-noise")]
    return Split({"computer": positives}, negatives, noises)


def test_the_threshold_is_the_one_that_meets_the_target_on_dev(tmp_path):
    training, dev = split(1), split(2)
    config = TrainConfig(
        fit=QUICK, scenes=SceneConfig(scenes=4), fa_per_hour=FA_PER_HOUR, snr_db=SNR_DB
    )
    frozen = train_spotter(training, dev, out=tmp_path, config=config)
    # dev as it is heard: keywords in three draws of noise, negatives in five
    positives, negatives = dev.positives["computer"], dev.negatives
    options = [{"snr_db": SNR_DB, "seed": seed} for seed in range(5)]
    heard = listen(
        Detector(frozen),
        positives={
            "computer": [
                s for one in options[:3] for s in keyword_streams(positives, dev.noises, **one)
            ]
        },
        negatives=[s for one in options for s in negative_streams(negatives, dev.noises, **one)],
    )["computer"]
    row = operating_point([heard], fa_per_hour=FA_PER_HOUR)
    assert row["threshold"] is not None
    assert len(heard.occurrences) == 12
    stored = Spotter.load(tmp_path / "model").config.thresholds["computer"]
    assert stored == frozen.config.thresholds["computer"]
    assert (stored.fa_per_hour, stored.snr_db) == (FA_PER_HOUR, SNR_DB)
    assert stored.value == pytest.approx(row["threshold"], rel=1e-6)
    assert stored.negative_hours == pytest.approx(heard.negative_hours)


def test_a_threshold_that_is_not_reached_is_not_stored(caplog):
    # by hand: one alarm at 0.5 in an hour may stay, or must not
    heard = {"computer": scored(positives=[[0.9]], alarms=[[0.5]], hours=1.0)}
    kept = freeze(tiny_spotter(), heard, TrainConfig(fa_per_hour=0.5)).config.thresholds
    value = kept["computer"].value
    assert 0.5 < value < 0.5001
    assert kept["computer"] == Threshold(
        value=value, fa_per_hour=0.5, snr_db=5.0, negative_hours=1.0
    )
    certain = {"computer": scored(positives=[[0.9]], alarms=[[1.0]], hours=1.0)}
    assert not freeze(tiny_spotter(), certain, TrainConfig(fa_per_hour=0.5)).config.thresholds
    assert "computer: no threshold meets 0.5 FA/hour on dev" in caplog.text


@pytest.mark.parametrize(("hours", "warned"), [(1.9, True), (2.1, False)])
def test_dev_that_cannot_resolve_the_target_is_named(caplog, hours, warned):
    """Five noises over the same hours do not make more of them."""
    heard = {"computer": scored(positives=[[0.9]], alarms=[[0.5]], hours=5 * hours)}
    freeze(tiny_spotter(), heard, TrainConfig(fa_per_hour=0.5))
    assert ("dev negatives, heard in 5 noises, cannot resolve 0.5" in caplog.text) == warned


def test_what_was_mined_in_dev_is_not_learnt():
    dev = split(2)
    own = dev.negatives[0].id
    alarms = [
        mined("a", ["1-other-0", "1-other-1"]),
        mined("b", ["1-other-0", own]),
        mined("c", []),
    ]
    assert [cut.id for cut in _apart_from(dev, alarms)] == ["a", "c"]


def mined(id_, amid):
    speech = SupervisionSegment(
        id=id_, recording_id=id_, start=0, duration=1, custom={AMID_IDS: amid}
    )
    return MonoCut(id=id_, start=0, duration=1, channel=0, supervisions=[speech])


def test_the_noise_of_a_condition_is_in_positives_and_negatives_alike():
    given, detector = split(1), Detector(tiny_spotter())
    measured = measure_conditions(
        detector,
        given.positives,
        given.negatives,
        given.noises,
        conditions=["clean", "5"],
        seed=7,
    )
    clips = given.positives["computer"]
    for condition, snr_db in (("clean", None), ("5", 5.0)):
        options = {"snr_db": snr_db, "seed": 7}
        expected = listen(
            detector,
            positives={"computer": keyword_streams(clips, given.noises, **options)},
            negatives=negative_streams(given.negatives, given.noises, **options),
        )["computer"]
        (found,) = measured["computer", condition]
        assert all(np.array_equal(a, b) for a, b in zip(heard(found), heard(expected), strict=True))
    (clean,), (noisy,) = (measured["computer", name] for name in ("clean", "5"))
    assert not any(np.array_equal(a, b) for a, b in zip(heard(clean), heard(noisy), strict=True))


def heard(one):
    """Return the scores of every negative and every keyword."""
    return [o.score for o in (*one.negatives, *(each.onsets for each in one.occurrences))]
