import dataclasses
import json

import pytest

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
