"""The detector: same answers whatever the chunks, and the scores that training saw."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.audio import INT16_SCALE, SAMPLE_RATE
from speechkit.errors import AudioError, RequestError
from speechkit.kws.detector import Detector
from speechkit.kws.fit import cut_windows
from speechkit.kws.spotter import DetectionConfig, windows_along
from tests.kws.helpers import bursts, noise, samples, tiny_spotter, tone

AUDIO = bursts(20, seed=3)


def detector_with_detections(*, frontend="pcen", seed=1, **detection):
    """A detector, its threshold in a gap of the scores of AUDIO that parts them in halves."""
    spotter = tiny_spotter(seed=seed, frontend=frontend, **detection)
    values = np.sort(heard(Detector(spotter), [AUDIO])[:, 0])
    middle = slice(len(values) // 3, 2 * len(values) // 3)
    gap = int(np.argmax(np.diff(values[middle]))) + middle.start
    return Detector(spotter, thresholds={"computer": (values[gap] + values[gap + 1]) / 2})


def heard(detector, pieces):
    detector.reset()
    return np.concatenate([*(detector.scores(p) for p in pieces), detector.tail_scores()])


def detected(detector, pieces):
    detector.reset()
    return [d for piece in pieces for d in detector.push(piece)] + detector.flush()


def assert_same(some, others):
    assert [(d.keyword, d.time_s, d.start_s) for d in some] == [
        (d.keyword, d.time_s, d.start_s) for d in others
    ]
    assert [d.score for d in some] == pytest.approx([d.score for d in others], abs=1e-5)


def pieces_of(audio, sizes):
    """Cut audio into chunks of these sizes, taken in turn."""
    pieces, at = [], 0
    while at < len(audio):
        pieces.append(audio[at : at + sizes[len(pieces) % len(sizes)]])
        at += len(pieces[-1])
    return pieces


@pytest.fixture(scope="module")
def detector():
    return detector_with_detections(refractory_s=0.3)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 159, 160, 161, 1600, 20_001, 70_000]), min_size=1))
def test_chunks_do_not_matter(sizes):
    detector = detector_with_detections(refractory_s=0.3)
    sizes = [*sizes, 30_000]
    whole = detected(detector, [AUDIO])
    assert len(whole) > 3
    assert_same(detected(detector, pieces_of(AUDIO, sizes)), whole)


def test_integers_and_floats_are_the_same_audio(detector):
    integers = np.round(AUDIO * INT16_SCALE).astype(np.int16)
    floats = integers / INT16_SCALE
    wanted = detected(detector, [floats.astype(np.float32)])
    assert_same(detected(detector, [integers]), wanted)
    assert_same(detected(detector, [floats]), wanted)
    assert_same(detected(detector, [floats[:9_999], integers[9_999:]]), wanted)


def test_five_minutes_at_once_are_the_same_as_in_tenths_of_a_second():
    detector = Detector(tiny_spotter(smoothing_windows=3))
    audio = bursts(300, seed=5)
    whole, pieces = heard(detector, [audio]), heard(detector, pieces_of(audio, [1600]))
    assert whole.shape == pieces.shape
    np.testing.assert_allclose(pieces, whole, atol=1e-5)


def test_reset_leaves_nothing_behind(detector):
    fresh = detected(detector, [AUDIO])
    detector.reset()
    detector.push(tone(7.77, 3000))
    assert_same(detected(detector, [AUDIO]), fresh)


def test_predict_shows_the_latest_score_of_push(detector):
    detector.reset()
    assert detector.predict(AUDIO[:0]) == {"computer": 0.0}
    for _ in range(2):
        assert detector.predict(AUDIO[:10_000]) == {"computer": 0.0}
    detector.reset()
    scores = Detector(detector.spotter).scores(AUDIO)[:, 0]
    # window w is complete with its last frame, which reaches 200 samples beyond its centre
    completed = samples(1.5) + 200
    assert detector.predict(AUDIO[: completed - 1]) == {"computer": 0.0}
    for window, score in enumerate(scores[:20]):
        end = completed + 1600 * window
        assert detector.predict(AUDIO[end - 1 : end])["computer"] == pytest.approx(score, abs=1e-5)
        assert detector.predict(AUDIO[end : end + 1599])["computer"] == pytest.approx(
            score, abs=1e-5
        )
    detector.reset()
    assert detector.predict(AUDIO[:0]) == {"computer": 0.0}


@pytest.mark.parametrize("shift_s", [0.1, 0.05, 0.03])
def test_a_detection_comes_with_the_sample_at_its_time(shift_s):
    detector = detector_with_detections(shift_s=shift_s, refractory_s=0.3)
    detector.reset()
    told = []
    for end in range(50, len(AUDIO) + 1, 50):
        told += [(d.time_s, end) for d in detector.push(AUDIO[end - 50 : end])]
    assert len(told) > 2
    for time_s, end in told:
        # after a whole number of steps: the chunk that completes a window ends at its time
        assert end - 50 < round(time_s * SAMPLE_RATE) <= end


def test_the_time_of_a_frame_that_kaldi_would_place():
    """A front-end without padding: window 0 ends with the window of frame 150."""
    spotter = tiny_spotter()
    described = spotter.frontend.describe() | {"kaldi": True}
    config = spotter.config.__class__(
        labels=spotter.config.labels, frontend=described, network=spotter.config.network
    )
    detector = Detector(type(spotter)(config))
    needed = 150 * 160 + 400
    assert len(detector.scores(AUDIO[: needed - 1])) == 0
    assert len(detector.scores(AUDIO[needed - 1 : needed])) == 1
    assert detector.decision_time_s(0) == pytest.approx(needed / SAMPLE_RATE)


def test_start_and_score_belong_to_the_window(detector):
    scores = heard(detector, [AUDIO])[:, 0]
    for found in detected(detector, [AUDIO]):
        window = round(found.start_s / 0.1)
        assert found.score == pytest.approx(scores[window], abs=1e-5)
        assert found.score >= detector._triggers["computer"].threshold
        assert found.time_s == pytest.approx(found.start_s + 1.5 + 200 / SAMPLE_RATE)


@pytest.mark.parametrize("length", [0, 1, 399, 8_000, 23_999, 24_000, 24_001])
def test_a_stream_shorter_than_a_window_is_scored_at_its_end(length):
    detector = Detector(tiny_spotter())
    assert len(detector.scores(AUDIO[:length])) == 0
    tail = detector.tail_scores()
    assert len(tail) >= 1
    assert np.isfinite(tail).all()


def test_flush_looks_half_a_window_beyond_the_end():
    detector = Detector(tiny_spotter(smoothing_windows=1))
    audio = AUDIO[: samples(4.0)]
    scores = heard(detector, [audio])
    padded = np.concatenate([audio, np.zeros(samples(0.75), np.float32)])
    features, _ = detector.spotter.frontend(torch.from_numpy(padded)[None])
    windows = windows_along(features[0], 151, 10)
    assert len(scores) == len(windows) == 1 + (475 - 150) // 10
    wanted = detector.spotter.keyword_scores(windows).detach().numpy()
    np.testing.assert_allclose(scores, wanted, atol=1e-5)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_smoothing_is_the_mean_over_the_last_windows(width):
    raw = heard(Detector(tiny_spotter(smoothing_windows=1)), [AUDIO])
    smooth = heard(Detector(tiny_spotter(smoothing_windows=width)), pieces_of(AUDIO, [4_321]))
    wanted = [raw[max(0, i + 1 - width) : i + 1].mean(axis=0) for i in range(len(raw))]
    np.testing.assert_allclose(smooth, wanted, atol=1e-5)


def test_a_window_scores_the_same_in_training_form_and_along_a_stream():
    """Features of a scene, cut behind its warm-up, against the detector on the same audio."""
    spotter = tiny_spotter(smoothing_windows=1)
    scenes = np.stack([bursts(4, seed=seed) for seed in (7, 8)])
    starts = torch.tensor([[100, 150, 210], [110, 200, 240]])
    features, _ = spotter.frontend(torch.from_numpy(scenes))
    trained = spotter.keyword_scores(cut_windows(features, starts, 151)).detach().numpy()
    along = [Detector(spotter).scores(scene) for scene in scenes]
    wanted = np.concatenate(
        [scores[row // 10] for scores, row in zip(along, starts.numpy(), strict=True)]
    )
    np.testing.assert_allclose(trained, wanted, atol=1e-5)


def test_what_lies_before_the_warm_up_hardly_matters():
    """A second of warm-up leaves 0.975^100 = 8 % of the memory to what a scene does not know."""
    frontend = tiny_spotter().frontend
    audio = torch.from_numpy(noise(10, seed=9) * (1 + np.sin(np.arange(160_000) / 3e4)))[None]
    along, _ = frontend(audio)
    warm, _ = frontend(audio[:, 64_000:])
    cold, _ = frontend(audio[:, 80_000:])
    wanted = along[:, 510:652]
    errors = [(part - wanted).abs().mean() for part in (warm[:, 110:252], cold[:, 10:152])]
    assert errors[0] < 0.15 * errors[1]
    assert errors[0] < 0.05 * wanted.std()


def test_several_keywords_are_found_on_their_own():
    labels = ("_background_", "_unknown_", "left", "right")
    spotter = tiny_spotter(labels=labels, seed=2)
    scores = heard(Detector(spotter), [AUDIO])
    assert scores.shape[1] == 2
    levels = {"left": float(np.median(scores[:, 0])), "right": float(np.median(scores[:, 1]))}
    both = detected(Detector(spotter, thresholds=levels), [AUDIO])
    never = {"left": 2.0, "right": 2.0}
    for keyword in levels:
        alone = Detector(spotter, thresholds=never | {keyword: levels[keyword]})
        assert_same(detected(alone, [AUDIO]), [d for d in both if d.keyword == keyword])
    assert {d.keyword for d in both} == {"left", "right"}
    assert [d.time_s for d in both[:-1]] == sorted(d.time_s for d in both[:-1])


@pytest.mark.parametrize(
    "chunk",
    [
        np.array([0.0, np.nan, 0.1], np.float32),
        np.array([np.inf]),
        np.zeros((2, 100), np.float32),
        np.float32(0.5),
        np.zeros(5, np.int32),
        np.zeros(5, bool),
    ],
)
def test_a_bad_chunk_is_refused_and_leaves_the_stream_as_it_was(detector, chunk):
    detector.reset()
    wanted = detected(detector, [AUDIO])
    detector.reset()
    found = detector.push(AUDIO[:33_333])
    for method in (detector.push, detector.predict, detector.scores):
        with pytest.raises(AudioError):
            method(chunk)
    assert_same(found + detector.push(AUDIO[33_333:]) + detector.flush(), wanted)


def test_digital_silence_is_finite(detector):
    scores = heard(detector, [np.zeros(samples(3), np.float32), noise(2)])
    assert np.isfinite(scores).all()


def test_a_threshold_for_no_keyword_is_refused():
    with pytest.raises(RequestError, match=r"komputer.*computer"):
        Detector(tiny_spotter(), thresholds={"komputer": 0.3})


@pytest.mark.parametrize(
    "wrong",
    [
        {"shift_s": 0.0},
        {"smoothing_windows": 0},
        {"refractory_s": -1.0},
        {"shift_s": float("inf")},
        {"refractory_s": float("inf")},
    ],
)
def test_impossible_detection_settings_are_refused(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        DetectionConfig(**wrong)


@pytest.mark.parametrize(
    ("shift_s", "refractory_s", "windows"),
    [(0.1, 1.0, 10), (0.3, 1.0, 4), (0.1, 0.3, 3), (0.1, 0.31, 4), (0.1, 0.0, 0)],
)
def test_gaps_under_the_refractory_time_are_one_detection(shift_s, refractory_s, windows):
    spotter = tiny_spotter(shift_s=shift_s, refractory_s=refractory_s)
    assert Detector(spotter).refractory_windows == windows
    assert (windows - 1) * shift_s < refractory_s + 1e-9 or windows == 0


@pytest.mark.parametrize("shift_s", [0.004, 1.52, 2.0])
def test_a_shift_under_a_frame_or_over_a_window_is_refused(shift_s):
    with pytest.raises(RequestError, match=rf"shift_s {shift_s}.*1 to the 151"):
        tiny_spotter(shift_s=shift_s)


def test_a_shift_as_long_as_a_window():
    detector = Detector(tiny_spotter(shift_s=1.51))
    whole = heard(detector, [AUDIO])
    assert len(whole) == 1 + (2075 - 150) // 151
    np.testing.assert_allclose(heard(detector, pieces_of(AUDIO, [1600])), whole, atol=1e-5)
