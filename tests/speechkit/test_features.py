import json

import numpy as np
import pytest
import torch
import torchaudio
from lhotse import Features, MonoCut, NumpyFilesWriter, SupervisionSegment

from speechkit import features, frontend, manifests
from speechkit.audio import write_audio
from speechkit.errors import AudioError, RequestError
from speechkit.features import InputConfig, Inputs, Statistics, pad
from speechkit.specaugment import change_speed
from speechkit.stored_features import StoredFeatures, stored_form

FORM = StoredFeatures(bands=5)


def stored(tmp_path, matrices, speakers=None):
    """Return cuts with features, read back from a manifest."""
    cuts = []
    with NumpyFilesWriter(tmp_path / "features") as storage:
        for i, matrix in enumerate(matrices):
            form = Features(
                type="x",
                num_frames=len(matrix),
                num_features=matrix.shape[1],
                frame_shift=0.01,
                sampling_rate=16000,
                start=0,
                duration=len(matrix) / 100,
                storage_type=storage.name,
                storage_path=str(storage.storage_path),
                storage_key=storage.write(f"{i:06d}", matrix),
                recording_id=f"u{i}",
                channels=0,
            )
            who = SupervisionSegment(
                id=f"u{i}",
                recording_id=f"u{i}",
                start=0,
                duration=len(matrix) / 100,
                speaker=speakers and speakers[i],
            )
            cuts.append(
                MonoCut(
                    id=f"u{i}",
                    start=0,
                    duration=len(matrix) / 100,
                    channel=0,
                    features=form,
                    supervisions=[who],
                )
            )
    manifests.write(cuts, tmp_path / "cuts.jsonl.gz")
    return list(manifests.read(tmp_path))


def matrices(*lengths, bands=5):
    rng = np.random.default_rng(11)
    return [
        (3 * rng.standard_normal((length, bands)) + 40).astype(np.float32) for length in lengths
    ]


def batch(pieces):
    return pad([torch.as_tensor(piece) for piece in pieces])


@pytest.mark.parametrize("window", [1, 2, 3])
def test_deltas_are_those_of_torchaudio_on_each_utterance_alone(window):
    pieces = matrices(13, 1, 4, 7)
    x, lengths = batch(pieces)
    x = torch.where(torch.arange(13)[None, :, None] < lengths[:, None, None], x, torch.nan)
    got = features.deltas(x, lengths, window=window)
    for row, piece in zip(got, pieces, strict=True):
        alone = torch.from_numpy(piece).double().T
        want = torchaudio.functional.compute_deltas(alone, win_length=2 * window + 1).T
        torch.testing.assert_close(row[: len(piece)].double(), want, atol=2e-5, rtol=1e-5)


def test_the_delta_of_a_ramp_is_its_slope():
    ramp = (0.5 * torch.arange(9.0))[None, :, None]
    inner = features.deltas(ramp, torch.tensor([9]))[0, 2:-2]
    torch.testing.assert_close(inner, torch.full_like(inner, 0.5))
    constant = torch.full((1, 6, 2), 7.3)
    assert features.deltas(constant, torch.tensor([6])).abs().max() == 0


@pytest.mark.parametrize("order", [0, 1, 2])
def test_utterances_have_mean_0_and_variance_1(order):
    pieces = matrices(50, 8, 201)
    inputs = Inputs(FORM, InputConfig(deltas=order))
    x, lengths = inputs(*batch(pieces))
    assert x.shape == (3, 201, inputs.dimensions)
    assert inputs.dimensions == 5 * (order + 1)
    for row, length in zip(x, lengths, strict=True):
        torch.testing.assert_close(row[:length].mean(0), torch.zeros(x.shape[2]), atol=1e-4, rtol=0)
        deviation = row[:length].std(0, correction=0)
        torch.testing.assert_close(deviation, torch.ones(x.shape[2]), atol=1e-4, rtol=0)
        assert (row[length:] == 0).all()


def test_an_utterance_does_not_depend_on_its_batch():
    pieces = matrices(30, 2, 77)
    inputs = Inputs(FORM, InputConfig(deltas=2))
    together, lengths = inputs(*batch(pieces))
    for row, length, piece in zip(together, lengths, pieces, strict=True):
        alone, _ = inputs(*batch([piece]))
        torch.testing.assert_close(row[:length], alone[0], atol=1e-5, rtol=1e-5)


def test_constant_and_empty_utterances_are_finite():
    pieces = [np.full((40, 5), 9.02, np.float32), np.zeros((0, 5), np.float32), *matrices(1)]
    inputs = Inputs(FORM, InputConfig(deltas=2))
    x, lengths = batch(pieces)
    x.requires_grad_()
    out, lengths = inputs(x, lengths)
    assert lengths.tolist() == [40, 0, 1]
    assert (out == 0).all()
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    nothing, _ = inputs(torch.zeros(2, 0, 5), torch.tensor([0, 0]))
    assert nothing.shape == (2, 0, 15)


def test_long_utterances_keep_precision():
    piece = np.tile(matrices(1000)[0] + 4000, (60, 1))
    out, _ = Inputs(FORM)(*batch([piece]))
    want = (piece.astype(np.float64) - piece.mean(0, dtype=np.float64)) / piece.std(
        0, dtype=np.float64
    )
    np.testing.assert_allclose(out[0].numpy(), want, atol=2e-3)


def test_speakers(tmp_path):
    pieces = matrices(20, 33, 9, 14)
    pieces[1] = pieces[1] * 2 - 5
    cuts = stored(tmp_path, pieces, ["a", "b", "a", None])
    inputs = Inputs(FORM, InputConfig(normalisation="speaker", deltas=1))
    statistics = inputs.measure_speakers(cuts)
    assert "a" in statistics
    assert None not in statistics
    assert "c" not in statistics
    x, lengths = pad([inputs.load(cut) for cut in cuts])
    speakers = ["a", "b", "a", None]
    out, _ = inputs(x, lengths, speakers=speakers, statistics=statistics)
    of_a = torch.cat([out[0, :20], out[2, :9]])
    torch.testing.assert_close(of_a.mean(0), torch.zeros(10), atol=1e-5, rtol=0)
    torch.testing.assert_close(of_a.std(0, correction=0), torch.ones(10), atol=1e-4, rtol=0)
    assert out[0, :20].mean(0).abs().max() > 1e-3

    by_utterance, _ = Inputs(FORM, InputConfig(deltas=1))(x, lengths)
    torch.testing.assert_close(out[1], by_utterance[1], atol=1e-5, rtol=1e-5)  # b spoke once
    torch.testing.assert_close(out[3], by_utterance[3])
    for nothing_known in (
        {},
        {"speakers": speakers},
        {"speakers": ["x"] * 4, "statistics": statistics},
    ):
        torch.testing.assert_close(inputs(x, lengths, **nothing_known)[0], by_utterance)
    with pytest.raises(RequestError, match="1 speakers for 4"):
        inputs(x, lengths, speakers=["a"], statistics=statistics)
    assert Inputs(FORM).measure_speakers(cuts) == Statistics()


def test_speakers_are_measured_on_what_can_be_read(tmp_path):
    good, broken = stored(tmp_path, matrices(20, 33), ["a", "a"])
    inputs = Inputs(FORM, InputConfig(normalisation="speaker"))
    broken.features.storage_path = str(tmp_path / "gone")
    found = inputs.measure_speakers([good, broken])
    for value, alone in zip(found.of["a"], inputs.measure_speakers([good]).of["a"], strict=True):
        assert torch.equal(value, alone)
    assert "a" not in inputs.measure_speakers([broken])


def test_audio_goes_through_the_front_end(tmp_path):
    rng = np.random.default_rng(2)
    for name, samples in (("a.wav", 8000), ("b.wav", 5333)):
        write_audio(tmp_path / name, rng.uniform(-0.3, 0.3, samples).astype(np.float32))
    (tmp_path / "manifest.jsonl").write_text(
        '{"audio_filepath": "a.wav", "speaker": "s"}\n{"audio_filepath": "b.wav", "speaker": "s"}\n'
    )
    cuts = manifests.read(tmp_path)
    mel = frontend.build({"type": "logmel", "mels": 20})
    inputs = Inputs(mel, InputConfig(normalisation="none", deltas=1))
    x, lengths = pad([inputs.load(cut) for cut in cuts])
    assert lengths.tolist() == [8000, 5333]
    out, frames = inputs(x, lengths)
    want, want_frames = mel(x, lengths)
    torch.testing.assert_close(out[..., :20], want)
    assert frames.tolist() == want_frames.tolist()
    assert (inputs.bands, inputs.dimensions, inputs.hop_s) == (20, 40, 0.01)
    by_speaker = Inputs(mel, InputConfig(normalisation="speaker"))
    out, frames = by_speaker(
        x, lengths, speakers=["s", "s"], statistics=by_speaker.measure_speakers(cuts)
    )
    spoken = torch.cat([out[0, : frames[0]], out[1, : frames[1]]])
    torch.testing.assert_close(spoken.mean(0), torch.zeros(20), atol=1e-4, rtol=0)


@pytest.mark.parametrize("source", [FORM, frontend.build({"type": "mfcc", "coefficients": 7})])
def test_the_description_makes_equal_inputs(source):
    inputs = Inputs(source, InputConfig(deltas=1, delta_window=3, normalisation="speaker"))
    described = json.loads(json.dumps(inputs.describe()))
    again = features.build(described)
    assert again.describe() == inputs.describe()
    assert again.dimensions == inputs.dimensions


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"delta": 1}, "unknown delta; allowed are frontend, stored, deltas"),
        ({"deltas": 3}, "give an order of 0 to 2"),
        ({"deltas": "x"}, "inputs"),
        ({"normalisation": "corpus"}, "choose none, utterance or speaker"),
        ({"delta_window": 0}, "delta_window 0"),
        ({"stored": None}, "either a frontend or"),
        ({"stored": {"bands": 0}}, "must be positive"),
        ({"stored": {"mels": 4}}, "mels"),
        ({"frontend": {"type": "pcen"}}, "either a frontend or"),
    ],
)
def test_wrong_descriptions(change, message):
    with pytest.raises(RequestError, match=message):
        features.build({**Inputs(FORM).describe(), **change})


def test_stored_features_that_cannot_be_used(tmp_path):
    good, nan, gone = stored(tmp_path, [*matrices(6), np.full((4, 5), np.nan), *matrices(3)])
    inputs = Inputs(FORM)
    assert inputs.load(good).shape == (6, 5)
    assert inputs.load(good).dtype == torch.float32
    with pytest.raises(AudioError, match="u1: its features hold NaN"):
        inputs.load(nan)
    (tmp_path / "features" / gone.features.storage_key).unlink()
    with pytest.raises(AudioError, match="u2: its features cannot be read") as caught:
        inputs.load(gone)
    assert "\n" not in str(caught.value)
    with pytest.raises(RequestError, match=r"5 features every 0\.01 s, where 13 every 0\.01 s"):
        Inputs(StoredFeatures(bands=13)).load(good)
    with pytest.raises(RequestError, match="has no features"):
        inputs.load(MonoCut(id="x", start=0, duration=1, channel=0))
    with pytest.raises(RequestError, match=r"must be \(batch, frames, 5\)"):
        inputs(torch.zeros(1, 9, 4), torch.tensor([9]))


def test_the_form_of_stored_features(tmp_path):
    cuts = stored(tmp_path, matrices(6, 8))
    bare = MonoCut(id="x", start=0, duration=1, channel=0)
    assert stored_form(cuts) == FORM
    assert stored_form([bare]) is None
    with pytest.raises(RequestError, match="different features"):
        stored_form([*cuts, bare])


@pytest.mark.parametrize("kaldi", [False, True])
@pytest.mark.parametrize("samples", [100, 400, 3_200, 16_000, 16_159, 16_160])
def test_frames_are_counted_before_they_are_there(tmp_path, kaldi, samples):
    inputs = Inputs(frontend.LogMel(frontend.LogMelConfig(mels=20, kaldi=kaldi)))
    write_audio(tmp_path / "x.wav", np.ones(samples, dtype=np.float32))
    (tmp_path / "cuts.jsonl").write_text(json.dumps({"audio_filepath": "x.wav"}) + "\n")
    (cut,) = manifests.read(tmp_path / "cuts.jsonl")
    _, lengths = inputs(inputs.load(cut)[None], torch.tensor([samples]))
    assert inputs.frame_count(cut) == int(lengths)


@pytest.mark.parametrize("speed", [0.9, 1.0, 1.1, 1.5])
def test_frames_of_stored_features_are_counted(tmp_path, speed):
    inputs = Inputs(FORM)
    for cut in stored(tmp_path, matrices(1, 7, 33)):
        heard = change_speed(inputs.load(cut), speed)
        assert 0 <= len(heard) - inputs.frame_count(cut, speed=speed) <= 1
