"""Training: what a run leaves, exact resume, what is dropped, skipped, averaged."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lhotse import MonoCut, SupervisionSegment

from speechkit.asr import Recogniser, kneser_ney
from speechkit.asr.decoding import attach_language_model
from speechkit.asr.fit import _Keeper, fit
from speechkit.asr.optimisation import FitConfig, decayed, moving_average
from speechkit.asr.train import TrainConfig, set_aside, train, train_recogniser
from speechkit.asr.utterances import AugmentConfig, Material, Utterances, check
from speechkit.augment import active_power, power
from speechkit.batching import BatchConfig, CutBatch, DurationBatches
from speechkit.errors import AudioError, JobError, RequestError
from speechkit.specaugment import SpecAugmentConfig
from tests.asr.speech import SMALL, SMALL_RECURRENT, recogniser

QUICK = FitConfig(epochs=3, warmup_steps=2, spec_augment_after=2, averaging=0.5)


class Killed(Exception):
    """Stands for the end of the process."""


def material(corpus, model, **changes):
    checked = check(corpus[0], model, fastest=1.1)
    options = {
        "training": checked,
        "dev": checked,
        "batches": BatchConfig(max_s=4.0, buckets=2),
        "spec_augment": SpecAugmentConfig(time_width=5),
        "seed": 5,
    }
    return Material(**{**options, **changes})


def run(corpus, out, *, config=QUICK, model_config=SMALL, **changes):
    model = recogniser(model_config)
    return fit(model, material(corpus, model, **changes), config=config, out=out)


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def assert_equal(some, other):
    some, other = dict(some.state_dict()), dict(other.state_dict())
    assert some.keys() == other.keys()
    for name in some:
        assert torch.equal(some[name], other[name]), name


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return out, run(corpus, out)


def test_a_run_writes_model_state_and_log(uninterrupted):
    out, model = uninterrupted
    assert_equal(Recogniser.load(out / "model"), model)
    lines = log_of(out)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    assert lines[-1]["loss"] < lines[0]["loss"]
    for line in lines:
        assert 0 <= line["best_dev_wer"] <= line["dev_wer"]
        assert 0 <= line["blank_share"] <= 1
        assert line["gradient_norm"] > 0
        assert line["skipped_steps"] == line["unusable_utterances"] == 0
    assert sorted(path.name for path in (out / "resume").iterdir()) == [".lock", "last.ckpt"]


def test_dev_is_measured_now_and_then_and_at_the_end(uninterrupted, corpus, tmp_path):
    model = run(corpus, tmp_path, config=dataclasses.replace(QUICK, dev_every=2))
    every, some = log_of(uninterrupted[0]), log_of(tmp_path)
    assert ["dev_wer" in line for line in some] == [False, True, True]
    assert [line["loss"] for line in some] == [line["loss"] for line in every]
    assert [some[i]["dev_loss"] for i in (1, 2)] == [every[i]["dev_loss"] for i in (1, 2)]
    assert_equal(Recogniser.load(tmp_path / "model"), model)
    short = tmp_path / "short"
    run(corpus, short, config=dataclasses.replace(QUICK, dev_every=5, max_minutes=1e-4))
    assert ["dev_wer" in line for line in log_of(short)] == [True]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_killed_run_ends_with_the_same_weights(
    uninterrupted, corpus, tmp_path, monkeypatch, workers
):
    config = dataclasses.replace(QUICK, workers=workers)
    steps = log_of(uninterrupted[0])[0]["step"]
    place = {"at": steps + 1}
    original = Utterances.__getitem__

    def dying(self, batch):
        if batch.epoch == 1 and batch.number == place["at"] - steps:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(Utterances, "__getitem__", dying)
    with pytest.raises(Killed):
        run(corpus, tmp_path, config=config)
    monkeypatch.setattr(Utterances, "__getitem__", original)
    resumed = run(corpus, tmp_path, config=config)
    assert [line["epoch"] for line in log_of(tmp_path)] == [0, 1, 2]
    assert_equal(resumed, uninterrupted[1])


def test_epochs_of_other_numbers_of_batches_are_read_whole(corpus, tmp_path, monkeypatch):
    batches = BatchConfig(max_s=2.0, buckets=2)

    def planned(seed, epoch):
        return len(DurationBatches(corpus[0], batches, seed=seed).plan(epoch))

    # the second epoch is longer than the first, and the third shorter
    seed = next(s for s in range(1000) if planned(s, 0) < planned(s, 1) > planned(s, 2))
    changes = {"seed": seed, "batches": batches}
    original = Utterances.__getitem__
    read = []

    def reading(self, batch):
        if batch.epoch == dying:
            raise Killed
        if self.config is not None:  # not the dev set's
            read.append((batch.epoch, batch.number))
        return original(self, batch)

    monkeypatch.setattr(Utterances, "__getitem__", reading)
    dying = None
    whole = run(corpus, tmp_path / "a", **changes)
    wanted = [(epoch, number) for epoch in range(3) for number in range(planned(seed, epoch))]
    assert read == wanted
    dying = 1
    with pytest.raises(Killed):
        run(corpus, tmp_path / "b", **changes)
    dying = None
    read.clear()
    assert_equal(run(corpus, tmp_path / "b", **changes), whole)
    assert read == [place for place in wanted if place[0] > 0]


def test_accumulation_schedule_and_mean_of_epochs(corpus, tmp_path, monkeypatch):
    config = dataclasses.replace(
        QUICK, accumulate=2, schedule="noam", average_epochs=2, averaging=0.0, precision="bf16"
    )
    average, heard, averaged = _Keeper._averaged, [], []

    def noting(self, measured):
        heard.append({name: w.clone() for name, w in measured.state_dict().items()})
        found = average(self, measured)
        averaged.append(found.state_dict())
        return found

    monkeypatch.setattr(_Keeper, "_averaged", noting)
    run(corpus, tmp_path / "a", config=config, model_config=SMALL_RECURRENT)
    lines = log_of(tmp_path / "a")
    assert all(math.isfinite(line["dev_loss"]) for line in lines)
    batches = DurationBatches(corpus[0], BatchConfig(max_s=4.0, buckets=2), seed=5)
    steps = [math.ceil(len(batches.plan(epoch)) / 2) for epoch in range(3)]
    assert [line["step"] for line in lines] == list(itertools.accumulate(steps))
    assert not torch.equal(heard[1]["network.output.weight"], heard[2]["network.output.weight"])
    for name, weights in averaged[-1].items():
        torch.testing.assert_close(weights, (heard[1][name] + heard[2][name]) / 2)


def test_what_is_heard_has_the_noise_and_level_that_were_drawn(corpus):
    model, cut = recogniser(), next(iter(corpus[0]))
    tokens = check([cut], model).tokens
    clean = Utterances(model.inputs, tokens)[CutBatch(0, 0, (cut,))].x[0].numpy()
    config = AugmentConfig(speeds=(1.0,), noise_probability=1.0, snr_db=(5.0, 5.0), gain_db=0.0)
    heard = Utterances(model.inputs, tokens, config=config)[CutBatch(0, 0, (cut,))].x[0].numpy()
    snr_db = 10 * math.log10(active_power(clean) / power(heard - clean))
    assert snr_db == pytest.approx(5.0, abs=0.1)
    levels = set()
    for epoch in range(8):
        quiet = AugmentConfig(speeds=(1.0,), noise_probability=0.0, gain_db=6.0)
        batch = Utterances(model.inputs, tokens, config=quiet)[CutBatch(epoch, 0, (cut,))]
        level = float(batch.x[0].norm()) / float(np.linalg.norm(clean))
        assert 10 ** (-6 / 20) <= level <= 10 ** (6 / 20)
        levels.add(round(level, 3))
    assert len(levels) > 4


def test_what_fits_but_not_when_played_faster_is_left_out(corpus):
    """CTC needs a frame for each token and one between equal ones."""
    model, cut = recogniser(), next(iter(corpus[0]))
    frames = int(model.network.output_lengths(torch.tensor([model.inputs.frame_count(cut)])))
    text = ("ab" * frames)[:frames]
    (supervision,) = cut.supervisions
    dense = cut.with_id("dense")
    dense.supervisions = [dataclasses.replace(supervision, text=text, custom=None)]
    assert not check([dense, cut], model).dropped
    assert check([dense, cut], model, fastest=1.1).dropped.keys() == {"dense"}


def test_only_matrices_decay():
    model = recogniser(SMALL)
    matrices, others = decayed(model, 0.1)
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert {p.ndim > 1 for p in matrices["params"]} == {True}
    assert {p.ndim > 1 for p in others["params"]} == {False}
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_the_moving_average_forgets_the_first_steps():
    update = moving_average(0.99)
    averaged, current = [torch.tensor([0.0])], [torch.tensor([1.0])]
    update(averaged, current, 0)
    assert averaged[0].item() == pytest.approx(0.9)
    update(averaged, [torch.tensor([0.0])], 10_000)
    assert averaged[0].item() == pytest.approx(0.9 * 0.99)


def test_two_views_resume_exactly_too(corpus, tmp_path, monkeypatch):
    config = dataclasses.replace(QUICK, consistency=0.2)
    whole = run(corpus, tmp_path / "a", config=config)
    original = Utterances.__getitem__

    def dying(self, batch):
        if batch.epoch == 2:
            raise Killed
        return original(self, batch)

    monkeypatch.setattr(Utterances, "__getitem__", dying)
    with pytest.raises(Killed):
        run(corpus, tmp_path / "b", config=config)
    monkeypatch.setattr(Utterances, "__getitem__", original)
    assert_equal(run(corpus, tmp_path / "b", config=config), whole)


def test_time_ends_a_run_and_its_schedule(corpus, tmp_path):
    config = dataclasses.replace(QUICK, epochs=500, max_minutes=1 / 60)
    run(corpus, tmp_path, config=config)
    assert len(log_of(tmp_path)) < 400
    assert log_of(tmp_path)[-1]["learning_rate"] < 1e-4


def test_a_step_that_is_not_finite_is_skipped_and_counted(corpus, tmp_path, monkeypatch):
    original = Utterances.__getitem__

    def spoiling(self, batch):
        found = original(self, batch)
        if self.config is not None and batch.number == 0:
            found.x[:] = float("nan")
        return found

    monkeypatch.setattr(Utterances, "__getitem__", spoiling)
    model = run(corpus, tmp_path)
    assert [line["skipped_steps"] for line in log_of(tmp_path)] == [1, 1, 1]
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_memory_running_out_names_the_setting(corpus, tmp_path, monkeypatch):
    def exhausted(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Utterances, "__getitem__", exhausted)
    with pytest.raises(JobError, match=r"batches\.max_s"):
        run(corpus, tmp_path)


@pytest.mark.parametrize("workers", [0, 1])
def test_audio_that_breaks_is_one_line(tmp_path, workers):
    from tests.asr.speech import write_corpus

    own = write_corpus(tmp_path, clips=3), tmp_path
    config = dataclasses.replace(QUICK, workers=workers)
    model = recogniser()
    ready = material(own, model)
    for path in tmp_path.glob("*.wav"):
        path.write_bytes(path.read_bytes()[:2_000])
    with pytest.raises(AudioError, match=r"^\S+\.wav: truncated: [^\n]+$"):
        fit(model, ready, config=config, out=tmp_path / "out")


DISTRIBUTED = """
import dataclasses, sys
from pathlib import Path
import torch
from speechkit.asr import fit
from tests.asr.speech import write_corpus
from tests.asr.test_fit import QUICK, run
out, rank = Path(sys.argv[1]), os.environ["RANK"]
fit._Training.on_train_end = lambda self: torch.save(self.recogniser.state_dict(), out / rank)
corpus = write_corpus(out / f"corpus-{rank}"), out
limited = dataclasses.replace(QUICK, epochs=400, max_minutes=0.1, devices=2, strategy="ddp")
run(corpus, out / "run", config=limited)
print("what follows is done once")
"""


@pytest.mark.slow
def test_processes_with_a_time_limit_keep_equal_weights(tmp_path):
    (tmp_path / "two.py").write_text("import os" + DISTRIBUTED)
    (tmp_path / "corpus-0").mkdir()
    (tmp_path / "corpus-1").mkdir()
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, tmp_path / "two.py", tmp_path],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("what follows") == 1
    first, second = (torch.load(tmp_path / rank) for rank in "01")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(log_of(tmp_path / "run")) > 1


def test_what_cannot_be_learnt_is_dropped_and_named(corpus):
    cuts = list(corpus[0])
    model = recogniser()
    texts = [cut.supervisions[0].text for cut in cuts]
    cuts[0].supervisions[0].text = "a" * 500
    cuts[1].supervisions[0].text = None
    checked = check(cuts, model)
    assert set(checked.dropped) == {cuts[0].id, cuts[1].id}
    assert "500 tokens need 999 frames" in checked.dropped[cuts[0].id]
    cuts[0].supervisions[0].text = "xyz " + texts[0]
    with pytest.raises(RequestError, match="unknown to the tokenizer"):
        check(cuts, model)
    assert len(check(cuts, model, max_unknown=0.5).utterances) == len(cuts) - 1
    for cut, text in zip(cuts, texts, strict=True):
        cut.supervisions[0].text = text


@pytest.mark.parametrize("stored", [False, True])
def test_what_an_utterance_gets_does_not_depend_on_its_batch(corpus, stored):
    cuts = list(corpus[0])[:3]
    model = recogniser()
    tokens = check(cuts, model).tokens
    if stored:
        inputs = recogniser(stored=True).inputs
        inputs.load = lambda cut: torch.randn(30, 5, generator=torch.manual_seed(len(cut.id)))
    else:
        inputs = model.inputs
    data = Utterances(inputs, tokens, config=AugmentConfig(), seed=3)
    alone = data[CutBatch(4, 0, (cuts[1],))]
    together = data[CutBatch(4, 9, tuple(cuts))]
    length = int(alone.lengths[0])
    assert int(together.lengths[1]) == length
    assert torch.equal(together.x[1, :length], alone.x[0])
    later = [data[CutBatch(epoch, 0, (cuts[1],))].x for epoch in range(5, 12)]
    assert not all(torch.equal(x, alone.x) for x in later)


def small(**changes):
    options = {"sparse": SMALL, "fit": QUICK, "frontend": {"type": "logmel", "mels": 20}}
    return TrainConfig(**{**options, **changes})


def test_another_run_s_folder_is_refused(corpus, tmp_path):
    cuts = list(corpus[0])
    config = small(fit=dataclasses.replace(QUICK, epochs=1))
    train_recogniser(cuts, cuts, out=tmp_path, config=config)
    with pytest.raises(RequestError, match="other settings"):
        train_recogniser(cuts, cuts, out=tmp_path, config=dataclasses.replace(config, seed=1))
    with pytest.raises(RequestError, match="other settings"):
        train_recogniser(cuts[1:], cuts, out=tmp_path, config=config)
    report = json.loads((tmp_path / "train.json").read_text())
    assert report["utterances"] == {"training": len(cuts), "dev": len(cuts)}
    assert report["left_out"] == {"training": {}, "dev": {}}


@pytest.mark.parametrize(("rate", "status"), [(8e-3, 0), (1e-7, 1)])
def test_the_self_test_says_whether_a_batch_can_be_learnt(
    corpus, tmp_path, monkeypatch, rate, status
):
    if status:
        monkeypatch.setattr("speechkit.asr.train._OVERFIT_STEPS", 20)
    config = small(fit=dataclasses.replace(QUICK, learning_rate=rate))
    manifest = corpus[1] / "manifest.jsonl"
    found = train(cuts=[manifest], out=tmp_path, overfit_batch=True, config=config)
    assert found == status
    assert not (tmp_path / "model").exists()


def test_too_few_cuts_for_a_dev_set_are_refused(corpus, tmp_path):
    with pytest.raises(RequestError, match="too few to set a dev set aside"):
        train(cuts=[corpus[1] / "manifest.jsonl"], out=tmp_path, config=small())


def test_a_speaker_of_most_cuts_is_not_set_aside():
    speakers = ["much"] * 60 + list("abcdefghi") * 5
    cuts = spoken_by(speakers)
    for seed in range(5):
        training, dev = set_aside(cuts, seed=seed)
        assert len(training) + len(dev) == len(cuts)
        assert len(dev) == 5
        assert len({cut.supervisions[0].speaker for cut in dev}) == 1


def spoken_by(speakers):
    return [
        MonoCut(
            id=f"c{i}",
            start=0,
            duration=1,
            channel=0,
            supervisions=[SupervisionSegment(f"c{i}", "r", start=0, duration=1, speaker=speaker)],
        )
        for i, speaker in enumerate(speakers)
    ]


@pytest.mark.parametrize(("speakers", "shared"), [(3, True), (4, False), (5, False), (9, False)])
def test_few_speakers_are_set_aside_whole(speakers, shared, caplog):
    cuts = spoken_by([f"s{i % speakers}" for i in range(60)])
    training, dev = set_aside(cuts, seed=0)
    heard = {cut.supervisions[0].speaker for cut in training}
    assert bool(heard & {cut.supervisions[0].speaker for cut in dev}) == shared
    assert ("dev shares speakers" in caplog.text) == shared


def test_a_finished_run_keeps_the_language_model_in_its_folder(corpus, tmp_path):
    cuts = list(corpus[0])
    config = small(fit=dataclasses.replace(QUICK, epochs=1))
    train_recogniser(cuts, cuts, out=tmp_path, config=config)
    model = tmp_path / "model"
    attach_language_model(model, kneser_ney.train(["ab cd"]), lm_weight=0.4, word_bonus=1.0)
    train_recogniser(cuts, cuts, out=tmp_path, config=config)
    assert (model / "lm.json").is_file()


def test_noise_for_stored_features_is_refused(corpus, tmp_path, monkeypatch):
    cuts = list(corpus[0])
    stored = recogniser(stored=True)
    monkeypatch.setattr("speechkit.asr.train.new_recogniser", lambda *_: stored)
    with pytest.raises(RequestError, match="noise: cannot be mixed into features"):
        train_recogniser(cuts, cuts, out=tmp_path, config=small(), noises=cuts)


@pytest.mark.parametrize("tokens", ["bytes", "sentencepiece"])
def test_other_tokens(corpus, tmp_path, tokens):
    cuts = list(corpus[0])
    config = small(tokens=tokens, token_count=12, fit=dataclasses.replace(QUICK, epochs=1))
    model = train_recogniser(cuts, cuts, out=tmp_path, config=config)
    assert model.tokenizer.kind == tokens


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0), (200, 0.0)]
)
def test_the_cosine(step, expected):
    config = FitConfig(warmup_steps=10)
    assert config.rate(step, 100) == pytest.approx(expected, abs=1e-6)


def test_noam_and_the_clock():
    assert FitConfig(warmup_steps=10, schedule="noam").rate(39, 100) == pytest.approx(0.5)
    assert FitConfig(warmup_steps=10).rate(20, 100, clock=1.0) == pytest.approx(0.0)


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"averaging": 1.0}, {"accumulate": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        FitConfig(**wrong)
