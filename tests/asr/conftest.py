"""A recogniser that has learnt to spell tones, shared by the tests that need one."""

import pytest

from speechkit.asr.dev import overfit
from speechkit.asr.utterances import Utterances, check
from speechkit.batching import CutBatch
from tests.asr.speech import recogniser, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Return the cuts of a few clips of tones, and their folder."""
    folder = tmp_path_factory.mktemp("tones")
    return write_corpus(folder), folder


@pytest.fixture(scope="session")
def trained(corpus, tmp_path_factory):
    """Return the folder of a model that knows these clips by heart."""
    cuts, _ = corpus
    model = recogniser()
    checked = check(cuts, model)
    batch = Utterances(model.inputs, checked.tokens)[CutBatch(0, 0, tuple(checked.cuts))]
    assert overfit(model, batch, steps=300, learning_rate=8e-3) == 0
    folder = tmp_path_factory.mktemp("trained") / "model"
    model.save(folder)
    return folder
