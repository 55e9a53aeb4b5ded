import dataclasses
import json
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws import pipeline
from speechkit.kws.fit import FitConfig
from speechkit.kws.pipeline import PipelineConfig
from speechkit.kws.scenes import SceneConfig
from speechkit.kws.spotter import Spotter
from speechkit.kws.train import TrainConfig
from tests.kws.corpus import write_corpus

CONFIG = PipelineConfig(
    folds=3,
    test_folds=(0, 2),
    conditions=("clean", "5"),
    fa_per_hour=(100.0,),
    train=TrainConfig(fit=FitConfig(epochs=1, steps=2, workers=0), scenes=SceneConfig(scenes=4)),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def run(corpus, out, config=CONFIG):
    given = {kind: [path] for kind, path in corpus.items()}
    return pipeline.run(["computer"], **given, out=out, config=config)


def test_folds_are_trained_measured_and_pooled(tmp_path, corpus, monkeypatch):
    rows = run(corpus, tmp_path)
    assert {(row["condition"], row["threshold_from"]) for row in rows} >= {("clean", "eval")}
    # two of three folds of twelve clips are tested
    assert all(row["positives"] == 8 for row in rows)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["rows"] == rows
    assert (tmp_path / "round-0" / "report.json").exists()
    assert Spotter.load(tmp_path / "model").keywords == ("computer",)
    tested = manifests.read(tmp_path / "test-positives.jsonl.gz")
    assert len(list(tested)) == 4

    def no_more(*_, **__):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(pipeline, "train_spotter", no_more)
    assert run(corpus, tmp_path) == rows
    for change in ({"conditions": ("clean",)}, {"train": TrainConfig(network={"type": "cnn"})}):
        with pytest.raises(RequestError, match="holds a run with other settings or data"):
            run(corpus, tmp_path, dataclasses.replace(CONFIG, **change))
    assert run(corpus, tmp_path, dataclasses.replace(CONFIG, test_folds=(0,)))


RUN = """
import pickle, sys
from pathlib import Path
import torch
from speechkit.kws import pipeline
torch.set_num_threads(1)  # as here
corpus, out, config = pickle.loads(Path(sys.argv[1]).read_bytes())
given = {kind: [path] for kind, path in corpus.items()}
pipeline.run(["computer"], **given, out=out, config=config)
"""


def test_a_run_that_is_killed_ends_with_the_same_metrics(tmp_path, corpus):
    fit = FitConfig(epochs=3, steps=2, workers=0)
    train = dataclasses.replace(CONFIG.train, fit=fit)
    config = dataclasses.replace(CONFIG, rounds=1, test_folds=(0,), train=train)
    (tmp_path / "run").write_bytes(pickle.dumps((corpus, tmp_path / "killed", config)))
    state = tmp_path / "killed" / "fold-0" / "round-0" / "resume" / "last.ckpt"
    with subprocess.Popen([sys.executable, "-c", RUN, tmp_path / "run"]) as process:
        while not state.exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "report.json").exists()
    rows = run(corpus, tmp_path / "killed", config)
    assert rows == run(corpus, tmp_path / "whole", config)
    assert {row["status"] for row in rows} <= {"ok", "unresolved"}


def test_broken_clips_are_named_and_in_no_manifest(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    broken = [tmp_path / "corpus" / kind / "3.wav" for kind in ("positives", "noise")]
    for path in broken:
        path.write_bytes(b"no audio")
    config = dataclasses.replace(CONFIG, rounds=1, test_folds=(0, 1, 2))
    run(corpus, tmp_path / "out", config)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["broken"].keys() == {"corpus/positives/3.wav", "corpus/noise/3.wav"}
    assert "2 broken clips left out" in (tmp_path / "out/report.md").read_text()
    kept = []
    for fold in (0, 1, 2):
        run(corpus, tmp_path / "out", dataclasses.replace(config, test_folds=(fold,)))
        for kind in ("positives", "noise"):
            kept += manifests.read(tmp_path / f"out/test-{kind}.jsonl.gz", allow_empty=True).ids
    assert len(set(kept)) == 12 + 6 - 2
    assert not set(kept) & report["broken"].keys()


def test_unknown_test_folds_are_refused(tmp_path, corpus):
    with pytest.raises(RequestError, match="choose from 0 to 2"):
        run(corpus, tmp_path, dataclasses.replace(CONFIG, test_folds=(3,)))
    with pytest.raises(RequestError, match="each fold once"):
        run(corpus, tmp_path, dataclasses.replace(CONFIG, test_folds=(0, 0)))


def told(corpus, **speakers):
    """Rewrite manifests: the speaker of each row is ``kind=clips a speaker has``."""
    for kind, clips in speakers.items():
        rows = [json.loads(line) for line in corpus[kind].read_text().splitlines()]
        for number, row in enumerate(rows):
            row["speaker"] = f"s{number // clips}"
        corpus[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_not_taken_up_with_other_speakers(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = dataclasses.replace(CONFIG, rounds=1, test_folds=(0,))
    run(corpus, tmp_path / "out", config)
    told(corpus, positives=2, negatives=2)
    with pytest.raises(RequestError, match="holds a run with other settings or data"):
        run(corpus, tmp_path / "out", config)


def test_a_run_is_not_taken_up_with_clips_that_were_repaired(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = dataclasses.replace(CONFIG, rounds=1, test_folds=(0,))
    path = tmp_path / "corpus" / "negatives" / "3.wav"
    whole = path.read_bytes()
    path.write_bytes(b"no audio")
    run(corpus, tmp_path / "out", config)
    path.write_bytes(whole)
    with pytest.raises(RequestError, match=r'broken \["corpus/negatives/3.wav"\] there, \[\]'):
        run(corpus, tmp_path / "out", config)


def test_fewer_speakers_than_folds_are_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    told(corpus, positives=6, negatives=6)
    with pytest.raises(RequestError, match=r"2 speakers\) falls into fold 2; .* divide by clip"):
        run(corpus, tmp_path / "out")
    by_clip = dataclasses.replace(CONFIG, rounds=1, test_folds=(0,), split_by="clip")
    assert run(corpus, tmp_path / "out", by_clip)


@pytest.mark.parametrize(("kind", "left"), [("negatives", 2), ("positives", 2)])
def test_folds_to_train_on_that_lack_a_kind_are_refused(tmp_path, kind, left):
    corpus = write_corpus(tmp_path / "corpus")
    lines = corpus[kind].read_text().splitlines()[:left]
    corpus[kind].write_text("".join(line + "\n" for line in lines))
    # two clips go to the fold to test on and to that of dev
    with pytest.raises(RequestError, match=r"none of 2 clips .* falls into fold 2 or 3 or 4;"):
        run(corpus, tmp_path / "out", dataclasses.replace(CONFIG, folds=5, test_folds=(0,)))
    assert not (tmp_path / "out").exists()


def test_the_report_comes_when_the_model_is_there(tmp_path, corpus, monkeypatch):
    save = Spotter.save

    def stopping(self, folder):
        if folder == tmp_path / "model":
            raise KeyboardInterrupt
        save(self, folder)

    config = dataclasses.replace(CONFIG, rounds=1, test_folds=(0,))
    monkeypatch.setattr(Spotter, "save", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path, config)
    assert not (tmp_path / "report.json").exists()
    monkeypatch.setattr(Spotter, "save", save)
    assert run(corpus, tmp_path, config)
    assert Spotter.load(tmp_path / "model").keywords == ("computer",)


def listed(corpus, **splits):
    """Rewrite manifests: a row's split is that of its place, none for what lies behind."""
    for kind, names in splits.items():
        rows = [json.loads(line) for line in corpus[kind].read_text().splitlines()]
        for row, split in zip(rows, names, strict=False):
            row["split"] = split
        corpus[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_corpus_is_divided_as_it_says(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    names = ["train"] * 5 + ["valid"] * 4 + ["test"] * 3
    listed(corpus, positives=names, negatives=names[3:])
    told(corpus, positives=1)
    seen = []

    def stop(training, dev, **_):
        seen.extend((training, dev))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_spotter", stop)
    config = dataclasses.replace(CONFIG, folds=4, test_folds=(0,), split_by="corpus")
    with pytest.raises(KeyboardInterrupt):
        run(corpus, tmp_path / "out", config)
    tested = [
        manifests.read(tmp_path / "out" / f"test-{kind}.jsonl.gz").ids
        for kind in ("positives", "negatives")
    ]
    parts = [[clip.id for clip in split.positives["computer"]] for split in seen]
    assert [numbers(part) for part in (*parts, tested[0])] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8],
        [9, 10, 11],
    ]
    # three negatives stand in no split, and are dealt like any others
    heard = [numbers(ids(split.negatives)) for split in seen] + [numbers(tested[1])]
    for part, own in zip(heard, ([0, 1], [2, 3, 4, 5], [6, 7, 8]), strict=True):
        assert set(part) >= set(own)
    assert sorted(number for part in heard for number in part) == list(range(12))


def numbers(clip_ids):
    return sorted(int(id_.split("/")[-1].removesuffix(".wav")) for id_ in clip_ids)


def test_a_corpus_without_splits_and_a_second_test_of_one_are_refused(tmp_path, corpus):
    with pytest.raises(RequestError, match="no clip is in train, valid or test"):
        run(corpus, tmp_path, dataclasses.replace(CONFIG, test_folds=(0,), split_by="corpus"))
    with pytest.raises(RequestError, match="by corpus there is one test"):
        dataclasses.replace(CONFIG, split_by="corpus")


@pytest.mark.parametrize("name", ["conditions", "fa_per_hour"])
def test_nothing_to_measure_is_refused(name):
    with pytest.raises(RequestError, match="conditions and fa_per_hour: give at least one each"):
        PipelineConfig(**{name: ()})


def test_a_folder_is_not_taken_by_what_cannot_be_built(tmp_path, corpus):
    for train in (TrainConfig(frontend={"type": "pcem"}), TrainConfig(frontend={"type": "mfcc"})):
        with pytest.raises(RequestError, match="front-end"):
            run(corpus, tmp_path / "out", dataclasses.replace(CONFIG, train=train))
    assert not (tmp_path / "out").exists()


def parts_of(monkeypatch, corpus, out, **changes):
    """Return training and dev of each fold, and the manifest of noise that fold 0 is tested in."""
    seen = []

    def stop(training, dev, **_):
        seen.append((training, dev))
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "train_spotter", stop)
    for fold in range(3):
        config = dataclasses.replace(CONFIG, test_folds=(fold,), **changes)
        with pytest.raises(KeyboardInterrupt):
            run(corpus, out, config)
    return seen


def test_each_fold_is_measured_by_a_model_that_never_heard_it(tmp_path, corpus, monkeypatch):
    """Who hears what: training and mining one part, dev the second, the measure the third."""
    rounds, mined, measured = [], [], []
    train, find, measure = (
        getattr(pipeline, name) for name in ("train_spotter", "find_alarms", "measure_conditions")
    )

    def note_training(training, dev, **options):
        rounds.append((training, dev, options))
        return train(training, dev, **options)

    def note_mining(detector, clips, noises, **options):
        mined.append((detector.spotter, clips, noises, options["seed"]))
        return find(detector, clips, noises, **options)

    def note_measure(detector, positives, negatives, noises, **options):
        measured.append((positives, negatives, noises))
        return measure(detector, positives, negatives, noises, **options)

    monkeypatch.setattr(pipeline, "train_spotter", note_training)
    monkeypatch.setattr(pipeline, "find_alarms", note_mining)
    monkeypatch.setattr(pipeline, "measure_conditions", note_measure)
    monkeypatch.setattr(pipeline, "LEAST_SCORE", 0.0)
    run(corpus, tmp_path, dataclasses.replace(CONFIG, test_folds=(0,)))
    assert len(rounds) == len(measured) == 2
    name = corpus["positives"].parent.name
    everything = {
        f"{name}/{kind}/{i}.wav" for kind in ("positives", "negatives") for i in range(12)
    }
    everything |= {f"{name}/noise/{i}.wav" for i in range(6)}
    for (training, dev, _), tested in zip(rounds, measured, strict=True):
        parts = [
            {clip.id for clips in (*positives.values(), negatives, noises) for clip in clips}
            for positives, negatives, noises in (
                (training.positives, training.negatives, training.noises),
                (dev.positives, dev.negatives, dev.noises),
                tested,
            )
        ]
        assert sorted(id_ for part in parts for id_ in part) == sorted(everything)
        assert [len(part) for part in parts] == [10, 10, 10]
    (first, _, one), (second, _, two) = rounds
    assert first.fingerprints() == second.fingerprints()
    # mined are the training negatives alone, by the first round's model
    (spotter, clips, noises, seed) = mined[0]
    assert len(mined) == 1
    assert ids(clips) == ids(first.negatives)
    assert ids(noises) == ids(first.noises)
    folder = tmp_path / "fold-0" / "round-0" / "model"
    stored = Spotter.load(folder).state_dict()
    assert all(torch.equal(x, stored[name]) for name, x in spotter.state_dict().items())
    assert (one["init"], one["hard"]) == (None, [])
    assert two["init"] == folder
    assert two["hard"]
    assert seed == two["config"].seed == one["config"].seed + 1


def ids(clips):
    return sorted(clip.id for clip in clips)


def test_a_later_round_is_half_as_long_and_begins_with_the_first_drop():
    fit = FitConfig(epochs=7, learning_rate=1e-3, drop=0.3, drops=2)
    later = pipeline._next_round(TrainConfig(fit=fit, seed=5), 1)
    assert (later.fit.epochs, later.fit.drops, later.seed) == (4, 1, 6)
    assert later.fit.learning_rate == pytest.approx(3e-4)


def test_noises_fewer_than_folds_are_heard_everywhere(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    lines = corpus["noise"].read_text().splitlines()
    corpus["noise"].write_text("\n".join(lines[:2]))
    for training, dev in parts_of(monkeypatch, corpus, tmp_path / "out"):
        assert len(training.noises) == len(dev.noises) == 2
    assert len(list(manifests.read(tmp_path / "out" / "test-noise.jsonl.gz"))) == 2
    monkeypatch.undo()
    run(corpus, tmp_path / "out", dataclasses.replace(CONFIG, rounds=1, test_folds=(0,)))
    note = "2 noises are too few for 3 folds: the same ones are heard in training"
    assert note in (tmp_path / "out" / "report.md").read_text()


def test_a_noise_that_is_a_negative_too_is_in_one_part(tmp_path, monkeypatch):
    corpus = write_corpus(tmp_path / "corpus")
    corpus["noise"] = corpus["negatives"]
    for training, dev in parts_of(monkeypatch, corpus, tmp_path / "out"):
        heard = {clip.id for clip in training.noises}
        assert heard == {clip.id for clip in training.negatives}
        assert not heard & {clip.id for clip in (*dev.noises, *dev.negatives)}
