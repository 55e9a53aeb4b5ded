"""Training: a tiny run from end to end, and the same weights after a kill in mid-epoch."""

import dataclasses
import json

import pytest
import torch

from speechkit.kws.batches import IGNORED, SceneBatches
from speechkit.kws.fit import DevSet, FitConfig, _Training, cut_windows, fit, mask_stripe
from speechkit.kws.scenes import Material, SceneConfig
from speechkit.kws.spotter import Spotter
from speechkit.kws.streams import keyword_streams, negative_streams
from tests.kws.helpers import clip_of, noise, padded_clip, tiny_spotter

POSITIVES = [padded_clip(0.5, id_=f"p{i}", hz=1_900 + 100 * i) for i in range(3)]
NEGATIVES = [padded_clip(0.6, id_=f"n{i}", hz=400 + 50 * i) for i in range(3)]
CONFIG = FitConfig(epochs=3, steps=3, workers=0, averaging=0.5, learning_rate=0.01)


class Killed(Exception):
    """Stands for the end of the process."""


class Scenes(SceneBatches):
    """Scenes, which end the process when a step is asked for."""

    killed_at = None

    def __getitem__(self, step):
        if step == self.killed_at:
            raise Killed(f"at step {step}")
        return super().__getitem__(step)


def scenes(*, killed_at=None, **changes):
    material = Material(
        positives=[(clip, 1) for clip in POSITIVES],
        negatives=[(clip, 0) for clip in NEGATIVES],
        noises=[clip_of(noise(5))],
    )
    found = Scenes(
        material,
        SceneConfig(scenes=4, windows=3, rir_probability=0.0, **changes),
        keyword_labels=frozenset({1}),
        window_s=1.5,
        hop_s=0.01,
        seed=7,
    )
    found.killed_at = killed_at
    return found


def dev_set():
    return DevSet(
        {"computer": list(keyword_streams(POSITIVES, [], snr_db=20.0, seed=0))},
        list(negative_streams(NEGATIVES * 4, [], snr_db=20.0, seed=0)),
    )


def train(out, *, killed_at=None, seed=0, frontend="pcen", config=CONFIG, **changes):
    return fit(
        tiny_spotter(seed=seed, frontend=frontend),
        scenes(killed_at=killed_at, **changes),
        dev_set(),
        config=config,
        out=out,
    )


def weights(spotter):
    return dict(spotter.state_dict())


def state_of(out):
    return torch.load(out / "resume" / "last.ckpt", weights_only=True)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_equal(some, other):
    assert some.keys() == other.keys()
    for name in some:
        assert torch.equal(some[name], other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, train(out)


def test_a_run_writes_model_state_and_log(uninterrupted):
    out, spotter = uninterrupted
    assert_equal(weights(Spotter.load(out / "model")), weights(spotter))
    assert not spotter.training
    lines = log_of(out)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert [line["step"] for line in lines] == [3, 6, 9]
    for line in lines:
        assert 0 <= line["best_dev_frr"] <= line["dev_frr"] <= 1
        assert line["loss"] > 0
    assert sorted(path.name for path in (out / "resume").iterdir()) == [".lock", "last.ckpt"]
    state = state_of(out)
    changed = [
        name
        for name, value in weights(tiny_spotter()).items()
        if not torch.equal(value, state["state_dict"][f"spotter.{name}"])
    ]
    assert len(changed) > 5


def test_without_a_dev_set_the_last_epoch_is_kept(uninterrupted, tmp_path):
    config = dataclasses.replace(CONFIG, patience=1, drops=0)
    spotter = fit(tiny_spotter(), scenes(), None, config=config, out=tmp_path)
    averaged = {
        name.removeprefix("averaged.module."): value
        for name, value in state_of(tmp_path)["state_dict"].items()
        if name.startswith("averaged.module.")
    }
    assert_equal(weights(spotter), averaged)
    lines = log_of(tmp_path)
    # no patience runs out
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert not any("dev_frr" in line for line in lines)
    # dev chooses among epochs and changes none of them
    assert lines[0]["loss"] == log_of(uninterrupted[0])[0]["loss"]


def test_the_loss_falls(tmp_path):
    """Thirty steps tell tones of 2 kHz from tones of 400 Hz."""
    config = dataclasses.replace(CONFIG, steps=10, drops=0, patience=3)
    fit(tiny_spotter(), scenes(noise_probability=0.0), None, config=config, out=tmp_path)
    losses = [line["loss"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_step_is_the_cross_entropy_of_the_windows_that_count():
    spotter, batch = tiny_spotter(), scenes()[0]
    batch.targets[0, 0] = batch.targets[1, 2] = IGNORED
    plain = FitConfig(hard_windows=0, mask_bands=0, mask_frames=0)
    found = _Training(spotter, plain, seed=0).eval().training_step(batch, 0)
    features, _ = spotter.frontend(batch.audio)
    nats = [
        -spotter(features[scene, start : start + 151][None]).log_softmax(1)[0, target]
        for scene, row in enumerate(batch.starts.tolist())
        for start, target in zip(row, batch.targets[scene].tolist(), strict=True)
        if target != IGNORED
    ]
    assert len(nats) == 4 * 3 - 2
    torch.testing.assert_close(found, torch.stack(nats).mean())


@pytest.mark.parametrize(("dim", "widest"), [(1, 5), (2, 8)])
def test_a_stripe_of_every_width_is_masked_anywhere(dim, widest):
    torch.manual_seed(0)
    masked = mask_stripe(torch.ones(4_000, 12, 10), dim, widest) == 0
    assert torch.equal(masked, masked.any(dim=3 - dim, keepdim=True).expand_as(masked))
    rows = masked.any(dim=3 - dim).int()
    assert sorted(rows.sum(1).unique().tolist()) == list(range(widest + 1))
    # one stripe each, and every place is masked in some window
    assert (rows.diff(dim=1, prepend=torch.zeros(4_000, 1)) == 1).sum(1).max() == 1
    assert rows.any(dim=0).all()


@pytest.mark.parametrize("killed_at", [3, 4, 8])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, uninterrupted, killed_at):
    out, spotter = uninterrupted
    with pytest.raises(Killed):
        train(tmp_path, killed_at=killed_at)
    # whatever the new process starts with, the state on disk counts
    resumed = train(tmp_path, seed=99)
    assert_equal(weights(resumed), weights(spotter))
    once, twice = state_of(out), state_of(tmp_path)
    assert_equal(once["state_dict"], twice["state_dict"])
    moments, others = (state["optimizer_states"][0]["state"] for state in (once, twice))
    for key in moments:
        assert_equal(moments[key], others[key])
    volatile = {"elapsed_s"}
    for one, other in zip(log_of(out), log_of(tmp_path), strict=True):
        assert {k: one[k] for k in one.keys() - volatile} == {
            k: other[k] for k in other.keys() - volatile
        }


def test_a_kill_before_the_first_epoch_is_over_starts_afresh(tmp_path, uninterrupted):
    with pytest.raises(Killed):
        train(tmp_path, killed_at=1)
    assert not (tmp_path / "resume" / "last.ckpt").exists()
    assert_equal(weights(train(tmp_path)), weights(uninterrupted[1]))


def test_a_worker_process_changes_nothing(tmp_path, uninterrupted):
    config = FitConfig(epochs=3, steps=3, workers=1, averaging=0.5, learning_rate=0.01)
    with pytest.raises(Killed):
        train(tmp_path, killed_at=4, config=config)
    train(tmp_path, config=config)
    assert_equal(state_of(tmp_path)["state_dict"], state_of(uninterrupted[0])["state_dict"])


def test_a_finished_run_is_not_trained_on(tmp_path):
    whole = dataclasses.replace(CONFIG, drops=0)  # when rates drop depends on the epochs
    config = dataclasses.replace(whole, epochs=1)
    first = train(tmp_path / "a", config=config)
    again = train(tmp_path / "a", config=config, killed_at=3)
    assert_equal(weights(again), weights(first))
    assert len(log_of(tmp_path / "a")) == 1
    # with more epochs allowed it goes on as if they always had been
    longer = train(tmp_path / "a", config=whole)
    assert_equal(weights(longer), weights(train(tmp_path / "b", config=whole)))


def test_the_rate_drops_when_the_measure_stops_falling_and_then_training_ends(tmp_path):
    """A rate of nothing: the measure stays, so each `patience` epochs something happens."""
    config = FitConfig(
        epochs=20, steps=1, workers=0, learning_rate=1e-12, drop=0.5, drops=2, patience=2
    )
    train(tmp_path, config=config)
    rates = [line["learning_rate"] for line in log_of(tmp_path)]
    assert rates == [1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13, 2.5e-13, 2.5e-13]
    # and is over for good
    train(tmp_path, config=config, killed_at=7)
    assert len(log_of(tmp_path)) == 7


def test_the_lower_rates_get_their_share_of_a_measure_that_keeps_falling(tmp_path):
    config = FitConfig(
        epochs=10, steps=1, workers=0, learning_rate=1e-12, drop=0.5, drops=2, patience=20
    )
    train(tmp_path, config=config)
    rates = [line["learning_rate"] for line in log_of(tmp_path)]
    assert rates == [1e-12] * 5 + [5e-13] * 2 + [2.5e-13] * 3


def test_the_last_windows_without_a_keyword_are_the_hardest():
    training = _Training(tiny_spotter(seed=4), CONFIG, seed=0)
    batch = scenes()[2]
    features, _ = training.spotter.frontend(batch.audio)
    starts, targets = training._with_hardest(features, batch, 2)
    assert training.spotter.training
    kept = torch.ones(len(starts), dtype=torch.bool)
    kept[batch.free] = False
    assert 0 < len(batch.free) < len(starts)
    assert torch.equal(starts[kept], batch.starts[kept])
    assert torch.equal(starts[:, :-2], batch.starts[:, :-2])
    training.spotter.eval()
    for row, scene in enumerate(batch.free.tolist()):
        windows = cut_windows(features[scene : scene + 1], batch.others[row : row + 1], 151)
        scores = training.spotter.keyword_scores(windows)[:, 0]
        best = batch.others[row, scores.argsort(descending=True)[:2]]
        assert starts[scene, -2:].tolist() == best.tolist()
        assert targets[scene].tolist() == [0, 0, 0]


def test_the_dropped_rate_survives_a_kill(tmp_path):
    config = FitConfig(
        epochs=6, steps=1, workers=0, learning_rate=1e-12, drop=0.5, drops=2, patience=2
    )
    with pytest.raises(Killed):
        train(tmp_path, config=config, killed_at=4)
    train(tmp_path, config=config)
    rates = [line["learning_rate"] for line in log_of(tmp_path)]
    assert rates == [1e-12, 1e-12, 5e-13, 5e-13, 2.5e-13, 2.5e-13]


def test_windows_are_cut_where_they_start():
    features = torch.arange(2 * 50 * 3).reshape(2, 50, 3)
    starts = torch.tensor([[0, 7], [20, 39]])
    windows = cut_windows(features, starts, 11)
    assert windows.shape == (4, 11, 3)
    for number, (scene, start) in enumerate(((0, 0), (0, 7), (1, 20), (1, 39))):
        assert torch.equal(windows[number], features[scene, start : start + 11])


def test_dev_features_equal_those_that_the_detector_makes():
    spotter = tiny_spotter(seed=3)
    plain, featured = dev_set(), dev_set().with_features(spotter)
    one, other = (dev.listen(spotter)["computer"] for dev in (plain, featured))
    for a, b in zip(one.occurrences, other.occurrences, strict=True):
        shared = min(len(a.onsets.score), len(b.onsets.score))
        assert shared > 10
        torch.testing.assert_close(
            torch.from_numpy(a.onsets.score[:shared]),
            torch.from_numpy(b.onsets.score[:shared]),
            atol=1e-5,
            rtol=0,
        )
    assert one.negative_hours == other.negative_hours


def test_a_front_end_that_learns_is_not_computed_ahead():
    spotter = tiny_spotter()
    described = spotter.frontend.describe() | {"trainable": True}
    learning = Spotter(
        spotter.config.__class__(
            labels=spotter.config.labels, frontend=described, network=spotter.config.network
        )
    )
    dev = dev_set()
    assert dev.with_features(learning) is dev
    assert all(s.features is not None for s in dev.with_features(spotter).negatives)


@pytest.mark.parametrize("second", [0.3, 0.2])
def test_a_model_that_is_gone_on_from_must_be_beaten(tmp_path, monkeypatch, caplog, second):
    from speechkit.kws import fit as module

    measured = iter([0.2, 0.5, second])
    monkeypatch.setattr(module, "mean_frr", lambda *_: next(measured))
    spotter = tiny_spotter(seed=0, frontend="pcen")
    before = {name: tensor.clone() for name, tensor in weights(spotter).items()}
    kept = fit(
        spotter, scenes(), dev_set(), config=dataclasses.replace(CONFIG, epochs=2), out=tmp_path
    )
    stayed = all(torch.equal(before[name], tensor) for name, tensor in weights(kept).items())
    assert stayed == (second > 0.2)
    assert stayed == ("every epoch was worse on dev than the start (FRR 0.2000)" in caplog.text)
    assert any(not torch.equal(before[n], tensor) for n, tensor in weights(spotter).items())
