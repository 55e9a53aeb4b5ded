"""Every recipe runs from end to end on a little corpus."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from speechkit.audio import write_wav
from speechkit.cli import run_recipe
from speechkit.kws.detector import Detector
from tests.kws.corpus import beeps, write_corpus

RECIPES = Path(__file__).parents[1] / "recipes"
QUICK = ["--fit.epochs", "1", "--fit.steps", "2", "--fit.workers", "0"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(function, *words):
    return run_recipe(function, [str(word) for word in words])


def test_every_recipe_says_how_to_run_it():
    for path in RECIPES.glob("*.py"):
        assert f"python recipes/{path.name} --" in path.read_text()


@pytest.mark.slow
def test_demo(tmp_path, capsys):
    pytest.importorskip("espeakng_loader")
    assert run(load("kws_demo").kws_demo, "--out", tmp_path, "--smoke") == 0
    said = capsys.readouterr().out
    assert "'bumblebee' ends in" in said
    assert (tmp_path / "report" / "det.png").exists()


def test_wake_word(tmp_path, capsys):
    manifests = write_corpus(tmp_path / "corpus")
    words = [word for kind, path in manifests.items() for word in (f"--{kind}", path)]
    quick = [word.replace("--", "--train.") if word[:2] == "--" else word for word in QUICK]
    out = ["--out", tmp_path / "out", "--conditions", "[clean,'5']", "--folds", "3"]
    recipe = load("kws_wake_word").kws_wake_word
    assert run(recipe, "--keyword", "computer", *words, *out, *quick) == 0
    assert "| computer | clean |" in capsys.readouterr().out
    assert Detector.load(tmp_path / "out" / "model").spotter.keywords == ("computer",)


def test_speech_commands(tmp_path, capsys):
    recipe = load("kws_speech_commands")
    rng = np.random.default_rng(0)
    rows = []
    for word in (*recipe.COMMANDS, "bed", "_silence_"):
        for index in range(5):
            name = f"{word}/{index}.wav"
            write_wav(tmp_path / name, beeps(*rng.uniform(300, 4000, 2), rng=rng))
            rows.append({"audio_filepath": name, "label": word, "speaker": f"s{index}"})
    manifest = tmp_path / "words.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentences = write_corpus(tmp_path / "corpus")["negatives"]
    words = ["--commands", manifest, "--sentences", sentences, "--out", tmp_path / "out"]
    assert run(recipe.kws_speech_commands, *words, *QUICK) == 0
    result = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert result["clips"] == 12
    assert "12-class accuracy" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "sentences" / "report.json").read_text())
    assert {row["keyword"] for row in report["rows"]} == set(recipe.COMMANDS)
