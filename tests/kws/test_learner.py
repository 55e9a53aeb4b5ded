"""The spotter's learner: classes of clips, training with classes missing, errors."""

import dataclasses

import pytest

from speechkit import manifests
from speechkit.active_learning.annotations import with_text
from speechkit.active_learning.simulate import load_learner
from speechkit.errors import RequestError
from speechkit.kws.fit import FitConfig
from speechkit.kws.learner import SpotterLearner
from speechkit.kws.train import TrainConfig
from tests.kws.corpus import write_corpus

TEACHER = SpotterLearner(
    keywords=("computer", "jarvis"),
    train=TrainConfig(classes="unknown-silence", fit=FitConfig(epochs=1, steps=2, workers=0)),
)


@pytest.fixture(scope="module")
def cuts(tmp_path_factory):
    paths = write_corpus(tmp_path_factory.mktemp("corpus"), keywords=6, others=6)
    return list(manifests.read_all([paths["positives"], paths["negatives"]]))


def test_classes(cuts):
    assert TEACHER.class_of(cuts[0]) == "computer"
    assert TEACHER.class_of(cuts[-1]) == "_unknown_"
    assert TEACHER.class_of(with_text(cuts[0], " Jarvis")) == "jarvis"
    for label in ("_silence_", "_noise_", " "):
        assert TEACHER.class_of(with_text(cuts[0], label)) == "_silence_"
    with pytest.raises(RequestError, match="neither label nor text"):
        TEACHER.class_of(with_text(cuts[0], None))


def test_a_model_is_trained_once_and_another_goes_on_from_it(cuts, tmp_path):
    base = TEACHER.fit(cuts, None, seed=0, out=tmp_path / "base")
    assert base.keywords == TEACHER.keywords  # one of them without a clip
    written = (tmp_path / "base" / "log.jsonl").stat().st_mtime_ns
    TEACHER.fit(cuts, None, seed=0, out=tmp_path / "base")
    assert (tmp_path / "base" / "log.jsonl").stat().st_mtime_ns == written
    further = FitConfig(epochs=2, steps=1, workers=0)
    learner = dataclasses.replace(TEACHER, further=further)
    other = learner.fit(cuts, base, seed=0, out=tmp_path / "further")
    assert len((tmp_path / "further" / "log.jsonl").read_text().splitlines()) == further.epochs
    error = TEACHER.evaluate(other, cuts)["error"]
    assert 0 <= error <= 1
    assert error * len(cuts) == pytest.approx(round(error * len(cuts)))


def test_the_last_epoch_needs_no_dev(cuts, tmp_path):
    learner = dataclasses.replace(TEACHER, keep="last")
    spotter = learner.fit(cuts[:3], None, seed=0, out=tmp_path)
    assert not spotter.config.thresholds
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert "dev_frr" not in line


def test_clips_are_decoded_once(cuts, tmp_path, monkeypatch):
    learner = dataclasses.replace(TEACHER, keep="last")
    spotter = learner.fit(cuts, None, seed=0, out=tmp_path)
    monkeypatch.setattr("speechkit.kws.clips.load_cut", lambda cut: pytest.fail("decoded again"))
    learner.evaluate(spotter, cuts)


def test_too_few_clips_are_refused(cuts, tmp_path):
    with pytest.raises(RequestError, match="too few to set a dev set aside"):
        TEACHER.fit(cuts[:3], None, seed=0, out=tmp_path)


def test_the_command_line_finds_it():
    assert isinstance(load_learner("speechkit.kws.learner:SPOTTER"), SpotterLearner)
