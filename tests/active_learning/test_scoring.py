import pickle

import numpy as np
import pytest
import torch

from speechkit import audio, ctc, manifests
from speechkit.active_learning import baselines
from speechkit.active_learning import score as score_function
from speechkit.active_learning.baselines import disagreement
from speechkit.active_learning.blocks import read_scores, verify
from speechkit.active_learning.cascade import Cascade
from speechkit.active_learning.score import config_digest, take_back_failed
from speechkit.active_learning.scorers import committee_members
from speechkit.active_learning.scoring import ClipScorer, ScoringConfig
from speechkit.active_learning.statistics import top_overlap
from speechkit.cli import run_recipe
from speechkit.errors import RequestError
from tests.active_learning.helpers import TinyRecogniser, TinySpotter, cut_of, pool_of

TEXTS = ["egl:weights=sample,k=4", "egl", "entropy", "random", "embedding:size=2"]


@pytest.fixture(scope="module")
def model():
    return TinyRecogniser()


def table(folder, cuts, model, texts=TEXTS, **config):
    score_function(cuts, model, texts, folder=folder, config=ScoringConfig(**config))
    return read_scores(folder)


def test_every_clip_has_a_row_and_a_failure_says_why(model):
    cuts = [*pool_of(5), cut_of("broken", broken=True), cut_of("short", 0.0001)]
    rows = {row["id"]: row for row in ClipScorer(model, ["egl", "entropy"])(cuts)}
    assert set(rows) == {cut.id for cut in cuts}
    assert rows["broken"] == {
        "id": "broken",
        "duration_s": 0.13,
        "status": "failed",
        "error": "broken: cannot be read",
    }
    assert rows["short"]["status"] == "failed"
    for cut in pool_of(5):
        row = rows[cut.id]
        assert row["status"] == "ok"
        assert row["egl"] > 0
        assert row["hypothesis"] == row["nbest"][0]
        assert row["egl_distinct"] <= 16
        assert row["speaker"].startswith("s")


def test_a_failure_while_scoring_costs_one_clip(model, monkeypatch):
    entropy = baselines.FrameEntropy.score

    def breaks(scorer, batch):
        if any(clip.id == "odd" for clip in batch.clips):
            raise FloatingPointError("overflow")
        return entropy(scorer, batch)

    monkeypatch.setattr(baselines.FrameEntropy, "score", breaks)
    cuts = [*pool_of(4), cut_of("odd")]
    rows = {row["id"]: row for row in ClipScorer(model, ["entropy"])(cuts)}
    assert rows.pop("odd")["error"] == "FloatingPointError: overflow"
    fits = {cut.id: row for cut, row in zip(pool_of(4), rows.values(), strict=True)}
    assert all(row["status"] == "ok" for row in fits.values())


def test_a_wrong_request_is_no_row(model):
    with pytest.raises(RequestError, match="no parameter matches"):
        ClipScorer(model, ["egl:parameters=encoder"])(pool_of(2))
    with pytest.raises(RequestError, match="cannot score clips"):
        ClipScorer(torch.nn.Linear(1, 1), ["egl"])(pool_of(2))


def test_neither_batches_nor_blocks_change_scores(model, tmp_path):
    cuts = pool_of(23)
    whole = table(tmp_path / "a", cuts, model, block_size=50, batch_s=100)
    assert whole.equals(table(tmp_path / "b", cuts[::-1], model, block_size=50, batch_s=100))
    single = table(tmp_path / "c", cuts, model, block_size=4, batch_s=0.01)
    for name in ("egl", "entropy", "egl:weights=sample,k=4", "egl_beam_mass"):
        np.testing.assert_allclose(single[name], whole[name], rtol=1e-5)
    assert single["random"].equals(whole["random"])
    assert single["hypothesis"].to_pylist() == whole["hypothesis"].to_pylist()


def test_what_is_there_is_not_scored_again(model, tmp_path, monkeypatch):
    cuts = pool_of(12)
    first = table(tmp_path / "a", cuts, model, block_size=4)
    parts = sorted((tmp_path / "a").glob("part-*"))
    before = {part.name: part.read_bytes() for part in parts}
    parts[1].unlink()
    parts[2].write_bytes(b"half")
    calls = []
    real = ClipScorer.__call__
    monkeypatch.setattr(
        ClipScorer, "__call__", lambda self, cuts: calls.append(len(cuts)) or real(self, cuts)
    )
    assert table(tmp_path / "a", cuts, model, block_size=4).equals(first)
    assert calls == [4, 4]
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").glob("part-*")} == before


def test_the_cascade_refines_the_best(model, tmp_path):
    cuts = pool_of(20)
    name = "cascade:share=0.3"
    fine = Cascade.parse(name).fine
    found = table(tmp_path / "a", cuts, model, [name, fine, "egl"], block_size=8).to_pydict()
    refined = np.array(found[f"{name}_refined"], dtype=bool)
    assert refined.sum() == 6
    np.testing.assert_allclose(
        np.array(found[name])[refined], np.array(found[fine])[refined], rtol=1e-6
    )
    coarse = np.array(found[Cascade.parse(name).coarse])
    assert coarse[refined].min() >= coarse[~refined].max()
    np.testing.assert_allclose(
        np.ptp(np.array(found[name])[~refined] / coarse[~refined]), 0, atol=1e-9
    )
    assert top_overlap(found[name], found["egl"], share=0.1) >= 0.5
    again = table(tmp_path / "b", cuts, model, [name], block_size=5).to_pydict()
    assert again["id"] == found["id"]
    np.testing.assert_allclose(again[name], found[name], rtol=1e-5)


@pytest.mark.parametrize("text", ["cascade:share=0", "cascade:part=1", "cascade:k=x"])
def test_a_wrong_cascade_is_refused(text, tmp_path, model):
    with pytest.raises(RequestError, match="cascade"):
        table(tmp_path, pool_of(2), model, [text])


@pytest.mark.parametrize("wrong", ["passes=0", "weights=best", "k=0"])
def test_a_wrong_second_stage_is_refused_before_the_first(wrong, tmp_path, model):
    with pytest.raises(RequestError):
        table(tmp_path, pool_of(2), model, [f"cascade:{wrong}"])
    assert not list(tmp_path.rglob("part-*"))


@pytest.mark.parametrize("parameters", ["output", "logits"])
def test_a_second_stage_without_backward_passes_saves_none(parameters, tmp_path, model):
    name = f"cascade:parameters={parameters},share=0.5"
    found = table(tmp_path, pool_of(4), model, [name]).to_pydict()
    assert sum(found[f"{name}_refined"]) == 2


def test_ids_that_are_no_text_are_refused(tmp_path, model):
    with pytest.raises(RequestError, match="1 clips have ids that are no UTF-8"):
        table(tmp_path, [*pool_of(2), cut_of("caf\udce9")], model, ["random"])


class Hearing(TinyRecogniser):
    """Its features depend on the speakers that it has heard."""

    statistics = None

    def hear(self, cuts):
        self.statistics = len(cuts)

    def features(self, cuts):
        x, lengths = super().features(cuts)
        return x / self.statistics, lengths


def test_the_whole_pool_is_heard_before_it_is_shared_out(tmp_path, monkeypatch):
    monkeypatch.setattr("speechkit.checkpoint.load_model", lambda folder: Hearing())
    texts = ["entropy", "cascade:share=0.3,k=2"]
    loaded = table(tmp_path / "a", pool_of(9), tmp_path, texts, block_size=2)
    assert loaded.equals(table(tmp_path / "b", pool_of(9), Hearing(), texts, block_size=2))
    assert set(loaded["status"].to_pylist()) == {"ok"}
    scorer = ClipScorer(tmp_path, ["entropy"])
    scorer.hear(pool_of(9))
    carried = pickle.loads(pickle.dumps(scorer))(pool_of(9)[:1])
    rows = {row["id"]: row["entropy"] for row in loaded.to_pylist()}
    assert carried[0]["entropy"] == pytest.approx(rows[carried[0]["id"]], rel=1e-5)


def test_a_committee_hears_the_pool_too(tmp_path, monkeypatch):
    monkeypatch.setattr("speechkit.checkpoint.load_model", lambda folder: Hearing(3))
    baselines._member.cache_clear()
    scorer = ClipScorer(TinyRecogniser(), [f"committee:models={tmp_path}"])
    scorer.hear(pool_of(9))
    member = Hearing(3)
    member.hear(pool_of(9))
    pair = [transcript(TinyRecogniser(), pool_of(1)), transcript(member, pool_of(1))]
    baselines._member.cache_clear()
    (row,) = pickle.loads(pickle.dumps(scorer))(pool_of(1))
    assert row[f"committee:models={tmp_path}"] == disagreement(pair) > 0
    baselines._member.cache_clear()


def transcript(model, cuts):
    with torch.no_grad():
        logits, frames, _ = model.eval().network(*model.features(cuts))
    (path,) = ctc.greedy(logits, frames, blank=model.blank)
    return model.text_of(path.tokens)


def test_bad_pools(model, tmp_path):
    with pytest.raises(RequestError, match="empty"):
        table(tmp_path / "a", [], model)
    with pytest.raises(RequestError, match="more than once"):
        table(tmp_path / "b", [*pool_of(2), *pool_of(1)], model)
    assert table(tmp_path / "c", pool_of(1), model).num_rows == 1


def test_a_spotters_clips(tmp_path):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(50, 4))
    rng = np.random.default_rng(0)
    rows = []
    for i, length in enumerate((8_000, 16_000, 400)):
        path = tmp_path / f"{i}.wav"
        audio.write_audio(path, rng.normal(size=length).astype(np.float32) * 0.1)
        rows.append(
            f'{{"audio_filepath": "{path.name}", "duration": {length / 16_000}, "id": "c{i}"}}'
        )
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows) + "\n")
    cuts = list(manifests.read(tmp_path))
    texts = ["egl", "egl:parameters=all", "entropy", "margin", "confidence", "longest"]
    found = table(tmp_path / "scores", cuts, TinySpotter(network), texts).to_pylist()
    assert all(row["status"] == "ok" for row in found), [row["error"] for row in found]
    for row in found:
        assert row["egl"] == pytest.approx(row["egl:parameters=all"], rel=1e-5)
        assert row["level_dbfs"] == pytest.approx(-20, abs=1)
        assert row["hypothesis"] in ("_background_", "yes", "no", "go")


def test_the_verb(tmp_path, monkeypatch, model):
    from speechkit.active_learning.score import score

    model.save(tmp_path / "model")
    monkeypatch.setattr("speechkit.checkpoint.load_model", lambda folder: TinyRecogniser())
    manifests.write(pool_of(9), tmp_path / "cuts.jsonl")
    arguments = ["--pool", f"{tmp_path}/cuts.jsonl", "--model", f"{tmp_path}/model"]
    arguments += ["--out", f"{tmp_path}/out", "--strategy", "egl,entropy", "random"]
    assert run_recipe(score, [*arguments, "--verify"]) == 1
    assert run_recipe(score, [*arguments, "--block-size", "4"]) == 0
    assert run_recipe(score, [*arguments, "--block-size", "4", "--verify"]) == 0
    found = read_scores(tmp_path / "out")
    assert found.num_rows == 9
    assert {"egl", "entropy", "random", "egl_stderr"} <= set(found.column_names)
    assert verify(
        next((tmp_path / "out").glob("model=*/config=*")), [c.id for c in pool_of(9)]
    ).whole
    assert run_recipe(score, [*arguments, "--engine", "torchrun"]) == 2
    assert run_recipe(score, [*arguments[:2], "--model", f"{tmp_path}", *arguments[4:]]) == 2


def test_a_pool_of_broken_clips_fails(tmp_path, monkeypatch, model):
    from speechkit.active_learning.score import score

    model.save(tmp_path / "model")
    monkeypatch.setattr("speechkit.checkpoint.load_model", lambda folder: TinyRecogniser())
    manifests.write([cut_of("a", broken=True)], tmp_path / "cuts.jsonl")
    arguments = [f"--pool={tmp_path}/cuts.jsonl", f"--model={tmp_path}/model"]
    assert run_recipe(score, [*arguments, f"--out={tmp_path}/out"]) == 1
    (row,) = read_scores(tmp_path / "out").to_pylist()
    assert row["error"] == "a: cannot be read"
    # a disk that was not there, say: what failed is tried again when that is asked for
    manifests.write([*pool_of(1), cut_of("a")], tmp_path / "cuts.jsonl")
    assert run_recipe(score, [*arguments, f"--out={tmp_path}/out"]) == 2
    manifests.write([cut_of("a")], tmp_path / "cuts.jsonl")
    assert run_recipe(score, [*arguments, f"--out={tmp_path}/out"]) == 1
    assert run_recipe(score, [*arguments, f"--out={tmp_path}/out", "--retry-failed"]) == 0
    (row,) = read_scores(tmp_path / "out").to_pylist()
    assert row["status"] == "ok"


def test_scores_of_failed_clips_are_taken_back_in_all_stages(model, tmp_path):
    cuts, how = [*pool_of(12), cut_of("broken")], {"texts": ["cascade:share=0.5"], "block_size": 4}
    broken = [*pool_of(12), cut_of("broken", broken=True)]
    table(tmp_path / "a", broken, model, **how)
    whole = table(tmp_path / "b", cuts, model, **how)
    assert take_back_failed(tmp_path / "a") == 1
    assert table(tmp_path / "a", cuts, model, **how).equals(whole)
    assert take_back_failed(tmp_path / "a") == 0


def test_other_clips_under_the_same_ids_are_refused(model, tmp_path):
    table(tmp_path, pool_of(4), model)
    shorter = pool_of(4)
    shorter[1].duration /= 2
    with pytest.raises(RequestError, match="holds a run with other settings or data: pool"):
        table(tmp_path, shorter, model)


def test_members_of_a_committee_are_part_of_what_scores_are_of(tmp_path):
    assert committee_members("committee:models=a+b") == ["a", "b"]
    assert committee_members("committee: models=a+b") == ["a", "b"]
    assert committee_members("egl:k=4") == []
    with pytest.raises(RequestError):
        config_digest([f"committee: models={tmp_path / 'gone'}"], ScoringConfig())


@pytest.mark.parametrize("size", [0, -3])
def test_a_sketch_has_a_size(model, size):
    with pytest.raises(RequestError, match=f"size {size}: give 1 or more"):
        ClipScorer(model, [f"embedding:size={size}"])(pool_of(1))
