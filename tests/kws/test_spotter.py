"""A spotter on disk: what comes back equals what was saved, and damage is refused by name."""

import json
import math

import pytest
import torch

from speechkit.errors import RequestError
from speechkit.kws.spotter import Spotter, SpotterConfig, Threshold, windows_along
from tests.kws.helpers import TINY, tiny_spotter

LABELS = ("_background_", "left", "right")
FROZEN = Threshold(value=1 - 1e-13, fa_per_hour=0.5, snr_db=5.0, negative_hours=3.25)


def scores(spotter, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randn(5, 151, 40, generator=generator)
    with torch.inference_mode():
        return spotter.keyword_scores(windows)


@pytest.fixture
def folder(tmp_path):
    spotter = tiny_spotter(labels=LABELS, shift_s=0.05, smoothing_windows=3)
    spotter.with_thresholds({"left": FROZEN}).save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": {**TINY, "unit": "lstm"}},
        {"network": {"type": "cnn", "filters": 4, "hidden": 8}},
        {"frontend": {"type": "logmel"}},
        {"frontend": {"type": "pcen", "trainable": True, "mels": 40, "s": 0.04}},
    ],
)
def test_saved_and_loaded_scores_are_equal_bit_for_bit(tmp_path, changes):
    config = SpotterConfig(**{"labels": LABELS, "network": TINY, **changes})
    spotter = Spotter(config).eval()
    spotter.save(tmp_path / "model")
    twin = Spotter.load(tmp_path / "model")
    assert not twin.training
    assert torch.equal(scores(twin), scores(spotter))
    assert twin.frontend.describe() == spotter.frontend.describe()
    audio = torch.randn(1, 16_000) / 10
    assert torch.equal(twin.frontend(audio)[0], spotter.frontend(audio)[0])
    twin.save(tmp_path / "again")
    again, first = ((tmp_path / name / "config.json").read_bytes() for name in ("again", "model"))
    assert again == first


def test_everything_but_weights_comes_back(folder):
    twin = Spotter.load(folder)
    assert twin.config.labels == LABELS
    assert twin.keywords == ("left", "right")
    assert twin.config.detection.shift_s == 0.05
    assert twin.config.detection.smoothing_windows == 3
    assert twin.config.thresholds == {"left": FROZEN}
    assert twin.threshold("left") == 1 - 1e-13
    assert twin.threshold("right") == 0.5
    assert (twin.window_frames, twin.shift_frames, twin.hop_samples) == (151, 5, 160)


def test_a_model_card_and_no_pickle_lie_in_the_folder(folder):
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
    }
    card = (folder / "README.md").read_text()
    assert "left, right" in card
    assert "3.25 h" in card


def test_saving_again_replaces_the_folder(folder):
    other = tiny_spotter(seed=5)
    other.save(folder)
    assert torch.equal(scores(Spotter.load(folder)), scores(other))
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_other_thresholds_leave_the_weights_alone():
    spotter = tiny_spotter(labels=LABELS)
    before = {k: v.clone() for k, v in spotter.state_dict().items()}
    twin = spotter.with_thresholds({"right": FROZEN})
    assert torch.equal(scores(twin), scores(spotter))
    assert (twin.threshold("right"), spotter.threshold("right")) == (FROZEN.value, 0.5)
    assert twin.training == spotter.training
    # a copy: what happens to one does not happen to the other
    torch.nn.init.zeros_(twin.network.output.weight)
    assert all(torch.equal(before[k], v) for k, v in spotter.state_dict().items())


def set_in(config, path, value):
    *parents, last = path.split(".")
    for name in parents:
        config = config[name]
    config[last] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("labels", ["_background_"]),
        ("labels", ["_background_", "left"]),
        ("labels", 3),
        ("labels", None),
        ("network.type", "transformer"),
        ("network.hidden", 9),
        ("network.hidden", -1),
        ("network.hidden", "8"),
        ("network.recurrent_layers", 2),
        ("network.recurrent_layers", 0),
        ("network.recurrent_units", 0),
        ("network.filter_size", [20]),
        ("network.filter_size", 20),
        ("network.filter_stride", [0, 2]),
        ("network.unit", "rnn"),
        ("network.depth", 2),
        ("network.bands", 41),
        ("network.frames", 161),
        ("network", None),
        ("network", [1]),
        ("frontend.mels", 39),
        ("frontend.mels", "40"),
        ("frontend.type", "fbank"),
        ("frontend", None),
        ("detection.shift_s", 0.0),
        ("detection.shift_s", "0.1"),
        ("detection.smoothing_windows", 0),
        ("detection.refractory", 1.0),
        ("detection", []),
        ("thresholds", [0.5]),
        ("thresholds", {"left": 0.5}),
        ("thresholds", {"left": {"value": 0.5}}),
        ("thresholds.left.value", "0.5"),
        ("thresholds.left.value", None),
        ("thresholds.left.value", math.nan),
        ("thresholds.left.value", 2.0),
        ("thresholds.left.fa_per_hour", 0),
        ("thresholds.left.negative_hours", "many"),
        ("task", "asr"),
        ("format", 99),
    ],
)
def test_a_damaged_config_is_a_request_error(folder, path, value):
    stored = json.loads((folder / "config.json").read_text())
    set_in(stored, path, value)
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RequestError) as caught:
        Spotter.load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["labels", "network", "frontend", "detection", "thresholds"])
def test_a_missing_part_is_named(folder, key):
    stored = json.loads((folder / "config.json").read_text())
    del stored[key]
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(RequestError, match=key):
        Spotter.load(folder)


def test_damaged_files_are_request_errors(folder, tmp_path):
    with pytest.raises(RequestError, match="not a model folder"):
        Spotter.load(tmp_path / "nowhere")
    (folder / "model.safetensors").write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(RequestError, match="safetensors"):
        Spotter.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        Spotter.load(folder)


def test_a_spotter_needs_a_keyword_and_equal_bands():
    with pytest.raises(RequestError, match="at least one keyword"):
        Spotter(SpotterConfig(labels=("_background_", "_unknown_")))
    config = SpotterConfig(labels=LABELS, frontend={"type": "pcen", "mels": 23}, network=TINY)
    with pytest.raises(RequestError, match=r"23 bands.*40"):
        Spotter(config)


def test_scores_stay_apart_where_single_precision_would_round_them_to_one():
    spotter = tiny_spotter()
    with torch.no_grad():
        spotter.network.output.weight.zero_()
        spotter.network.output.bias.copy_(torch.tensor([0.0, 25.0]))
    low = scores(spotter)
    with torch.no_grad():
        spotter.network.output.bias[1] = 30.0
    assert low.dtype == torch.float64
    assert (low < scores(spotter)).all()
    assert (scores(spotter) < 1).all()


def test_posteriors_sum_to_one_and_keywords_are_columns_of_them():
    spotter = tiny_spotter(labels=("_silence_", "left", "_unknown_", "right"))
    windows = torch.randn(3, 151, 40)
    posteriors = spotter.posteriors(windows)
    torch.testing.assert_close(posteriors.sum(1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(spotter.keyword_scores(windows), posteriors[:, [1, 3]])


@pytest.mark.parametrize(("length", "count"), [(0, 0), (150, 0), (151, 1), (160, 1), (161, 2)])
def test_windows_along_features(length, count):
    features = torch.arange(length * 2.0).reshape(length, 2)
    windows = windows_along(features, 151, 10)
    assert windows.shape == (count, 151, 2)
    for index, window in enumerate(windows):
        assert torch.equal(window, features[10 * index : 10 * index + 151])
