"""Sampling: with the cache and without it the same logits, at a cost that patterns bound."""

import json

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from speechkit.audio import write_audio
from speechkit.density import sampler
from speechkit.density.artifact import Artifact
from speechkit.density.audio import mulaw_encode
from speechkit.density.corpus import Corpus, ImageShape
from speechkit.density.evaluate import autocast
from speechkit.density.images import from_arrays
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.density.sample import SampleConfig, sample_with
from speechkit.density.sampler import DrawConfig, Sampler
from speechkit.errors import JobError, RequestError
from speechkit.kernels import decoding
from speechkit.sparse_transformer import StackConfig
from tests.speechkit.density.helpers import periodic_corpus, tiny_artifact, tiny_model

PATTERNS = {
    "dense": ("Dense()",),
    "interleaved": ("Local(6)", "Strided(6)"),
    "fixed": ("Fixed(6, 2, True)",),
    "merged": ("Merged(Local(5), Strided(5))",),
    "heads": ("PerHead(Local(4), Strided(7))", "Dilated(3, 2)"),
}


def logits_by_steps(model, tokens, prompt=0):
    """Return the logits (B, T - prompt, V) that the cache gives, byte by byte."""
    walker = Sampler(model, batch=len(tokens))
    found = [walker.start(tokens[:, :prompt])]
    found += [walker.step(tokens[:, t]) for t in range(prompt, tokens.shape[1] - 1)]
    return torch.stack(found, dim=1)


@pytest.mark.parametrize("patterns", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
@pytest.mark.parametrize("prompt", [0, 1, 17, 41])
def test_cached_and_uncached_logits_are_equal(patterns, dtype, tolerance, prompt):
    model = tiny_model(patterns=patterns, half_keys=True).to(dtype)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(256, (3, 42), dtype=torch.uint8, generator=generator)
    with torch.no_grad():
        expected = model(tokens)[:, prompt:]
    found = logits_by_steps(model, tokens, prompt)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_cached_logits_with_rotary_positions():
    model = tiny_model(positions="rotary").double()
    tokens = torch.arange(42, dtype=torch.uint8)[None]
    with torch.no_grad():
        expected = model(tokens)[:, 5:]
    torch.testing.assert_close(logits_by_steps(model, tokens, 5), expected, rtol=1e-11, atol=1e-11)


def test_half_precision_is_close():
    model = tiny_model()
    tokens = torch.arange(42, dtype=torch.uint8)[None]
    with torch.no_grad():
        expected = model(tokens)[:, 5:]
    walker = Sampler(model, batch=1, precision=lambda: autocast("bf16"))
    found = [walker.start(tokens[:, :5])] + [walker.step(tokens[:, t]) for t in range(5, 41)]
    assert (torch.stack(found, dim=1) - expected).abs().max() < 0.05 * expected.abs().max()


def rows_by_position(monkeypatch, patterns, shape):
    """Return how many rows of the caches each step reads, over all heads and layers."""
    rows = []
    read = decoding._Rows.read

    def counting(self, positions):
        rows[-1] += len(positions) * len(self.k)
        return read(self, positions)

    monkeypatch.setattr(decoding._Rows, "read", counting)
    model = tiny_model(shape=shape, patterns=patterns, width=8)
    walker = Sampler(model, batch=1)
    walker.start(torch.zeros(1, 0, dtype=torch.uint8))
    for _ in range(model.config.context - 1):
        rows.append(0)
        walker.step(torch.zeros(1, dtype=torch.uint8))
    return np.array(rows)


def test_a_step_of_local_attention_costs_the_same_at_any_position(monkeypatch):
    rows = rows_by_position(monkeypatch, ("Local(6)",), (24, 24))
    layers, heads = 2, 2
    assert (rows[5:] == layers * heads * 6).all()


def test_a_step_of_strided_attention_costs_the_root_of_the_length(monkeypatch):
    stride = 24
    rows = rows_by_position(monkeypatch, (f"Local({stride})", f"Strided({stride})"), (24, stride))
    heads = 2
    assert rows.max() <= heads * 2 * stride
    assert rows.max() < 0.1 * 2 * heads * 24 * stride


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    numbers = np.random.default_rng(0).random(20_000)
    many = logits.expand(len(numbers), 4)
    for temperature, top_k in ((1.0, 0), (0.5, 0), (2.0, 3)):
        drawn = DrawConfig(temperature=temperature, top_k=top_k).draw(many, numbers)
        expected = np.exp(np.arange(4.0) / temperature)
        expected[: 4 - top_k if top_k else 0] = 0
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        np.testing.assert_allclose(shares, expected / expected.sum(), atol=0.01)
    assert (DrawConfig(temperature=0).draw(many, numbers) == 3).all()
    assert (DrawConfig(top_k=1).draw(many, numbers) == 3).all()
    equal = torch.zeros(len(numbers), 4)
    assert (DrawConfig(top_k=1).draw(equal, numbers) == 0).all()
    assert set(DrawConfig(top_k=2).draw(equal, numbers)) == {0, 1}
    edge = DrawConfig().draw(logits.expand(2, 4), np.array([0.0, np.nextafter(1, 0)]))
    assert edge.tolist() == [0, 3]


def drawn(model, count, length, **options):
    config = DrawConfig(**options)
    return np.stack(list(sampler.sample(model, count=count, length=length, config=config)), axis=1)


def test_a_sample_depends_on_its_seed_and_number_alone():
    model = tiny_model()
    three = drawn(model, 3, 20, seed=5)
    assert np.array_equal(drawn(model, 1, 20, seed=5), three[:1])
    assert np.array_equal(drawn(model, 3, 9, seed=5), three[:, :9])
    assert not np.array_equal(drawn(model, 3, 20, seed=6), three)
    assert len(np.unique(three, axis=0)) == 3


def test_text_goes_on_from_a_prompt(tmp_path):
    (tmp_path / "prompt.txt").write_bytes("ü and more".encode())
    for prompt, size in (("speech", 6), (str(tmp_path / "prompt.txt"), 3)):
        config = SampleConfig(count=2, length=9, prompt=prompt, prompt_bytes=size, top_k=5)
        found = sample_with(tiny_artifact(), out=tmp_path / "out", config=config)
        assert found.shape == (2, size + 9)
        assert (tmp_path / "out" / "sample-1.txt").read_bytes() == found[1].tobytes()
    assert found[0, :3].tobytes() == "ü ".encode()
    about = json.loads((tmp_path / "out" / "samples.json").read_text())
    assert (about["prompt_bytes"], about["length"], about["top_k"]) == (3, 9, 5)


def test_text_fills_the_context_by_default(tmp_path):
    found = sample_with(tiny_artifact(), out=tmp_path, config=SampleConfig(prompt="speech"))
    assert found.shape == (1, 42)


def test_the_files_of_a_call_are_told_from_those_of_others(tmp_path):
    for count in (3, 1):
        sample_with(tiny_artifact(), out=tmp_path, config=SampleConfig(count=count, length=4))
    assert json.loads((tmp_path / "samples.json").read_text())["files"] == ["sample-0.txt"]


def test_damaged_weights_draw_nothing(tmp_path):
    artifact = tiny_artifact()
    with torch.no_grad():
        next(iter(artifact.model.parameters())).fill_(torch.nan)
    with pytest.raises(JobError, match="its weights are damaged"):
        sample_with(artifact, out=tmp_path, config=SampleConfig(length=4))


def test_pictures(tmp_path, rng):
    corpus = from_arrays(rng.integers(256, size=(20, 4, 3, 3)))
    model = tiny_model(shape=(4, 3, 3), patterns=("Local(9)", "Strided(9)"))
    artifact = Artifact.of(model, corpus)
    found = sample_with(artifact, out=tmp_path, config=SampleConfig(count=3))
    with Image.open(tmp_path / "sample-2.png") as picture:
        assert np.array_equal(np.asarray(picture).reshape(-1), found[2])
    with Image.open(tmp_path / "samples.png") as sheet:
        assert sheet.size == (2 * 3 + 1, 2 * 4 + 1)
    config = SampleConfig(prompt=str(tmp_path / "sample-2.png"), prompt_bytes=9)
    assert np.array_equal(sample_with(artifact, out=tmp_path, config=config)[0, :9], found[2, :9])
    with pytest.raises(RequestError, match="a picture of 4x3x3 has 36 bytes"):
        sample_with(artifact, out=tmp_path, config=SampleConfig(length=5))


def test_sound(tmp_path, rng):
    text = periodic_corpus()
    corpus = Corpus(name="sound", kind="audio", splits=text.splits, sample_rate=12_000)
    sound = rng.uniform(-0.5, 0.5, 100).astype(np.float32)
    write_audio(tmp_path / "prompt.wav", sound, sample_rate=12_000)
    config = SampleConfig(prompt=str(tmp_path / "prompt.wav"))
    artifact = Artifact.of(tiny_model(), corpus)
    found = sample_with(artifact, out=tmp_path / "out", config=config)
    assert found.shape == (1, 42)
    assert np.abs(found[0, :21].astype(int) - mulaw_encode(sound)[:21]).max() <= 1
    samples, rate = soundfile.read(tmp_path / "out" / "sample-0.wav")
    assert rate == 12_000
    assert np.abs(mulaw_encode(samples).astype(int) - found[0]).max() <= 1


def test_requests_that_cannot_be_met(tmp_path):
    artifact = tiny_artifact()
    for config, message in (
        (SampleConfig(length=43), "the model's context is 42; give a length of at most 42"),
        (SampleConfig(prompt="x" * 40, length=3), "a prompt of 40 bytes and 3 more"),
        (SampleConfig(prompt="x" * 42), "or a shorter prompt"),
        (SampleConfig(prompt="x", prompt_bytes=2), "prompt_bytes 2: the prompt has 1"),
        (SampleConfig(count=0), "0 sequences"),
    ):
        with pytest.raises(RequestError, match=message):
            sample_with(artifact, out=tmp_path, config=config)
    for field, value in (("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1)):
        with pytest.raises(RequestError, match=f"{field} {value}"):
            SampleConfig(**{field: value})
    walker = Sampler(artifact.model, batch=1)
    with pytest.raises(RequestError, match="context ends after 42"):
        walker.start(torch.zeros(1, 42, dtype=torch.uint8))
    stack = StackConfig(layers=1, width=16, heads=2)
    few = DensityModel(DensityConfig(vocabulary=5, shape=(7, 6), stack=stack))
    with pytest.raises(RequestError, match="byte 9: the model knows those below 5"):
        next(sampler.sample(few, count=1, length=1, prompt=np.array([1, 9], dtype=np.uint8)))


def test_a_prompt_of_another_kind_is_refused(tmp_path):
    artifact = tiny_artifact()
    picture = Artifact(model=tiny_model(shape=(7, 2, 3)), kind="image", shape=ImageShape(7, 2, 3))
    with pytest.raises(RequestError, match=r"prompt nothing.png: no such file; give one of image"):
        sample_with(picture, out=tmp_path, config=SampleConfig(prompt="nothing.png"))
    assert sample_with(artifact, out=tmp_path, config=SampleConfig(prompt="nothing.png")).size == 42
