"""The recogniser's learner: trains once, goes on from a model, measures without a trace."""

import dataclasses
import json

import pytest

from speechkit.active_learning.simulate import load_learner
from speechkit.asr.learner import RecogniserLearner
from speechkit.asr.optimisation import FitConfig
from speechkit.asr.train import TrainConfig
from speechkit.batching import BatchConfig
from speechkit.errors import RequestError
from tests.asr.speech import SMALL

QUICK = FitConfig(epochs=2, warmup_steps=2, averaging=0.5)


def learner(cuts, **changes):
    train = TrainConfig(
        sparse=SMALL,
        frontend={"type": "logmel", "mels": 20},
        batches=BatchConfig(max_s=8.0),
        fit=QUICK,
        max_unknown=1.0,
    )
    return RecogniserLearner(train=train, dev=tuple(cuts)[:2], **changes)


def epochs_of(out):
    return len((out / "log.jsonl").read_text().splitlines())


def test_a_model_is_trained_once_and_another_goes_on_from_it(corpus, tmp_path):
    cuts, _ = corpus
    teacher = learner(cuts, further=FitConfig(epochs=1, averaging=0.5))
    base = teacher.fit(list(cuts)[2:], None, seed=3, out=tmp_path / "base")
    written = (tmp_path / "base" / "log.jsonl").stat().st_mtime_ns
    again = teacher.fit(list(cuts)[2:], None, seed=3, out=tmp_path / "base")
    assert (tmp_path / "base" / "log.jsonl").stat().st_mtime_ns == written
    assert not (tmp_path / "base" / "resume").exists()
    assert (again.output_layer.weight == base.output_layer.weight).all()
    other = teacher.fit(list(cuts), base, seed=3, out=tmp_path / "further")
    assert epochs_of(tmp_path / "base") == 2
    assert epochs_of(tmp_path / "further") == 1
    assert other.tokenizer.pieces == base.tokenizer.pieces
    assert set(teacher.evaluate(other, list(cuts))) == {"wer", "cer", "loss"}


def test_few_and_many_utterances_are_heard_for_as_long(corpus, tmp_path):
    cuts = list(corpus[0])
    heard_h = 2 * sum(cut.duration for cut in cuts) / 3600
    teacher = learner(cuts, heard_h=heard_h)
    teacher.fit(cuts, None, seed=0, out=tmp_path / "many")
    teacher.fit([*cuts[:3]], None, seed=0, out=tmp_path / "few")
    assert epochs_of(tmp_path / "many") == 2
    assert 3 <= epochs_of(tmp_path / "few") <= 6


def test_settings_tell_learners_apart(corpus):
    cuts = list(corpus[0])
    same = json.dumps(learner(cuts, heard_h=1).settings())
    assert same == json.dumps(learner(cuts, heard_h=1).settings())
    assert same != json.dumps(learner(cuts, heard_h=2).settings())
    assert same != json.dumps(learner(cuts[1:], heard_h=1).settings())


def test_measuring_needs_texts(corpus, trained):
    from speechkit.active_learning.annotations import with_text
    from speechkit.asr.recogniser import Recogniser

    cuts = list(corpus[0])
    teacher, model = learner(cuts), Recogniser.load(trained)
    found = teacher.evaluate(model, cuts)
    assert (found["wer"], found["cer"]) == (0.0, 0.0)
    assert 0 < found["loss"] < 0.3
    besides = dataclasses.replace(teacher, also=tuple(cuts)).evaluate(model, cuts[:1])
    assert besides["test_loss"] == found["loss"]
    with pytest.raises(RequestError, match="none of 6 cuts has a text"):
        teacher.evaluate(model, [with_text(cut, None) for cut in cuts])


def test_the_command_line_finds_it():
    found = load_learner("speechkit.asr.learner:RECOGNISER")
    assert isinstance(found, RecogniserLearner)
