"""A round with people: what is asked for once stays, and other settings make another model."""

import json

import pytest
from lhotse.testing.dummies import dummy_features

from speechkit import manifests
from speechkit.active_learning import cycle
from speechkit.active_learning.exchange import TASKS_NAME
from speechkit.errors import JobError, RequestError
from tests.active_learning.test_labelling import make_selection


class Teacher:
    """Counts trainings; a model is the number of clips that it was trained on."""

    def __init__(self, rate=1):
        self.rate = rate
        self.trained = []

    def fit(self, cuts, init, *, seed, out):
        if not (out / "done").is_file():
            self.trained.append(out.name)
            out.mkdir(parents=True)
            (out / "done").touch()
        return init + len(cuts)

    def evaluate(self, model, cuts):
        return {"error": 1 / model}

    def settings(self):
        return {"rate": self.rate}


@pytest.fixture
def out(tmp_path, monkeypatch):
    """A round whose clips are selected already, asked for by a model of that name."""
    make_selection(tmp_path)
    monkeypatch.setattr(cycle, "model_digest", lambda model: model.name)
    return tmp_path


def ask(out, **changes):
    asked = {"model": out / "model", "strategy": "egl", "budget": "4"}
    return cycle.hand_over(out / "pool", out=out, **asked | changes)


def test_what_was_handed_over_stays_and_other_requests_are_refused(out):
    handed = ask(out)
    tasks = handed / TASKS_NAME
    written = tasks.stat().st_mtime_ns
    assert ask(out) == handed
    assert tasks.stat().st_mtime_ns == written
    for change in ({"budget": "5"}, {"strategy": "random"}, {"model": out / "another"}):
        with pytest.raises(RequestError, match="holds a run with other settings"):
            ask(out, **change)


def test_features_without_recordings_are_handed_over_as_cuts(out):
    folder = out / "selection"
    cuts = list(manifests.read(folder))
    for cut in cuts:
        form = dummy_features(0, start=0.0, duration=1.0)
        cut.features, cut.recording = form, None
    manifests.write(cuts, folder / manifests.CUTS_NAME)
    handed = ask(out)
    assert [cut.id for cut in manifests.read(handed)] == [cut.id for cut in cuts]
    assert not (handed / TASKS_NAME).exists()


def retrain(out, teacher, seed=0):
    labels = cycle.ask_oracle(lambda _: "yes", out=out)
    parts = {"labelled": [], "test": [out / "pool"], "labels": labels}
    return cycle.retrain(teacher, 2, out=out, seed=seed, **parts)


def test_a_model_is_trained_once_for_the_same_and_anew_for_other_settings(out):
    teacher = Teacher()
    errors = retrain(out, teacher)
    assert errors == {"before": {"error": 0.5}, "after": {"error": 1 / 6}}
    written = json.loads((out / "errors.json").read_text())
    assert written["model"] == str(out / "retrained" / teacher.trained[0] / "model")
    retrain(out, teacher)
    assert len(teacher.trained) == 1
    retrain(out, teacher, seed=1)
    teacher.rate = 2
    retrain(out, teacher)
    assert len(set(teacher.trained)) == 3


def test_without_labels_there_is_nothing_to_train_on(out):
    labels = out / "back.jsonl"
    labels.write_text("")
    with pytest.raises(JobError, match="holds no usable label"):
        cycle.take_back(labels, out=out)


def test_an_oracle_must_know_every_text(out):
    with pytest.raises(RequestError, match="4 of the selected clips have no text"):
        cycle.ask_oracle(lambda _: None, out=out)
