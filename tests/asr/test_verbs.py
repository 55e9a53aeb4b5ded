"""The verbs evaluate, align and export, and the recipe for AN4."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from speechkit import cli, manifests
from speechkit.asr import DecodingConfig, Recogniser, Transcriber
from speechkit.asr.align import align, align_cut
from speechkit.asr.evaluate import evaluate
from speechkit.asr.export import export
from speechkit.asr.utterances import check
from speechkit.errors import JobError, RequestError
from tests.asr.speech import SMALL, recogniser

RECIPES = Path(__file__).parents[2] / "recipes"


def report_of(out):
    return json.loads((out / "report.json").read_text())


def test_evaluate_scores_what_transcribe_writes(trained, corpus, tmp_path):
    cuts, folder = corpus
    evaluate(model=trained, cuts=[folder / "manifest.jsonl"], out=tmp_path)
    report = report_of(tmp_path)
    assert report["wer"] == report["cer"] == 0.0
    assert report["utterances"] == len(cuts)
    rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").read_text().splitlines()]
    transcriber = Transcriber.load(trained)
    for row, cut in zip(rows, cuts, strict=True):
        assert row["hypothesis"] == transcriber.transcribe(cut).text
    assert (tmp_path / "report.md").exists()


def test_evaluate_names_what_it_leaves_out(trained, corpus, tmp_path):
    cuts = list(corpus[0])[:3]
    rows = [
        {"audio_filepath": cut.recording.sources[0].source, "text": cut.supervisions[0].text}
        for cut in cuts
    ]
    rows[1]["text"] = None
    manifests_path = tmp_path / "some.jsonl"
    manifests_path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(model=trained, cuts=[manifests_path], out=tmp_path / "out")
    assert report_of(tmp_path / "out")["utterances"] == 2
    assert "1 cuts without text left out" in (tmp_path / "out" / "report.md").read_text()
    manifests_path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(RequestError, match="none of 1 cuts has a text"):
        evaluate(model=trained, cuts=[manifests_path], out=tmp_path / "out")


def test_evaluate_says_that_cuts_are_broken(trained, corpus, tmp_path):
    rows = []
    for cut in list(corpus[0])[:3]:
        path = tmp_path / Path(cut.recording.sources[0].source).name
        path.write_bytes(Path(cut.recording.sources[0].source).read_bytes())
        text, duration = cut.supervisions[0].text, cut.duration
        rows.append({"audio_filepath": path.name, "text": text, "duration": duration})
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"model": trained, "cuts": [tmp_path / "some.jsonl"], "out": tmp_path / "out"}
    assert evaluate(**given) == 0
    path.write_text("no audio")
    assert evaluate(**given) == 1
    assert report_of(tmp_path / "out")["utterances"] == 2


def test_align_finds_the_words(trained, corpus, tmp_path):
    cuts, folder = corpus
    assert align(model=trained, cuts=[folder / "manifest.jsonl"], out=tmp_path) == 0
    transcriber = Transcriber.load(trained)
    cut = next(iter(cuts))
    hypothesis = align_cut(transcriber, cut)
    assert hypothesis.text == transcriber.recogniser.reference(cut)
    edges = [edge for word in hypothesis.words for edge in (word.start_s, word.end_s)]
    assert edges == sorted(edges)
    assert 0 <= edges[0] < edges[-1] <= cut.duration + transcriber.recogniser.frame_s
    lines = (tmp_path / f"{cut.id.replace('/', '_')}.ctm").read_text().splitlines()
    assert [line.split()[4] for line in lines] == hypothesis.text.split()


def test_align_names_what_the_model_cannot_write(trained, corpus, tmp_path, caplog):
    cuts = list(manifests.read(corpus[1] / "manifest.jsonl"))[:2]
    cuts[0].supervisions[0].text = "a é b 2"
    manifests.write(cuts, tmp_path / "some.jsonl")
    assert align(model=trained, cuts=[tmp_path / "some.jsonl"], out=tmp_path / "out") == 1
    assert "knows no '2' 'é'" in caplog.text
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_align_names_cuts_without_a_text_and_names_that_are_none(trained, corpus, tmp_path, caplog):
    cuts = list(manifests.read(corpus[1] / "manifest.jsonl"))[:3]
    cuts[0].supervisions[0].text = None
    cuts[1].supervisions[0].text = "?!"
    manifests.write(cuts, tmp_path / "some.jsonl")
    assert align(model=trained, cuts=[tmp_path / "some.jsonl"], out=tmp_path / "out") == 0
    assert "2 cuts without a text left out" in caplog.text
    for id_ in ("a" * 300, "a\0b"):
        cuts[2].id = id_
        manifests.write(cuts[2:], tmp_path / "odd.jsonl")
        with pytest.raises(RequestError, match="can be no file's name"):
            align(model=trained, cuts=[tmp_path / "odd.jsonl"], out=tmp_path / "odd")


def test_cuts_without_the_features_that_the_model_reads_are_refused_at_once(corpus, tmp_path):
    recogniser(stored=True).save(tmp_path / "model")
    given = {"model": tmp_path / "model", "cuts": [corpus[1] / "manifest.jsonl"]}
    for verb in (align, evaluate):
        with pytest.raises(RequestError, match="6 cuts have no features"):
            verb(**given, out=tmp_path / "out")
    with pytest.raises(RequestError, match="6 cuts have no features"):
        check(corpus[0], recogniser(stored=True))
    with pytest.raises(RequestError, match="2 ids occur twice"):
        check([*corpus[0], *list(corpus[0])[:2]], recogniser())


def test_align_names_texts_that_are_too_long(trained, corpus, tmp_path, caplog):
    cut = next(iter(corpus[0]))
    row = {"audio_filepath": cut.recording.sources[0].source, "text": "a" * 300}
    (tmp_path / "some.jsonl").write_text(json.dumps(row) + "\n")
    assert align(model=trained, cuts=[tmp_path / "some.jsonl"], out=tmp_path / "out") == 1
    assert "599 frames" in caplog.text
    with pytest.raises(JobError):
        align_cut(Transcriber.load(trained), next(iter(manifests.read(tmp_path / "some.jsonl"))))


def test_export_equals_the_model(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    patterns = ("Local(12)", "Strided(7)", "Dense()")
    model = recogniser(dataclasses.replace(SMALL, layers=3, patterns=patterns))
    model.save(tmp_path / "model")
    export(model=tmp_path / "model", out=tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "recogniser.onnx")
    x = torch.randn(1, 77, model.inputs.dimensions)
    (found,) = session.run(None, {"features": x.numpy()})
    expected = model(x, torch.tensor([77])).logits.log_softmax(-1).detach()
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-3)
    described = json.loads((tmp_path / "onnx" / "recogniser.json").read_text())
    assert len(described["tokens"]) == model.tokenizer.size


def write_features(root, *, speakers=10, each=2):
    """Write a portion in the form of AN4's features."""
    rng = np.random.default_rng(0)
    rows, parts = [], []
    for index in range(speakers * each):
        frames = int(rng.integers(60, 90))
        rows.append(
            {
                "utt": f"u{index}",
                "speaker": f"s{index % speakers}",
                "text": "YES A",
                "text_norm": "yes a" if index < speakers else "no b",
                "offset": sum(map(len, parts)),
                "frames": frames,
            }
        )
        parts.append(rng.standard_normal((frames, 13)).astype(np.float16))
    root.mkdir()
    np.savez(root / "feats.npz", mfc=np.concatenate(parts))
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_recipe_for_an4(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("asr_an4", RECIPES / "asr_an4.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    write_features(tmp_path / "root")
    out = tmp_path / "out"
    words = ["--root", tmp_path / "root", "--out", out, "--fit.epochs", 1]
    small = ["--sparse.layers", 1, "--sparse.width", 16, "--sparse.heads", 2]
    assert cli.run_recipe(module.asr_an4, [str(word) for word in words + small]) == 0
    assert "WER" in capsys.readouterr().out
    assert len((out / "dev_speakers.txt").read_text().split()) == 8
    for folder in (out, out / "lm"):
        assert report_of(folder)["utterances"] == 16
    assert "ngram 2=" in (out / "lm.arpa").read_text()
    model = Recogniser.load(out / "model")
    assert model.inputs.config.normalisation == "speaker"
    for own, lm in ((True, str(out / "model" / "lm.arpa")), (False, None)):
        config = DecodingConfig(own_lm=own)
        evaluate(model=out / "model", cuts=[out / "cuts"], out=tmp_path / "other", config=config)
        report = report_of(tmp_path / "other")
        assert report["utterances"] == 20
        assert report["decoding"]["lm"] == lm
