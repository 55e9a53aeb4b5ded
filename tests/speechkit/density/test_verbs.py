"""The verbs from the command line: train, evaluate and sample on files of each kind."""

import json

import numpy as np
import pytest
from PIL import Image

from speechkit.audio import write_audio
from speechkit.cli import run_recipe
from speechkit.density.evaluate import evaluate
from speechkit.density.sample import sample
from speechkit.density.train import train

TINY = ["--model.layers", 1, "--model.width", 8, "--model.heads", 2]
QUICK = ["--steps", 3, "--warmup-steps", 1, "--batch", 2, "--validate-every", 2]
TEXT = ["--preset", "tiny_text", "--model.shape", "[8,32]"]
QUICK += ["--valid-windows", 3]


def run(verb, *words):
    return run_recipe(verb, [str(word) for word in words])


def train_evaluate_sample(tmp_path, kind, *words, model):
    """Run the three verbs; return the report and the folder of samples."""
    model = [*model, *TINY, *QUICK]
    data = ["--corpus", kind, *words]
    assert run(train, *data, *model, "--out", tmp_path / "run") == 0
    folder = ["--model", tmp_path / "run" / "model"]
    assert run(evaluate, *folder, *data, "--out", tmp_path / "report") == 0
    assert run(sample, *folder, "--count", 2, "--seed", 3, "--out", tmp_path / "samples") == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert 0 < report["bits_per_byte"] < 9
    return report, tmp_path / "samples"


def test_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("so it goes on and on " * 200)
    report, samples = train_evaluate_sample(
        tmp_path,
        "text",
        "--data",
        path,
        path,
        model=TEXT,
    )
    assert report["bytes"] == 2 * 4200 // 10
    assert len((samples / "sample-1.txt").read_bytes()) == 256


def test_another_division_than_that_of_the_training_is_said(tmp_path, caplog):
    """What a model has learnt by heart may be in it."""
    path = tmp_path / "a.txt"
    path.write_text("so it goes on and on " * 400)
    data = ["--corpus", "text", "--data", path]
    own = ["--source.valid-fraction", 0.05]
    model = [*TEXT, *TINY, *QUICK]
    assert run(train, *data, *own, *model, "--out", tmp_path / "run") == 0
    given = ["--model", tmp_path / "run" / "model", *data]
    for settings, said in ((own, False), ([], True)):
        out = tmp_path / f"report-{said}"
        assert run(evaluate, *given, *settings, "--out", out) == 0
        assert json.loads((out / "report.json").read_text())["other_splits"] == said
        note = "divided in another way: bytes that it has learnt"
        assert (note in caplog.text) == said
        assert (note in (out / "report.md").read_text()) == said


def test_generated_text(tmp_path):
    size = ["--source.generated-bytes", "5000", "--source.generated-valid-bytes", "600"]
    report, _ = train_evaluate_sample(tmp_path, "generated", *size, model=TEXT)
    assert report["bytes"] == 600
    assert 0 < report["source_entropy"] < 1


def test_images(tmp_path, rng):
    for index in range(20):
        pixels = rng.integers(256, size=(9, 7, 3), dtype=np.uint8)
        path = tmp_path / "pictures" / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    source = ["--source.image-size", "[4,6]", "--source.cache", tmp_path / "cache"]
    model = ["--preset", "tiny_image", "--model.shape", "[4,6,3]"]
    model += ["--model.patterns", "[Local(18),Strided(18)]"]
    report, samples = train_evaluate_sample(
        tmp_path, "images", "--data", tmp_path / "pictures", *source, model=model
    )
    assert report["bytes"] == 2 * 72
    with Image.open(samples / "sample-0.png") as picture:
        assert picture.size == (6, 4)


def test_audio(tmp_path, rng):
    for index in range(8):
        sound = rng.uniform(-0.3, 0.3, 800).astype(np.float32)
        write_audio(tmp_path / "sounds" / f"{index}.wav", sound, sample_rate=8_000)
    words = ["--data", tmp_path / "sounds", "--source.cache", tmp_path / "cache"]
    report, samples = train_evaluate_sample(
        tmp_path, "audio", *words, model=["--preset", "tiny_audio", "--model.shape", "[8,8]"]
    )
    assert report["window"] == 64
    assert (samples / "sample-1.wav").stat().st_size == 44 + 2 * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--corpus", "text"], "corpus text: 0 paths of data; give --data with one or more files"),
        (["--corpus", "cifar10", "--data", "a", "b"], "2 paths of data; give --data with one path"),
        (["--corpus", "generated", "--data", "a"], "give no --data"),
        (["--corpus", "text", "--data", "nothing.txt"], "nothing.txt: no such file"),
        (["--corpus", "images", "--data", "nothing"], "nothing: no such folder"),
        (["--corpus", "speech"], "speech"),
        (["--corpus", "generated", "--source.seed", "-1"], "seed -1: give 0 or more"),
        (["--corpus", "generated", "--preset", "huge"], "preset 'huge': choose one of"),
        (["--corpus", "generated", "--model.heads", "3"], "does not divide into 3 heads"),
        (["--corpus", "generated", "--model.patterns", "[Sparse(3)]"], "Sparse"),
        (["--corpus", "generated", "--ema", "1"], "ema 1"),
        (["--corpus", "generated", "--batch", "5", "--devices", "2"], "batch 5 does not divide"),
    ],
)
def test_wrong_requests_are_one_line(tmp_path, capsys, words, message):
    small = ["--source.generated-bytes", "5000", "--source.generated-valid-bytes", "2000"]
    default = ["--preset", "tiny_text", "--out", tmp_path / "run", *QUICK, *small]
    assert run(train, *default, *words) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in said if "error" in line]) == 1
    assert message in said[-1]
    assert not (tmp_path / "run" / "model").exists()


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    for verb in (evaluate, sample):
        words = ["--corpus", "generated"] if verb is evaluate else []
        assert run(verb, "--model", tmp_path, "--out", tmp_path / "out", *words) == 2
        assert "is not a model folder" in capsys.readouterr().err
