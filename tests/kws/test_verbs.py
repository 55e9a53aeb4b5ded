"""The verbs of keyword spotting from the command line: what they write, and what they refuse."""

import contextlib
import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from speechkit import manifests
from speechkit.audio import INT16_SCALE, SAMPLE_RATE, write_audio
from speechkit.cli import main
from speechkit.errors import RequestError
from speechkit.kws.detector import Detector
from speechkit.kws.report import load_scored, parse_snr, save_scored
from speechkit.kws.splits import decode, set_aside
from speechkit.kws.spotter import Spotter
from tests.kws.corpus import write_corpus
from tests.kws.helpers import bursts, tiny_spotter
from tests.kws.test_measure import scored

TRAIN = ["--fit.epochs", "1", "--fit.steps", "2", "--fit.workers", "0", "--scenes.scenes", "4"]
ROW_KEYS = {
    "keyword",
    "model",
    "condition",
    "snr_db",
    "fa_per_hour",
    "frr",
    "frr_low",
    "frr_high",
    "threshold",
    "threshold_from",
    "misses",
    "positives",
    "false_alarms",
    "negative_hours",
    "latency_p50_s",
    "latency_p95_s",
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_spotter().save(folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


def evaluate(model, corpus, out, *more):
    given = ("--model", model, "--positives", corpus["positives"], "--out", out)
    return run("kws", "evaluate", *given, "--negatives", corpus["negatives"], *more)


def test_train_mine_train_again_and_evaluate(tmp_path, corpus, capsys, caplog):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], "--noise", corpus["noise"]]
    assert run("kws", "train", *given, "--out", tmp_path / "one", *TRAIN) == 0
    spotter = Spotter.load(tmp_path / "one" / "model")
    assert spotter.keywords == ("computer",)
    assert set(spotter.config.thresholds) <= {"computer"}
    mined = ["--negatives", corpus["negatives"], "--out", tmp_path / "mined", "--least-score", "0"]
    assert run("kws", "mine", "--model", tmp_path / "one" / "model", *mined) == 0
    alarms = list(manifests.read(tmp_path / "mined"))
    assert alarms
    assert all(0 < cut.supervisions[0].duration <= 1.001 for cut in alarms)
    assert all(Path(cut.recording.sources[0].source).parent.name == "audio" for cut in alarms)
    assert {tuple(cut.supervisions[0].custom["amid"][:1]) for cut in alarms} == {
        ("something else",)
    }
    again = ["--hard", tmp_path / "mined", "--init", tmp_path / "one" / "model"]
    assert run("kws", "train", *given, *again, "--out", tmp_path / "two", *TRAIN) == 0
    # two of the twelve negatives are dev, and so is what was mined in them
    assert "hard negatives left out: cut from clips of dev" in caplog.text
    written = json.loads((tmp_path / "two" / "train.json").read_text())
    assert written["init"]
    assert {"hard", "dev", "dev_negatives"} <= written["data"].keys()
    assert evaluate(tmp_path / "two" / "model", corpus, tmp_path / "report", "--snr", "5") == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["counts"]["computer"]["positives"] == 12
    capsys.readouterr()
    other = [*again, "--out", tmp_path / "three", *TRAIN, "--detection.shift-s", "0.05"]
    assert run("kws", "train", *given, *other) == 2
    assert "its detection is {'shift_s': 0.1," in capsys.readouterr().err


def mine(model, corpus, out, *more):
    return run("kws", "mine", "--model", model, "--negatives", corpus, "--out", out, *more)


def test_mining_keeps_to_its_folder(tmp_path, corpus, model, capsys):
    """Numbered files of one mining under the manifest of another would be other alarms."""
    out, least = tmp_path / "mined", ["--least-score", "0"]
    for _ in range(2):
        assert mine(model, corpus["negatives"], out, *least) == 0
    assert mine(model, corpus["negatives"], out, *least, "--seed", "1") == 2
    assert "holds a run with other settings or data" in capsys.readouterr().err
    kept = list(manifests.read(out))
    manifests.write(kept, tmp_path / "other" / "cuts.jsonl.gz")
    assert mine(model, corpus["negatives"], tmp_path / "other", *least) == 2
    assert "comes from elsewhere" in capsys.readouterr().err
    assert mine(model, corpus["negatives"], tmp_path / "seed", "--seed", "-1") == 2
    assert "seed -1: give 0 or more" in capsys.readouterr().err
    assert mine(model, corpus["positives"], tmp_path / "words") == 2
    assert "no row is a negative" in capsys.readouterr().err


def test_noise_that_is_silent_is_named_and_left_out(tmp_path, corpus, model, capsys):
    write_audio(tmp_path / "silent.wav", np.zeros(16000, np.float32))
    rows = [{"audio_filepath": "silent.wav"}, {"audio_filepath": str(tmp_path / "loud.wav")}]
    write_audio(tmp_path / "loud.wav", bursts(2.0))
    for count, status in ((1, 1), (2, 0)):
        manifest = tmp_path / f"noise{count}.jsonl"
        manifest.write_text("".join(json.dumps(row) + "\n" for row in rows[:count]))
        out = tmp_path / f"out{count}"
        assert evaluate(model, corpus, out, "--noise", manifest, "--snr", "5") == status
    assert "all is digital silence" in capsys.readouterr().err
    report = json.loads((out / "report.json").read_text())
    assert [(id_.rsplit("/", 1)[1], why) for id_, why in report["broken"].items()] == [
        ("silent.wav", "is digital silence")
    ]
    assert set(report["data"]) == {"computer", "negatives", "noise"}


def test_a_dev_set_without_a_side_is_refused(tmp_path, corpus, capsys):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], "--out", tmp_path / "out", *TRAIN]
    dev = write_corpus(tmp_path / "dev", keywords=2, others=1)["positives"]
    assert run("kws", "train", *given, "--dev-positives", dev, "--dev-negatives", dev) == 2
    assert "dev set: 2 of computer, 0 negatives" in capsys.readouterr().err


def test_a_dev_set_of_what_is_trained_on_is_refused(tmp_path, corpus, capsys):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], "--out", tmp_path / "out", *TRAIN]
    dev = ["--dev-positives", corpus["positives"], "--dev-negatives", corpus["negatives"]]
    assert run("kws", "train", *given, *dev) == 2
    assert "24 clips of dev are among those to train on" in capsys.readouterr().err


def test_evaluate_writes_rows_with_every_key_and_plots(tmp_path, corpus, model):
    targets = [
        "--fa-per-hour",
        "0.5",
        "400",
        "--snr",
        "clean",
        "10dB",
        "10.0",
        "--noise",
        corpus["noise"],
    ]
    assert evaluate(model, corpus, tmp_path, *targets) == 0
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert len(rows) == 4
    assert all(set(row) >= ROW_KEYS for row in rows)
    assert [row["snr_db"] for row in rows] == [None, None, 10.0, 10.0]
    assert [row["condition"] for row in rows] == ["clean", "clean", "10", "10"]
    low, high = rows[:2]
    assert low["status"] == "unresolved"
    assert high["status"] == "ok"
    assert high["frr"] <= low["frr"]
    for name in ("report.md", "det.png", "snr.png", "scores.npz"):
        assert (tmp_path / name).stat().st_size > 0


def test_evaluate_hears_keywords_amid_background(tmp_path, corpus, model):
    assert evaluate(model, corpus, tmp_path, "--snr", "5", "--background-hours", "0.02") == 0
    report = json.loads((tmp_path / "report.json").read_text())
    (row,) = [row for row in report["rows"] if row["fa_per_hour"] == 2.0]
    assert row["positives"] == 12
    assert 0.01 < row["negative_hours"] < 0.03
    assert "0.02 h of background" in (tmp_path / "report.md").read_text()


def test_scores_survive_the_disk(tmp_path):
    one = scored([[0.1, 0.9, 0.4], [0.2], []], [[0.8, 0, 0, 0, 0.5], [0.3] * 5, []], hours=2.5)
    frozen = dataclasses.replace(one, threshold=0.75)
    save_scored(tmp_path / "scores.npz", {("hey you", "5"): [one, frozen], ("b", "clean"): [one]})
    found = load_scored(tmp_path / "scores.npz")
    assert {key: len(parts) for key, parts in found.items()} == {
        ("hey you", "5"): 2,
        ("b", "clean"): 1,
    }
    thresholds = np.linspace(0, 1, 101)
    for other, threshold in zip(
        (*found["hey you", "5"], *found["b", "clean"]), (None, 0.75, None), strict=True
    ):
        assert (other.threshold, other.negative_hours) == (threshold, 2.5)
        assert [o.id for o in other.occurrences] == [o.id for o in one.occurrences]
        for a, b in zip(one.occurrences, other.occurrences, strict=True):
            assert np.array_equal(a.delays_s, b.delays_s)
        for name in ("detected", "alarms"):
            a, b = (getattr(s.curve(), name).at(thresholds) for s in (one, other))
            assert np.array_equal(a, b)
        for at in (0.05, 0.3, 0.85):
            assert np.array_equal(one.latencies_s(at), other.latencies_s(at))


def test_damaged_scores_are_refused(tmp_path):
    save_scored(tmp_path / "scores.npz", {("a", "5"): [scored([[0.1, 0.9]], [[0.8, 0.2]])]})
    whole = (tmp_path / "scores.npz").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:kept] for kept in (0, 1, len(whole) // 2, len(whole) - 1)]
    for at in rng.integers(0, len(whole), 100):
        flipped = bytearray(whole)
        flipped[at] ^= 0xFF
        damaged.append(bytes(flipped))
    read = 0
    for data in damaged:
        (tmp_path / "scores.npz").write_bytes(data)
        with contextlib.suppress(RequestError):
            load_scored(tmp_path / "scores.npz")
            read += 1  # some bytes of an archive do not matter
    assert read < len(damaged) / 2


def test_broken_clips_are_named_and_the_rest_is_measured(tmp_path, corpus, model):
    lines = corpus["negatives"].read_text().splitlines()
    broken = [
        {"audio_filepath": "gone.wav", "duration": 1.0, "sample_rate": 16000, "text": "x"},
        {"audio_filepath": "text.wav", "duration": 1.0, "sample_rate": 16000, "text": "x"},
    ]
    folder = corpus["negatives"].parent
    (folder / "text.wav").write_text("no audio")
    manifest = folder / "some_broken.jsonl"
    manifest.write_text("\n".join([*lines, *map(json.dumps, broken)]) + "\n")
    given = corpus | {"negatives": manifest}
    assert evaluate(model, given, tmp_path, "--snr", "clean", "--keywords", "Computer") == 0
    named = json.loads((tmp_path / "report.json").read_text())["broken"]
    assert sorted(id_.rsplit("/", 1)[1] for id_ in named) == ["gone.wav", "text.wav"]


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--keywords", "jarvis"], 2, "the model knows computer"),
        (["--snr", "loud"], 2, "give 'clean' or a number"),
        (["--fa-per-hour", "0"], 2, "give targets that are positive"),
        (["--snr", "inf"], 2, "SNR 'inf': give 'clean' or a number of dB"),
        (["--seed", "-1"], 2, "seed -1: give 0 or more"),
        (["--background-hours", "0"], 2, "background_hours 0.0: give a positive number"),
        (["--noise", "nowhere.jsonl"], 2, "no such manifest"),
    ],
)
def test_evaluate_refuses(tmp_path, corpus, model, capsys, words, status, said):
    assert evaluate(model, corpus, tmp_path, *words) == status
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--fit.learning-rate", "-1"], "learning_rate -1.0: give more than 0"),
        (["--fit.epochs", "0"], "epochs 0: give 1 or more"),
        (["--fit.learning-rate", ".inf"], "give more than 0, and no infinity"),
        (["--scenes.snr-db", "[5,-5]"], "snr_db 5 -5: give two ascending numbers"),
        (["--scenes.rir-probability", "1.5"], "rir_probability 1.5: give 0 or more and 1"),
        (["--seed", "-1"], "seed -1: give 0 or more"),
        (["--seed", "9" * 30], "give 0 or more and"),
        (["--network.type", "[1]"], "network type [1]: allowed are"),
        (["--frontend.type", "pcem"], "front-end type 'pcem': choose from"),
        (["--frontend.type", "mfcc"], "the front-end gives 13 bands, the network takes 40"),
        (["--dev-noise", "nowhere.jsonl"], "dev_noise: without dev sets a share of noise serves"),
    ],
)
def test_settings_out_of_range_are_refused_before_any_work(tmp_path, corpus, capsys, words, said):
    given = ["--positives", corpus["positives"], "--negatives", corpus["negatives"]]
    out = tmp_path / "out"
    assert run("kws", "train", "--keywords", "computer", *given, "--out", out, *words) == 2
    assert said in capsys.readouterr().err
    assert not out.exists()


def test_a_keyword_that_no_row_has_is_refused_with_what_there_is(tmp_path, corpus, capsys):
    given = ["--positives", corpus["positives"], "--negatives", corpus["negatives"]]
    assert run("kws", "train", "--keywords", "jarvis", *given, "--out", tmp_path) == 2
    assert "they hold Computer" in capsys.readouterr().err


def test_damaged_and_foreign_models_are_refused(tmp_path, corpus, model, capsys):
    import shutil

    def damaged(name):
        folder = tmp_path / name
        shutil.copytree(model, folder)
        return folder

    pickled = damaged("pickled")
    (pickled / "model.safetensors").write_bytes(b"\x80\x05K\x01.")
    other = damaged("other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"format": 99}))
    for folder, said in (
        (pickled, "not a safetensors file"),
        (other, "model format 99"),
        (tmp_path / "missing", "not a model folder"),
    ):
        assert run("kws", "detect", "x.wav", "--model", folder) == 2
        assert said in capsys.readouterr().err


def test_detect_prints_what_the_detector_finds_at_any_rate_and_channels(tmp_path, model, capsys):
    audio = bursts(8.0, seed=3)
    write_audio(tmp_path / "mono.wav", audio)
    pcm = soundfile.read(tmp_path / "mono.wav", dtype="float32")[0]
    soundfile.write(tmp_path / "stereo.flac", np.stack([pcm, pcm], axis=1), 16000)
    detector = Detector.load(model)
    score = float(np.median(detector.scores(pcm)))
    expected = Detector(Spotter.load(model), thresholds={"computer": score})
    found = expected.push(pcm) + expected.flush()
    assert found
    for name in ("mono.wav", "stereo.flac"):
        words = ("--model", model, "--threshold", score, "--json-lines")
        assert run("kws", "detect", tmp_path / name, *words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["time_s"] for line in lines] == pytest.approx([d.time_s for d in found])
    for rate, least in ((8000, 0.2), (48000, 1.0)):
        soundfile.write(tmp_path / "rate.wav", soxr.resample(pcm, SAMPLE_RATE, rate), rate)
        assert run("kws", "detect", tmp_path / "rate.wav", *words) == 0
        times_s = [json.loads(line)["time_s"] for line in capsys.readouterr().out.splitlines()]
        # the same ones, but for bands that 8 kHz do not hold
        near = [any(abs(d.time_s - time_s) < 0.11 for time_s in times_s) for d in found]
        assert np.mean(near) >= least
        assert all(0 <= time_s <= len(pcm) / SAMPLE_RATE + 2 for time_s in times_s)


def test_detect_reads_pcm_from_standard_input(model, capsys, monkeypatch, caplog):
    audio = bursts(5.0, seed=4)
    data = np.round(np.clip(audio, -1, 0.999) * INT16_SCALE).astype("<i2").tobytes()
    found = []
    for fed, status in ((data, 0), (b"", 1), (data[:-1], 0), (b"x", 1), (b"RIFFed", 1)):
        monkeypatch.setattr(sys, "stdin", type("Stdin", (), {"buffer": io.BytesIO(fed)}))
        assert run("kws", "detect", "-", "--model", model, "--threshold", "0.1") == status
        found.append(capsys.readouterr().out)
    # half a sample at the end costs no detection
    assert "computer" in found[0]
    assert found[2] == found[0]
    assert "half a sample" in caplog.text
    monkeypatch.setattr(sys, "stdin", None)
    assert run("kws", "detect", "-", "--model", model) == 1
    assert "standard input: is closed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["missing", "empty", "zero", "text", "nan", "truncated"])
def test_detect_says_in_one_line_what_is_wrong_with_a_file(tmp_path, model, capsys, kind):
    path = tmp_path / "bad.wav"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "zero":
        soundfile.write(path, np.zeros(0, np.float32), 16000)
    elif kind == "text":
        path.write_text("these are words")
    elif kind == "nan":
        soundfile.write(path, np.full(16000, np.nan, np.float32), 16000, subtype="FLOAT")
    elif kind == "truncated":
        soundfile.write(path, bursts(3.0).clip(-1, 1), 16000, format="FLAC")
        path.write_bytes(path.read_bytes()[:4000])
    assert run("kws", "detect", path, "--model", model) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "bad.wav" in error[0]


def test_snr_conditions():
    assert parse_snr("clean") is None
    assert parse_snr("-2.5") == -2.5
    assert parse_snr("5dB") == 5.0


def test_export_is_checked_against_onnxruntime(tmp_path, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run("kws", "export", "--model", model, "--out", tmp_path) == 0
    session = onnxruntime.InferenceSession(tmp_path / "spotter.onnx")
    (scores,) = session.run(None, {"windows": np.zeros((7, 151, 40), np.float32)})
    assert scores.shape == (7, 1)
    described = json.loads((tmp_path / "spotter.json").read_text())
    assert described["keywords"] == ["computer"]
    assert described["frontend"]["type"] == "pcen"
    config = Spotter.load(model).config
    assert described["refractory_s"] == config.detection.refractory_s
    assert described["smoothing_windows"] == config.detection.smoothing_windows
    assert described["thresholds"] == {"computer": 0.5}


def test_an_exported_stream_finds_what_the_detector_finds(tmp_path, model):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert run("kws", "export", "--model", model, "--out", tmp_path) == 0
    session = onnxruntime.InferenceSession(tmp_path / "stream.onnx")
    stream = json.loads((tmp_path / "spotter.json").read_text())["stream"]
    state = {name: np.zeros(s["shape"], s["type"]) for name, s in stream["state"].items()}
    assert [i.name for i in session.get_inputs()] == ["chunk", *state]
    audio, size = bursts(5.0), stream["chunk_samples"]
    scores = []
    for start in range(0, len(audio) - size + 1, size):
        found, *following = session.run(None, {"chunk": audio[start : start + size], **state})
        state = dict(zip(state, following, strict=True))
        scores.append(found)
    wanted = Detector(Spotter.load(model)).scores(audio)
    np.testing.assert_allclose(scores[stream["chunks_without_score"] :], wanted, atol=1e-4)


def test_a_stream_that_differs_is_not_exported(tmp_path, model, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(Detector, "scores", lambda self, chunk: np.zeros((1, 1)))
    assert run("kws", "export", "--model", model, "--out", tmp_path) == 1
    assert "stream.onnx: the exported graph differs by nan" in capsys.readouterr().err
    assert not (tmp_path / "stream.onnx").exists()
    assert not (tmp_path / "spotter.json").exists()


def test_a_graph_that_gives_no_numbers_is_not_exported(tmp_path, model, capsys, monkeypatch):
    onnxruntime = pytest.importorskip("onnxruntime")

    class Broken:
        def __init__(self, path):
            pass

        def run(self, outputs, given):
            return (np.full((len(given["windows"]), 1), np.nan),)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Broken)
    assert run("kws", "export", "--model", model, "--out", tmp_path) == 1
    assert "the exported graph differs by nan" in capsys.readouterr().err
    assert not (tmp_path / "spotter.onnx").exists()


@pytest.mark.parametrize("frontend", ["pcen", "logmel"])
def test_frames_that_kaldi_would_place_can_be_trained_on(tmp_path, corpus, frontend):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], *TRAIN, "--out", tmp_path / "out"]
    assert run("kws", "train", *given, "--frontend.type", frontend, "--frontend.kaldi", "true") == 0
    assert Spotter.load(tmp_path / "out" / "model").frontend.config.kaldi


def test_a_front_end_of_another_rate_is_refused(tmp_path, corpus, capsys):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], *TRAIN, "--out", tmp_path / "out"]
    assert run("kws", "train", *given, "--frontend.type=pcen", "--frontend.sample_rate=8000") == 2
    assert "front-end of 8000 Hz: spotters are trained" in capsys.readouterr().err


def test_a_noise_that_is_a_negative_too_is_trained_on_or_measured_with(corpus):
    cuts = list(manifests.read(corpus["negatives"]))
    words = {"computer": list(manifests.read(corpus["positives"]))}
    clips = decode(words, cuts, noises=cuts)
    training, dev = set_aside(clips, words, cuts, seed=0)
    for part, other in ((training, dev), (dev, training)):
        assert {clip.id for clip in part.noises} == {clip.id for clip in part.negatives}
        assert not {clip.id for clip in part.noises} & {clip.id for clip in other.negatives}


def test_a_network_of_other_hyperparameters(tmp_path, corpus, capsys):
    given = ["--keywords", "computer", "--positives", corpus["positives"]]
    given += ["--negatives", corpus["negatives"], *TRAIN]
    small = ["--network.type", "crnn", "--network.filters", "4", "--network.hidden", "8"]
    assert run("kws", "train", *given, *small, "--out", tmp_path / "small") == 0
    config = Spotter.load(tmp_path / "small" / "model").network.config
    assert (config.filters, config.hidden, config.recurrent_units) == (4, 8, 32)
    further = ["--init", tmp_path / "small" / "model", "--out", tmp_path / "further"]
    assert run("kws", "train", *given, *further) == 2
    assert "its network is {" in capsys.readouterr().err
    unknown = ["--network.type", "crnn", "--network.layers", "3", "--out", tmp_path / "unknown"]
    assert run("kws", "train", *given, *unknown) == 2
    assert "unknown crnn hyperparameters layers" in capsys.readouterr().err
