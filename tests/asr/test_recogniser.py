"""A recogniser: what active learning sees of it, and its folder."""

import json

import pytest
import torch

from speechkit import checkpoint
from speechkit.asr import Recogniser
from speechkit.asr.confidence import Calibration
from speechkit.errors import RequestError
from speechkit.features import InputConfig
from tests.asr.speech import SMALL_RECURRENT, recogniser


@pytest.mark.parametrize("config", [None, SMALL_RECURRENT])
@pytest.mark.parametrize("stored", [False, True])
def test_a_folder_gives_the_same_posteriors(tmp_path, config, stored):
    options = {} if config is None else {"config": config}
    model = recogniser(stored=stored, inputs=InputConfig(deltas=1), **options)
    model = model.with_calibration(Calibration(0.5, 0.1))
    model.save(tmp_path / "model")
    twin = checkpoint.load_model(tmp_path / "model")
    assert isinstance(twin, Recogniser)
    assert not twin.training
    assert twin.calibration == model.calibration
    x = torch.randn(1, 50, model.inputs.dimensions)
    lengths = torch.tensor([50])
    assert torch.equal(twin(x, lengths).logits, model(x, lengths).logits)


def test_what_active_learning_sees(corpus):
    cuts, _ = corpus
    model = recogniser()
    features, lengths = model.features(list(cuts)[:3])
    assert features.shape == (3, int(lengths.max()), model.inputs.dimensions)
    again, _ = model.features(list(cuts)[:3])
    assert torch.equal(features, again)
    logits, frames, hidden = model.network(features, lengths)
    torch.testing.assert_close(model.output_layer(hidden), logits)
    assert frames.tolist() == [-(-n // 2) for n in lengths.tolist()]
    assert model.blank == 0
    tokens = model.tokens_of("A, Bad!")
    assert 0 not in tokens
    assert model.text_of(tokens) == "a bad"
    with pytest.raises(RequestError, match="the model knows no '2' '4'"):
        model.tokens_of("a 42")


def test_speakers_are_measured_where_it_is_wanted(corpus):
    cuts = list(corpus[0])
    model = recogniser(inputs=InputConfig(normalisation="speaker"))
    alone, _ = model.features(cuts[:1])
    model.hear(cuts)
    known, _ = model.features(cuts[:1])
    assert not torch.allclose(alone, known)


def test_the_reference_prefers_the_manifest_s_own_form(corpus):
    cut = next(iter(corpus[0]))
    model = recogniser()
    assert model.reference(cut) == cut.supervisions[0].text.lower()
    cut.supervisions[0].custom = {"text_norm": "As It Stands"}
    assert model.reference(cut) == "As It Stands"
    cut.supervisions[0].custom = None
    cut.supervisions[0].text, text = None, cut.supervisions[0].text
    assert model.reference(cut) is None
    cut.supervisions[0].text = text


@pytest.mark.parametrize("key", ["inputs", "network", "tokenizer", "normaliser", "calibration"])
def test_a_damaged_configuration_is_refused(tmp_path, key):
    recogniser().save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config[key] = {"strange": 1}
    path.write_text(json.dumps(config))
    with pytest.raises(RequestError):
        Recogniser.load(tmp_path / "model")
