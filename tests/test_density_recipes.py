"""Every recipe of density models runs from end to end on little data of the real format."""

import json

import numpy as np
import pytest

from speechkit.audio import write_audio
from speechkit.density.artifact import Artifact
from tests.test_recipes import load, run

QUICK = ["--steps", 2, "--warmup-steps", 1, "--batch", 2, "--validate-every", 2]
SMALL = ["--model.layers", 1, "--model.width", 8, "--model.heads", 2]


def quick(shape, *patterns):
    words = ["--model.patterns", json.dumps(patterns)] if patterns else []
    return [*QUICK, *SMALL, "--model.shape", shape, *words]


def test_enwik8(tmp_path, capsys):
    with (tmp_path / "enwik8").open("wb") as file:
        file.write(b"<mediawiki>")
        file.truncate(100_000_000)
    words = ["--data", tmp_path, "--out", tmp_path / "out", "--min-context", 32, "--windows", 3]
    model = quick("[4,16]", "Fixed(16, 4, True)")
    more = ["--accumulate", 1, "--valid-windows", 2]
    assert run(load("density_enwik8").density_enwik8, *words, *model, *more) == 0
    assert "test, minimum context 32: " in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "test-32" / "report.json").read_text())
    assert (report["min_context"], report["windows"], report["split"]) == (32, 3, "test")


def test_cifar10(tmp_path, capsys):
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name in names:
        with (tmp_path / name).open("wb") as file:
            file.truncate(10_000 * 3073)
    words = ["--data", tmp_path, "--out", tmp_path / "out", "--windows", 2, "--samples", 0]
    assert (
        run(
            load("density_cifar10").density_cifar10,
            *words,
            *QUICK,
            *SMALL,
            "--valid-windows",
            2,
        )
        == 0
    )
    assert "(the paper: 2.8)" in capsys.readouterr().out
    model = Artifact.load(tmp_path / "out" / "model").model
    assert model.config.stack.patterns == ("Strided(96)", "Local(96)", "Local(96)", "Local(96)")


def test_imagenet64(tmp_path, rng, capsys):
    for name in ("train_data_batch_1", "train_data_batch_2", "val_data"):
        data = rng.integers(256, size=(3, 3 * 64 * 64), dtype=np.uint8)
        np.savez(tmp_path / f"{name}.npz", data=data, labels=np.zeros(3))
    words = ["--data", tmp_path, "--out", tmp_path / "out", "--cache", tmp_path / "cache"]
    model = [*QUICK, *SMALL]
    assert run(load("density_imagenet64").density_imagenet64, *words, *model) == 0
    assert "(the paper: 3.44)" in capsys.readouterr().out


def test_music(tmp_path, rng, capsys):
    for index in range(12):
        sound = rng.uniform(-0.3, 0.3, 600).astype(np.float32)
        write_audio(tmp_path / "sounds" / f"{index}.wav", sound, sample_rate=12_000)
    words = ["--data", tmp_path / "sounds", "--out", tmp_path / "out"]
    source = ["--source.cache", tmp_path / "cache", "--source.valid-fraction", 0.3]
    recipe = load("density_music").density_music
    assert run(recipe, *words, *source, *quick("[8,16]", "Local(16)", "Strided(16)")) == 0
    assert "(the paper, classical music: 1.97)" in capsys.readouterr().out
    assert (tmp_path / "out" / "samples" / "sample-0.wav").is_file()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("so it goes on and on, " * 300)
    return path


def test_text_demo(tmp_path, text, capsys):
    words = ["--out", tmp_path / "out", "--text", text, "--bytes-written", 20]
    recipe = load("density_text_demo").density_text_demo
    assert run(recipe, *words, *quick("[4,16]", "Fixed(16, 4, True)")) == 0
    said = capsys.readouterr().out
    assert "xz -9" in said
    assert "a sample:\n" in said


def test_text_patterns(tmp_path, text, capsys):
    words = ["--out", tmp_path / "out", "--text", text, "--lengths", 256, "--timed-steps", 1]
    recipe = load("density_text_patterns").density_text_patterns
    assert run(recipe, *words, *quick("[4,32]")) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row[0] for row in report["bits_per_byte"]][:3] == ["fixed", "dense", "gzip -9"]
    assert report["seconds"][0][0] == 256
    assert (tmp_path / "out" / "curves.png").is_file()


def test_small_images(tmp_path, capsys):
    words = ["--out", tmp_path / "out", "--samples", 4, *QUICK, *SMALL]
    recipe = load("density_small_images").density_small_images
    assert run(recipe, *words, "--valid-windows", 3) == 0
    assert "| strided | " in capsys.readouterr().out
    assert (tmp_path / "out" / "dense" / "samples" / "samples.png").is_file()


def test_scale(tmp_path, capsys):
    words = ["--out", tmp_path, "--lengths", 1000, 1 << 20, "--steps", 2, "--most-gib", 0.3]
    assert run(load("density_scale").density_scale, *words, *SMALL) == 0
    done, left = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert done[:2] == ["1,000", "yes"]
    assert done[6].startswith("8.000, ")
    assert left[:2] == ["1,048,576", "yes"]
    assert left[3:] == [None, None, None, None]


def test_depth(tmp_path, text, capsys):
    words = ["--out", tmp_path / "out", "--text", text, *QUICK, *SMALL, "--valid-windows", 2]
    assert run(load("density_depth").density_depth, *words) == 0
    assert "| unscaled | " in capsys.readouterr().out
    assert (tmp_path / "out" / "curves.png").is_file()
