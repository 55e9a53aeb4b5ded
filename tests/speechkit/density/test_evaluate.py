"""Evaluation: exact at the start, equal for any batch, with the context that it states."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from speechkit.density.artifact import Artifact
from speechkit.density.corpus import Corpus, ImageShape, Stream
from speechkit.density.evaluate import ScoringConfig, autocast, evaluate_with
from speechkit.density.generator import generated_corpus
from speechkit.density.images import from_arrays
from speechkit.density.scoring import score, share, spread, total
from speechkit.errors import JobError, RequestError
from tests.speechkit.density.helpers import periodic_corpus, tiny_artifact, tiny_model


def scored(model, corpus, *, min_context=0, batch=8, windows=0, **options):
    found = corpus.evaluation("valid", length=model.config.context, min_context=min_context)
    return total(list(score(model, found, spread(found, windows), batch=batch, **options)))


def test_an_untrained_model_gives_eight_bits_per_byte(tmp_path):
    artifact = tiny_artifact(trained=False)
    evaluate_with(artifact, periodic_corpus(), out=tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["bits_per_byte"] == 8.0
    assert "**8.0000 bits per byte** of 500 bytes" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("min_context", [0, 5, 41])
def test_every_byte_is_scored_once_with_its_context(min_context):
    """Against the model on each byte's own window, cut by hand."""
    corpus, model = periodic_corpus(valid=101), tiny_model().double()
    found = scored(model, corpus, min_context=min_context, batch=3)
    data, n = corpus.splits["valid"].data, model.config.context
    expected = np.zeros(n)
    first = True
    done = 0
    while done < len(data):
        start = 0 if first else min(done - min_context, len(data) - n)
        tokens = torch.from_numpy(np.array(data[start : start + n]))[None]
        nats = model.nats(tokens)[0].detach().numpy()
        for place in range(done - start, n):
            expected[place] += nats[place]
        done, first = start + n, False
    np.testing.assert_allclose(found.nats, expected, rtol=1e-12)
    assert found.bytes == 101
    assert found.counts[:min_context].sum() == min(min_context, n)  # of the first window alone


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
def test_any_batch_gives_the_same_result(batch):
    corpus = periodic_corpus()
    exact, plain = tiny_model().double(), tiny_model()
    kwargs = {"min_context": 20, "batch": batch}
    expected = scored(exact, corpus, min_context=20, batch=7).bits_per_byte
    assert scored(exact, corpus, **kwargs).bits_per_byte == pytest.approx(expected, rel=1e-13)
    assert scored(plain, corpus, **kwargs).bits_per_byte == pytest.approx(expected, rel=1e-6)


def test_shares_of_processes_add_up():
    corpus, model = periodic_corpus(), tiny_model().double()
    windows = corpus.evaluation("valid", length=42)
    parts = [share(spread(windows), rank=rank, world=5) for rank in range(5)]
    assert {len(part) for part in parts} == {3}
    scores = [one for part in parts for one in score(model, windows, part, batch=2)]
    whole = scored(model, corpus)
    np.testing.assert_allclose(total(scores).nats, whole.nats, rtol=1e-12)
    assert total(scores).windows == whole.windows == 12


def test_spread_windows():
    corpus = periodic_corpus()
    windows = corpus.evaluation("valid", length=42)
    assert spread(windows) == list(range(12))
    assert spread(windows, 3) == [1, 6, 11]
    assert spread(windows, 1) == [1]
    assert spread(windows, 100) == list(range(12))
    with pytest.raises(RequestError, match="windows -1"):
        spread(windows, -1)


def test_a_report_states_context_entropy_and_baselines(tmp_path):
    corpus = generated_corpus(train_bytes=4000, valid_bytes=900)
    found = evaluate_with(
        tiny_artifact(corpus),
        corpus,
        out=tmp_path,
        config=ScoringConfig(min_context=10, baselines=True),
        model="out/model",
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["min_context"] == 10
    assert (report["window"], report["step"]) == (42, 32)
    assert report["bytes"] == 900
    assert report["bits_per_byte"] == round(found.score.bits_per_byte, 6)
    assert report["source_entropy"] == corpus.entropy["valid"]
    assert {one["name"] for one in report["baselines"]} >= {"gzip -9", "xz -9"}
    assert 3 < report["unigram_bits_per_byte"] < 6
    assert report["by_context"][0]["from"] == 0
    assert report["by_context"][-1]["to"] == 42
    assert report["data"] == {corpus.name: corpus.fingerprint()}
    text = (tmp_path / "report.md").read_text()
    assert "minimum context\n10 (windows of 42 bytes, step 32" in text
    assert "xz -9" in text
    assert (tmp_path / "context.png").stat().st_size > 5000


def test_images_are_scored_whole(tmp_path, rng):
    corpus = from_arrays(rng.integers(256, size=(20, 4, 3, 3)))
    model = tiny_model(shape=(4, 3, 3), patterns=("Local(9)", "Strided(9)"))
    artifact = Artifact.of(model, corpus)
    found = evaluate_with(artifact, corpus, out=tmp_path)
    assert found.score.bytes == 2 * 36
    with pytest.raises(RequestError, match="an image is scored whole"):
        evaluate_with(artifact, corpus, out=tmp_path, config=ScoringConfig(min_context=4))
    compared = evaluate_with(artifact, corpus, out=tmp_path, config=ScoringConfig(baselines=True))
    assert {one.name for one in compared.baselines} >= {"gzip -9", "xz -9"}
    known = ScoringConfig(baselines=True)
    with pytest.raises(RequestError, match="know the training bytes already"):
        evaluate_with(artifact, corpus, split="train", out=tmp_path, config=known)


def test_damaged_weights_measure_nothing(tmp_path):
    artifact = tiny_artifact()
    with torch.no_grad():
        next(iter(artifact.model.parameters())).fill_(torch.nan)
    with pytest.raises(JobError, match="its weights are damaged"):
        evaluate_with(artifact, periodic_corpus(), out=tmp_path)


def test_data_that_the_model_does_not_know_are_refused(tmp_path, rng):
    text, pictures = periodic_corpus(), from_arrays(rng.integers(256, size=(20, 4, 3, 3)))
    with pytest.raises(RequestError, match=r"arrays: kind image; the model .* of text"):
        evaluate_with(tiny_artifact(), pictures, out=tmp_path)
    sound = Corpus(name="sound", kind="audio", splits=text.splits, sample_rate=12_000)
    slower = dataclasses.replace(sound, sample_rate=8_000)
    with pytest.raises(RequestError, match="sample rate 8000; the model was trained on sound"):
        evaluate_with(Artifact.of(tiny_model(), sound), slower, out=tmp_path)
    with pytest.raises(RequestError, match=r"images of 4x3x3, the model is for 7x6"):
        Artifact.of(tiny_model(), pictures)
    short = dataclasses.replace(text, splits={"valid": Stream(np.zeros(41, dtype=np.uint8))})
    with pytest.raises(RequestError, match="fewer than a window of 42"):
        evaluate_with(tiny_artifact(), short, out=tmp_path)
    with pytest.raises(RequestError, match="no such split"):
        evaluate_with(tiny_artifact(), text, out=tmp_path, split="test")
    with pytest.raises(RequestError, match="batch 0"):
        evaluate_with(tiny_artifact(), text, out=tmp_path, config=ScoringConfig(batch=0))


def test_a_model_folder_is_read_back(tmp_path):
    artifact = Artifact.of(tiny_model(), periodic_corpus(), preset="tiny_text")
    artifact.save(tmp_path / "model")
    again = Artifact.load(tmp_path / "model")
    assert (again.kind, again.shape, again.sample_rate) == ("text", None, None)
    assert again.about == {"corpus": "periodic", "preset": "tiny_text"}
    assert again.model.config == artifact.model.config
    tokens = torch.arange(42, dtype=torch.uint8)[None]
    assert torch.equal(again.model(tokens), artifact.model(tokens))
    assert "density model of text" in (tmp_path / "model" / "README.md").read_text().lower()


def test_a_picture_size_is_read_back(tmp_path):
    artifact = dataclasses.replace(
        tiny_artifact(), kind="image", shape=ImageShape(7, 2, 3), sample_rate=None
    )
    artifact.save(tmp_path / "model")
    assert Artifact.load(tmp_path / "model").shape == ImageShape(7, 2, 3)


def test_a_damaged_model_folder_is_refused(tmp_path):
    artifact = tiny_artifact()
    artifact.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["stack"]["layers"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(RequestError, match="do not fit together"):
        Artifact.load(tmp_path / "model")
    path.write_text(json.dumps({**config, "about": None}))
    with pytest.raises(RequestError, match="do not fit together"):
        Artifact.load(tmp_path / "model")
    path.write_text(json.dumps({**config, "task": "kws"}))
    with pytest.raises(RequestError, match="a model for 'kws', wanted is 'density'"):
        Artifact.load(tmp_path / "model")


def test_half_precision_is_close():
    corpus, model = periodic_corpus(), tiny_model()
    nn.init.normal_(model.output.weight, std=0.3)
    expected = scored(model, corpus).bits_per_byte
    half = scored(model, corpus, precision=lambda: autocast("bf16")).bits_per_byte
    assert half == pytest.approx(expected, rel=0.01)
    assert half != expected
