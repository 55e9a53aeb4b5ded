"""Every recipe runs from end to end on a little corpus."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechkit import corpora, manifests
from speechkit.audio import write_audio
from speechkit.cli import run_recipe
from speechkit.errors import RequestError
from speechkit.kws.detector import Detector
from speechkit.kws.spotter import Spotter
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
def test_demo(tmp_path, capsys, monkeypatch):
    pytest.importorskip("espeakng_loader")
    monkeypatch.syspath_prepend(RECIPES)
    assert run(load("demo").demo, "--out", tmp_path, "--smoke") == 0
    said = capsys.readouterr().out
    assert "'bumblebee' ends in" in said
    assert "s of labels added" in said
    assert (tmp_path / "spotter" / "report" / "det.png").exists()
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    for heading in ("Spotting", "Recognising", "Choosing"):
        assert f"<h2>{heading}" in page
    # the stream, and a clip a row of both tables
    assert page.count("<audio") > 6
    assert page.count("<img") == 2


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
            write_audio(tmp_path / name, beeps(*rng.uniform(300, 4000, 2), rng=rng))
            rows.append({"audio_filepath": name, "label": word, "speaker": f"s{index}"})
    manifest = tmp_path / "words.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sentences = write_corpus(tmp_path / "corpus")["negatives"]
    talk = write_corpus(tmp_path / "talk")["negatives"]
    words = ["--commands", manifest, "--sentences", sentences, "--negatives", talk]
    words += ["--out", tmp_path / "out"]
    assert run(recipe.kws_speech_commands, *words, *QUICK) == 0
    result = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    # clips of words alone, whatever speech was trained on besides
    assert result["clips"] == 12
    assert "12-class accuracy" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "sentences" / "report.json").read_text())
    assert {row["keyword"] for row in report["rows"]} == set(recipe.COMMANDS)


def test_speech_commands_by_the_official_lists(tmp_path):
    recipe = load("kws_speech_commands")
    root, rng = tmp_path / "gsc", np.random.default_rng(0)
    names = [f"{w}/s{i}_nohash_0.wav" for w in (*recipe.COMMANDS, "bed") for i in range(3)]
    for name in names:
        write_audio(root / name, beeps(*rng.uniform(300, 4000, 2), rng=rng))
    write_audio(root / "_background_noise_/tap.wav", 0.1 * rng.standard_normal(160_000))
    for list_, speaker in (("validation_list", "s1"), ("testing_list", "s2")):
        listed = [name for name in names if speaker in name]
        (root / f"{list_}.txt").write_text("\n".join(listed))
    corpora.prepare("speech_commands", root=root, out=tmp_path / "commands")
    words = ["--commands", tmp_path / "commands", "--out", tmp_path / "out"]
    assert run(recipe.kws_speech_commands, *words, *QUICK) == 0
    result = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    # eleven words by the list, and a second of ten of background
    assert result["clips"] == 12
    tested = manifests.read(tmp_path / "out" / "test-positives.jsonl.gz")
    assert {manifests.speaker_of(cut) for cut in tested} == {"s2"}


def write_words(folder, texts, speakers, *, clips=1):
    """Write clips of noise, and a manifest in which they are said to be speech."""
    rng = np.random.default_rng(0)
    rows = []
    for speaker in speakers:
        for text in texts:
            for index in range(clips):
                name = f"{speaker}-{text.replace(' ', '_')}-{index}.wav"
                write_audio(folder / name, 0.1 * rng.standard_normal(12_000, dtype=np.float32))
                rows.append({"audio_filepath": name, "text": text, "speaker": speaker})
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


TINY_ASR = [
    *("--sparse.layers", "1", "--sparse.width", "16", "--sparse.heads", "2"),
    *("--sparse.subsampling.channels", "4", "--fit.epochs", "1"),
]


def test_asr_digits(tmp_path, capsys):
    manifest = write_words(tmp_path, ["seven", "4", "yes"], ["a", "b", "c"], clips=4)
    out = tmp_path / "out"
    words = ["--clips", manifest, "--out", out, "--recordings", "6"]
    assert run(load("asr_digits").asr_digits, *words, *TINY_ASR) == 0
    assert "of strings right" in capsys.readouterr().out
    test, dev = ((out / f"{part}_speakers.txt").read_text() for part in ("test", "dev"))
    assert test != dev
    (row, *_) = (out / "utterances.jsonl").read_text().splitlines()
    assert set(json.loads(row)["reference"].split()) <= {"seven", "four"}
    assert json.loads(row)["speaker"] == test.strip()


def test_asr_sentences(tmp_path, capsys):
    # of few letters, so that whatever is held out all are in training
    lines = [f"line {word} end" for word in ("tan", "nat", "ant", "tin", "nit", "lad")]
    one = write_words(tmp_path / "one", lines, ["x"], clips=2)
    two = write_words(tmp_path / "two", ["tail and", "dale in"], list("pqrstu"))
    few = write_words(tmp_path / "few", ["late", "tide", "nail"], ["z"])
    out = tmp_path / "out"
    words = ["--cuts", one, two, few, "--out", out, "--folds", "4", "--joined-s", "6"]
    assert run(load("asr_sentences").asr_sentences, *words, *TINY_ASR) == 0
    said = capsys.readouterr().out
    assert "sets/one" in said
    assert "sets/two" in said
    assert "sets/few" in said
    lines = [json.loads(line) for line in (out / "utterances.jsonl").read_text().splitlines()]
    assert len({line["speaker"] for line in lines if line["speaker"] in "pqrstu"}) == 2
    held = {line["reference"] for line in lines if line["speaker"] == "x"}
    joined = " ".join(cut.supervisions[0].text for cut in manifests.read(out / "joined"))
    assert held
    assert not any(sentence in joined for sentence in held)
    (tmp_path / "else").mkdir()
    same = (tmp_path / "one").rename(tmp_path / "else" / "two") / "manifest.jsonl"
    with pytest.raises(RequestError, match="sets two, two: give each a name of its own"):
        load("asr_sentences").asr_sentences(cuts=[two, same], out=tmp_path / "again")


def test_asr_librispeech(tmp_path, capsys):
    recipe = load("asr_librispeech")
    rng = np.random.default_rng(0)
    for number, part in enumerate((*recipe.TRAINING[100], *recipe.DEV, *recipe.TEST), start=1):
        chapter = tmp_path / "LibriSpeech" / part / f"{number}" / "7"
        names = [f"{number}-7-{index:04d}" for index in range(3)]
        chapter.mkdir(parents=True)
        for name in names:
            soundfile.write(chapter / f"{name}.flac", 0.1 * rng.standard_normal(24_000), 16_000)
        lines = "".join(f"{name} HE SAID SO\n" for name in names)
        (chapter / f"{number}-7.trans.txt").write_text(lines)
    words = ["--out", tmp_path / "out", "--dry-run", "--jobs", "1"]
    root = ["--root", tmp_path / "LibriSpeech"]
    assert run(recipe.asr_librispeech, *root, *words) == 0
    assert "test-other: WER" in capsys.readouterr().out
    assert (tmp_path / "out" / "cuts" / "train-clean-100" / "cuts.jsonl.gz").is_file()
    assert run(recipe.asr_librispeech, *root, *words, "--hours", "960") == 2
    assert "unpack train-clean-360.tar.gz" in capsys.readouterr().err
    # what was read of one corpus is not taken for another's
    other = ["--root", tmp_path / "another"]
    assert run(recipe.asr_librispeech, *other, *words) == 2
    assert "holds a run with other settings or data: root" in capsys.readouterr().err


def test_asr_long_measures_steps(tmp_path, capsys):
    words = ["--out", tmp_path, "--steps.lengths-s", "[1.0]", "--steps.steps", "1"]
    small = [word.replace("--sparse", "--steps.encoder") for word in TINY_ASR[:-2]]
    pattern = ["--steps.patterns", "['Local(8)']"]
    recipe = load("asr_long").asr_long
    assert run(recipe, *words, *small, *pattern) == 0
    assert "| Local(8) | 1 |" in capsys.readouterr().out
    assert run(recipe, "--out", tmp_path, "--cuts", tmp_path) == 2
    assert "give both" in capsys.readouterr().err


def test_beam_searches_are_compared(tmp_path, capsys):
    pytest.importorskip("flashlight.lib.text", reason="torchaudio's search needs the extra: lm")
    manifest = write_words(tmp_path, ["seven", "4", "yes"], ["a", "b", "c"], clips=4)
    out = tmp_path / "out"
    words = ["--clips", manifest, "--out", out, "--recordings", "10"]
    assert run(load("asr_digits").asr_digits, *words, *TINY_ASR) == 0
    words = ["--model", out / "model", "--cuts", out / "test", "--out", tmp_path / "beam"]
    # an untrained network gives every token its chance: only a beam as wide as it takes is exact
    assert run(load("asr_beam").asr_beam, *words, "--beam", "200") == 0
    assert "real_time_factor" in capsys.readouterr().out
    report = json.loads((tmp_path / "beam" / "report.json").read_text())
    assert report["speechkit"]["log_p"] >= report["torchaudio"]["log_p"] - 1e-3


def features_of_an4(folder, *, speakers=14, each=6):
    """Write a portion of AN4's form: random cepstra."""
    rng = np.random.default_rng(0)
    rows, blocks, offset = [], [], 0
    for number in range(speakers * each):
        frames = int(rng.integers(60, 90))
        text = " ".join(rng.choice(["ab", "ba", "aab"], 2))
        row = {"utt": f"u{number}", "offset": offset, "frames": frames, "text": text}
        rows.append(row | {"speaker": f"s{number % speakers}"})
        blocks.append(rng.standard_normal((frames, 13)).astype(np.float16))
        offset += frames
    folder.mkdir()
    np.savez(folder / "feats.npz", mfc=np.concatenate(blocks))
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_active_learning_on_an4(tmp_path):
    recipe = load("al_an4").al_an4
    words = ["--root", features_of_an4(tmp_path / "an4"), "--out", tmp_path / "out"]
    quick = ["--fit.epochs", "1", "--further.epochs", "1", "--seeds", "1"]
    assert run(recipe, *words, *quick, "--stage", "2") == 2  # there is nothing to choose forms from
    forms = ["--queries", "random", "egl", "egl/kmeans++"]
    cells = tmp_path / "cells.jsonl"
    forms += ["--stage", "1", "--test", tmp_path / "an4"]
    assert run(recipe, *words, *quick, *forms, "--cells", cells) == 0
    rows = (tmp_path / "out" / "stage-1" / "results.jsonl").read_text().splitlines()
    assert len(rows) == 4
    for row in map(json.loads, rows):
        assert row.keys() >= {"wer", "cer", "loss", "test_wer", "test_cer", "test_loss"}
    assert cells.read_text().splitlines() == rows


def test_scorers_on_one_model(tmp_path):
    from tests.asr.speech import recogniser, write_corpus

    cuts = write_corpus(tmp_path / "tones")
    manifests.write(cuts, tmp_path / "cuts.jsonl")
    recogniser().save(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--pool", tmp_path / "cuts.jsonl"]
    quick = ["--clips", "4", "--timed", "3", "--rounds", "1", "--k", "2", "--naive-clips", "1"]
    assert run(load("al_scorers").al_scorers, *words, "--out", tmp_path / "out", *quick) == 0
    assert "stratified" in (tmp_path / "out" / "report.md").read_text()
    assert "| forward |" in (tmp_path / "out" / "speed" / "report.md").read_text()


def test_active_learning_on_digits(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(20):
        write_audio(
            tmp_path / f"{index}.wav", beeps(*rng.uniform(300, 4000, 2), rng=rng)[4800:-4800]
        )
        rows.append({"audio_filepath": f"{index}.wav", "text": ["one", "two"][index % 2]})
        rows[-1]["speaker"] = f"s{index % 4 // 2}"
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--root", tmp_path, "--out", tmp_path / "out", "--utterances", "20", "--seeds", "1"]
    quick = [
        "--fit.epochs",
        "1",
        "--further.epochs",
        "1",
        "--queries",
        "egl",
        "--shares",
        "[0.0,0.5]",
    ]
    assert run(load("al_digits").al_digits, *words, *quick) == 0
    assert len((tmp_path / "out" / "runs" / "results.jsonl").read_text().splitlines()) == 2


def test_active_learning_on_commands(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for index in range(90):
        write_audio(
            tmp_path / f"{index}.wav", beeps(*rng.uniform(300, 4000, 2), rng=rng)[4800:-4800]
        )
        spoken = {"label": ["yes", "no", "tree"][index % 3], "speaker": f"s{index // 2}"}
        silent = {"label": "_silence_", "speaker": None}
        rows.append({"audio_filepath": f"{index}.wav"} | (spoken if index < 70 else silent))
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--root", tmp_path, "--out", tmp_path / "out", "--seeds", "1"]
    quick = [*QUICK, "--further.epochs", "1", "--further.steps", "1", "--further.workers", "0"]
    quick += ["--queries", "egl", "--shares", "[0.0,0.5]"]
    assert run(load("al_commands").al_commands, *words, *quick) == 0
    assert len((tmp_path / "out" / "runs" / "results.jsonl").read_text().splitlines()) == 2


def test_a_round_with_a_recogniser(tmp_path, capsys):
    from tests.asr.speech import recogniser
    from tests.asr.speech import write_corpus as write_speech

    for part, seed in (("labelled", 0), ("pool", 1)):
        write_speech(tmp_path / part, clips=10, seed=seed)
    recogniser().save(tmp_path / "model")
    names = ("labelled", "pool")
    words = [word for name in names for word in (f"--{name}", tmp_path / name / "manifest.jsonl")]
    words += ["--model", tmp_path / "model", "--test", tmp_path / "pool" / "manifest.jsonl"]
    words += ["--out", tmp_path / "out", "--budget", "3", "--train.fit.epochs", "1"]
    words += ["--strategy", "egl:parameters=output/kmeans++"]
    recipe = load("al_asr").al_asr
    assert run(recipe, *words) == 0
    assert "run again with --labels" in capsys.readouterr().out
    tasks = tmp_path / "out" / "to_label" / "tasks.json"
    tasks.write_text("[]")
    # labels come in two parts: each makes a model of its own, and what was exported stays
    cuts = manifests.read(tmp_path / "out" / "selection")
    given = [{"data": {"id": cut.id}, "annotations": []} for cut in cuts]
    models = []
    for task in given[:2]:
        region = {"type": "textarea", "value": {"text": ["a"]}}
        task["annotations"] = [{"id": 1, "result": [region]}]
        (tmp_path / "back.json").write_text(json.dumps(given))
        assert run(recipe, *words, "--labels", tmp_path / "back.json") == 0
        errors = json.loads((tmp_path / "out" / "errors.json").read_text())
        assert set(errors["after"]) == {"wer", "cer", "loss"}
        models.append(errors["model"])
    assert tasks.read_text() == "[]"
    assert len({*models, *map(str, tmp_path.glob("out/retrained/*/model"))}) == 2


@pytest.mark.parametrize(
    "labels", [("_silence_", "_unknown_", "computer"), ("_background_", "computer")]
)
def test_a_round_with_a_spotter(tmp_path, labels):
    from tests.kws.helpers import tiny_spotter

    paths = write_corpus(tmp_path / "corpus")
    tiny_spotter(labels=labels).save(tmp_path / "model")
    words = ["--labelled", paths["positives"], "--pool", paths["negatives"]]
    words += ["--test", paths["positives"], "--model", tmp_path / "model"]
    words += ["--out", tmp_path / "out", "--budget", "3", "--noise", paths["noise"]]
    assert run(load("al_kws").al_kws, *words, *QUICK, "--oracle") == 0
    errors = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert set(errors) == {"model", "before", "after"}
    assert Spotter.load(errors["model"]).config.labels == labels
