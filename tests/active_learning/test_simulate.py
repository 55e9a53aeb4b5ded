import json

import numpy as np
import pytest

from speechkit.active_learning import simulate as simulate_function
from speechkit.active_learning.compare import ComparisonConfig, compare_metric
from speechkit.active_learning.joined_scores import read_joined
from speechkit.active_learning.jsonl import read_rows
from speechkit.active_learning.keyed import keys_of, uniforms
from speechkit.active_learning.query import Query
from speechkit.active_learning.results import Results
from speechkit.active_learning.scoring import ScoringConfig
from speechkit.active_learning.select import read_selection
from speechkit.active_learning.simulate import (
    SimulationConfig,
    Split,
    load_learner,
    run,
)
from speechkit.errors import RequestError
from tests.active_learning.helpers import TinyRecogniser, pool_of

SHARES = (0.0, 0.2, 0.4, 1.0)


class Learner:
    """Stands for training: the model remembers what it saw; every fit is written down."""

    def __init__(self):
        self.fits = []
        self.dies_after = None

    def fit(self, cuts, init, seed, out):
        done = out / "done.json"
        model = TinyRecogniser(seed)
        if done.is_file():
            model.seen = json.loads(done.read_text())
            return model
        if self.dies_after is not None and len(self.fits) >= self.dies_after:
            raise KeyboardInterrupt
        self.fits.append((out.name, seed, None if init is None else len(init.seen), len(cuts)))
        model.seen = [cut.id for cut in cuts]
        out.mkdir(parents=True, exist_ok=True)
        done.write_text(json.dumps(model.seen))
        return model

    def evaluate(self, model, cuts):
        return {"wer": 1 / (1 + len(model.seen)), "cer": 0.5, "loss": float(len(cuts))}


def split(seed):
    cuts = pool_of(30, seed)
    return Split(base=cuts[:4], pool=cuts[4:24], test=cuts[24:])


def simulate(
    learner,
    out,
    queries=("random", "egl:k=2", "egl:k=2/per_second"),
    carried=None,
    settings=None,
    **config,
):
    return simulate_function(
        split,
        queries=queries,
        seeds=range(2),
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=out,
        config=SimulationConfig(shares=SHARES, scoring=ScoringConfig(block_size=8), **config),
        carried=carried,
        settings=settings,
    )


def test_cells_are_paired_and_told_apart(tmp_path):
    learner = Learner()
    rows = simulate(learner, tmp_path)
    assert len(rows) == 2 * (2 + 3 * 2)
    # and the base models, which are measured after as much further training as all others
    assert len(learner.fits) == len(rows) + 2
    results = Results.read([tmp_path])
    assert results.strategies == ["egl:k=2", "egl:k=2/per_second", "random"]
    table = {(r["seed"], r["strategy"], r["share"]): r for r in rows}
    for seed in range(2):
        assert table[seed, "base", 0.0]["clips"] == 0
        assert table[seed, "whole", 1.0]["clips"] == 20
        for name in results.strategies:
            assert table[seed, name, 0.2]["clips"] == 4
            assert table[seed, name, 0.4]["clips"] == 8
            assert 0 < table[seed, name, 0.2]["seconds"] < table[seed, name, 0.4]["seconds"]
    # what was chosen is kept as `al select` would, and one pool's scores can be correlated
    for selected in (tmp_path / "seed-0" / "selections").iterdir():
        chosen, cuts = read_selection(selected)
        assert len(chosen) == len(cuts) in (4, 8)
    assert {"random", "egl:k=2"} <= set(read_joined([tmp_path / "seed-0/scores"]).column_names)
    # every query goes on from the base model of its own seed
    assert all(init == 4 for name, _, init, _ in learner.fits if name != "base")
    compared = compare_metric(results, "wer", ComparisonConfig(draws=50))
    assert {row["strategy"] for row in compared["against_baseline"]} == {
        "egl:k=2",
        "egl:k=2/per_second",
    }


def test_a_seed_is_that_of_its_choices_and_of_its_trainings(tmp_path):
    """Of one pool for all seeds, as the verb has it, each seed must still choose for itself."""
    learner, shared = Learner(), split(0)
    simulate_function(
        lambda seed: shared,
        queries=["random"],
        seeds=[3, 7],
        fit=learner.fit,
        evaluate=learner.evaluate,
        out=tmp_path,
        config=SimulationConfig(shares=(0.4,), scoring=ScoringConfig(block_size=8)),
    )
    chosen = {}
    for seed in (3, 7):
        (folder,) = (tmp_path / f"seed-{seed}" / "selections").iterdir()
        chosen[seed] = [cut.id for cut in read_selection(folder)[1]]
        ids = [cut.id for cut in shared.pool]
        chance = dict(zip(ids, uniforms(keys_of(ids, seed=seed)).tolist(), strict=True))
        assert chosen[seed] == sorted(ids, key=chance.__getitem__, reverse=True)[:8]
    assert set(chosen[3]) != set(chosen[7])
    assert [seed for name, seed, *_ in learner.fits if name == "base"] == [3, 7]
    assert all(name == "base" or name.startswith(f"{seed}-") for name, seed, *_ in learner.fits)


def test_a_run_that_was_interrupted_goes_on_where_it_was(tmp_path):
    whole = simulate(Learner(), tmp_path / "whole")
    learner = Learner()
    out = tmp_path / "broken"
    for stop in (1, 4, 9, 13):
        learner.dies_after = stop
        with pytest.raises(KeyboardInterrupt):
            simulate(learner, out)
    learner.dies_after = None
    assert simulate(learner, out) == whole
    assert len(set(learner.fits)) == len(learner.fits) == len(whole) + 2
    assert simulate(learner, out) == whole
    assert len(learner.fits) == len(whole) + 2


def test_a_study_goes_on_in_another_folder(tmp_path):
    first, second, file = Learner(), Learner(), tmp_path / "cells.jsonl"
    words = {"carried": file, "settings": {"heard_h": 2}}
    simulate(first, tmp_path / "here", queries=["random"], **words)
    rows = simulate(second, tmp_path / "there", queries=["random", "longest"], **words)
    assert [r for r in rows if r["strategy"] != "longest"] == read_rows(
        tmp_path / "here" / "results.jsonl"
    )
    # the base model is needed to score and to go on from, but is not measured again
    assert [name for name, *_ in second.fits if "longest" not in name] == ["base", "base"]
    assert read_rows(file) == rows
    with pytest.raises(RequestError, match="other settings"):
        simulate(Learner(), tmp_path / "third", carried=file, settings={"heard_h": 3})


def test_a_share_of_nothing_trains_as_long_as_others(tmp_path):
    learner = Learner()
    rows = simulate(learner, tmp_path, queries=["random"])
    assert [init for name, _, init, cuts in learner.fits if name == "base"] == [None, None]
    assert [cuts for name, _, init, cuts in learner.fits if init == 4 and cuts == 4] == [4, 4]
    scratch = Learner()
    simulate(scratch, tmp_path / "scratch", queries=["random"], training="scratch")
    assert len(scratch.fits) == len(rows)  # the base model itself is its own control


def test_parts_that_share_clips_are_refused():
    cuts = pool_of(6, 0)
    with pytest.raises(RequestError, match="1 clips are in base and in test"):
        Split(base=cuts[:3], pool=cuts[3:5], test=cuts[2:3])


def test_strategies_and_shares_may_be_added(tmp_path):
    learner = Learner()
    first = simulate(learner, tmp_path, queries=["random"])
    more = simulate(learner, tmp_path, queries=["random", "longest"])
    assert [row for row in more if row["strategy"] != "longest"] == first
    assert len(learner.fits) == len(more) + 2


def test_budgets_of_seconds_and_training_from_scratch(tmp_path):
    learner = Learner()
    rows = simulate(
        learner, tmp_path, queries=["longest", "shortest"], budget="seconds", training="scratch"
    )
    assert all(init is None for *_, init, _ in learner.fits)
    pool = {seed: sum(cut.duration for cut in split(seed).pool) for seed in range(2)}
    for row in rows:
        if 0 < row["share"] < 1:
            assert row["seconds"] <= row["share"] * pool[row["seed"]] + 1e-6
            assert row["seconds"] >= row["share"] * pool[row["seed"]] - 0.4
    clips = {(r["seed"], r["strategy"], r["share"]): r["clips"] for r in rows}
    assert clips[0, "longest", 0.2] < clips[0, "shortest", 0.2]


def test_diverse_and_cascaded_queries(tmp_path):
    rows = simulate(
        Learner(), tmp_path, queries=["egl:k=2/kmeans++", "cascade:k=2,share=0.5", "random"]
    )
    chosen = {row["strategy"] for row in rows if row["share"] == 0.2}
    assert chosen == {"egl:k=2/kmeans++", "cascade:k=2,share=0.5", "random"}


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    simulate(Learner(), tmp_path, queries=["random"])
    with pytest.raises(RequestError, match="other settings"):
        simulate(Learner(), tmp_path, queries=["random"], budget="seconds")


@pytest.mark.parametrize("queries", [["random", "random"], ["egl/best"], ["egel"]])
def test_wrong_queries_are_refused(queries, tmp_path):
    with pytest.raises(RequestError):
        simulate(Learner(), tmp_path, queries=queries)


@pytest.mark.parametrize("wrong", ["bogus", "egl:q=3", "cascade:q=3", "bogus/kmeans++"])
def test_unknown_strategies_are_refused_before_any_training(wrong, tmp_path):
    learner = Learner()
    with pytest.raises(RequestError, match=r"bogus|q=3"):
        simulate(learner, tmp_path, queries=["random", wrong])
    assert learner.fits == []


def test_a_seed_of_scores_is_the_runs_own():
    with pytest.raises(RequestError, match=r"scoring\.seed 3: each run scores by its own seed"):
        SimulationConfig(scoring=ScoringConfig(seed=3))


def test_queries_of_any_length_have_a_folder(tmp_path):
    query = "egl:k=2,parameters=" + "+".join(["output"] * 60)
    rows = simulate(Learner(), tmp_path, queries=[query])
    assert {row["strategy"] for row in rows} == {"base", "whole", query}


def test_shares_are_parts():
    with pytest.raises(RequestError, match="shares"):
        SimulationConfig(shares=(0.0, 1.5))


def test_queries_are_parsed():
    folders = Query.parse("committee:models=out/a+out/b/per_second")
    assert (folders.strategy, folders.per_second) == ("committee:models=out/a+out/b", True)
    query = Query.parse("egl:weights=raw,k=4/per_second/k-centre")
    assert (query.strategy, query.method) == ("egl:weights=raw,k=4", "k-centre")
    assert query.per_second
    assert query.selection(3).column == "egl:weights=raw,k=4"


@pytest.mark.parametrize("target", ["os:path", "speechkit.errors:JobError", "speechkit.no:x"])
def test_a_learner_is_one_of_ours(target):
    with pytest.raises(RequestError, match="learner"):
        load_learner(target)


def test_the_verb(tmp_path, monkeypatch):
    import sys

    from speechkit import manifests
    from speechkit.active_learning import simulate as _  # noqa: F401

    module = sys.modules["speechkit.active_learning.simulate"]
    learner = Learner()
    monkeypatch.setattr(module, "load_learner", lambda target: learner)
    parts = split(0)
    paths = {name: tmp_path / f"{name}.jsonl" for name in ("base", "pool", "test")}
    for name, path in paths.items():
        manifests.write(getattr(parts, name), path)
    config = SimulationConfig(shares=(0.0, 0.5))
    run("speechkit.x:y", **paths, out=tmp_path / "out", queries=["random"], seeds=1, config=config)
    shares = [
        row["share"]
        for seeds in Results.read([tmp_path / "out"]).cells.values()
        for cells in seeds.values()
        for row in cells.values()
    ]
    assert np.allclose(sorted(shares), [0, 0.5])
