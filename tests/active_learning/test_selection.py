import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.active_learning.budget import AnnotationCost, Budget
from speechkit.active_learning.diversity import clusters
from speechkit.active_learning.keyed import keys_of, uniforms
from speechkit.active_learning.selection import METHODS, SelectionConfig, choose
from speechkit.errors import RequestError

every_method = pytest.mark.parametrize("method", METHODS)
BUDGETS = ["7", "20s", "cost:300"]


def table_of(rows):
    plain = {"status": "ok", "error": None, "duration_s": 1.0, "egl": 1.0, "embedding": [0.0, 0.0]}
    return pa.Table.from_pylist([plain | row for row in rows])


def pool(count=40, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "id": f"{i:03d}",
            "duration_s": float(np.round(rng.uniform(0.5, 6), 2)),
            "egl": float(rng.gamma(2.0)),
            "embedding": rng.normal(size=3).tolist(),
        }
        for i in range(count)
    ]


def pick(rows, budget, method="top", labelled=(), unfit=None, **config):
    config = SelectionConfig(method=method, **config)
    table = table_of(rows) if rows else table_of([{"id": "x"}]).slice(0, 0)
    return choose(table, Budget.parse(budget), config=config, labelled=labelled, unfit=unfit)


@every_method
@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("per_second", [False, True])
def test_contract(method, budget, per_second):
    rows = pool()
    first = pick(rows, budget, method, per_second=per_second)
    amount = Budget.parse(budget).amount
    costs = [p.cost for p in first.picks]
    assert 0 < sum(costs) <= amount * (1 + 1e-9)
    assert first.unused == pytest.approx(amount - sum(costs), abs=1e-9)
    assert [p.rank for p in first.picks] == list(range(1, len(costs) + 1))
    assert [p.cumulative_cost for p in first.picks] == pytest.approx(
        list(itertools.accumulate(costs))
    )
    assert len(set(first.ids)) == len(first.ids)
    # what is left over would fit nothing more
    least = Budget.parse(budget).costs(
        np.array([row["duration_s"] for row in rows if row["id"] not in first.ids])
    )
    assert least.min() > first.unused - 1e-6
    again = pick(rows[::-1], budget, method, per_second=per_second)
    assert again == first
    for other in ("top", "k-centre"):
        if method == other:
            assert pick(rows, budget, method, per_second=per_second, seed=1) == first
            break
    else:
        assert pick(rows, budget, method, per_second=per_second, seed=1).ids != first.ids


@every_method
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_pool_keeps_the_budget(method, data):
    rows = data.draw(
        st.lists(
            st.builds(
                lambda id_, d, u, e: {"id": id_, "duration_s": d, "egl": u, "embedding": [e, 0.0]},
                st.text(max_size=3),
                st.sampled_from([0.0, 0.1, 0.3, 1.0, 100.0]),
                st.sampled_from([0.0, 1.0, 1e-300, 1e12, float("nan"), float("inf")]),
                st.sampled_from([0.0, 1.0, 1e6]),
            ),
            unique_by=lambda row: row["id"],
            max_size=12,
        )
    )
    budget = data.draw(st.sampled_from(["1", "3", "0.5s", "1.3s", "cost:7"]))
    found = pick(rows, budget, method)
    assert found == pick(data.draw(st.permutations(rows)), budget, method)
    assert sum(p.cost for p in found.picks) <= Budget.parse(budget).amount + 1e-6
    assert set(found.ids).isdisjoint(found.skipped)
    assert all(np.isfinite(p.utility) for p in found.picks)


@every_method
def test_an_empty_pool_gives_an_empty_selection(method):
    found = pick([], "5", method)
    assert (found.ids, found.unused, found.skipped) == ([], 5, {})


@every_method
def test_one_clip(method):
    assert pick([{"id": "a"}], "5", method).ids == ["a"]


@every_method
def test_failed_and_unusable_clips_are_never_picked(method):
    rows = [
        {"id": "a", "status": "failed", "error": "broken file", "egl": None, "embedding": None},
        {"id": "b", "egl": float("nan")},
        {"id": "c", "egl": None},
        {"id": "d", "egl": float("inf")},
        {"id": "e", "duration_s": 9.0},
        {"id": "f"},
        {"id": "g"},
        {"id": "h"},
    ]
    found = pick(rows, "5s", method, labelled={"f", "elsewhere"}, unfit={"g": "silent: -90 dBFS"})
    assert found.ids == ["h"]
    assert found.skipped["a"] == "failed: broken file"
    assert found.reasons() == {
        "failed": 1,
        "not finite": 3,
        "longer than the budget": 1,
        "labelled": 1,
        "silent": 1,
    }
    found = pick(rows[:1], "5s", method)
    assert (found.ids, found.unused) == ([], 5)


@every_method
def test_all_failed_even_without_a_column(method):
    table = pa.table({"id": ["a"], "duration_s": [1.0], "status": ["failed"], "error": ["x"]})
    config = SelectionConfig(method=method)
    assert choose(table, Budget("clips", 1), config=config).reasons() == {"failed": 1}


@every_method
def test_ties_and_equal_clips(method):
    rows = [{"id": f"{i}"} for i in range(9)]
    found = pick(rows, "4", method)
    assert len(found.ids) == 4
    if method in ("top", "k-centre"):
        assert found.ids == ["0", "1", "2", "3"]
    assert len(pick([row | {"egl": 0.0} for row in rows], "4", method).ids) == 4


@every_method
@pytest.mark.parametrize("scale", [1e-323, 1e-312, 1e-300, 1e300])
def test_utilities_of_any_size_choose_each_clip_once(method, scale):
    rows = [row | {"egl": (i + 1) * scale} for i, row in enumerate(pool(6))]
    found = pick(rows, "4", method, weights="utility")
    assert len(set(found.ids)) == 4
    if scale == 1e-300:
        assert found.ids == pick([r | {"egl": r["egl"] / scale} for r in rows], "4", method).ids


@every_method
def test_repeated_ids_are_refused(method):
    with pytest.raises(RequestError, match=r"ids occur more than once \(a\)"):
        pick([{"id": "a"}, {"id": "a"}], "1", method)


def test_higher_is_picked_first_and_what_overflows_is_passed_over():
    rows = [
        {"id": name, "egl": egl, "duration_s": d}
        for name, egl, d in [("a", 3.0, 6.0), ("b", 9.0, 5.0), ("c", 2.0, 2.0), ("d", 1.0, 3.0)]
    ]
    found = pick(rows, "9s")
    assert found.ids == ["b", "c"]
    assert found.skipped == {"a": "did not fit the rest of the budget"}
    assert found.unused == pytest.approx(2)
    assert found.seconds == 7
    assert pick(rows, "9s", per_second=True).ids == ["b", "c"]
    assert pick(rows, "9s", "top", per_second=True).picks[0].utility == pytest.approx(9 / 5)


def test_budgets_of_decimal_fractions_are_filled():
    rows = [{"id": f"{i}", "duration_s": 0.1} for i in range(20)]
    assert len(pick(rows, "1s").ids) == 10
    cost = Budget.parse("cost:1", annotation=AnnotationCost(fixed=0, per_second=1))
    assert len(choose(table_of(rows), cost).ids) == 10


@pytest.mark.parametrize("method", ["proportional", "kmeans++"])
def test_first_picks_are_as_frequent_as_their_scores(method):
    rows = [{"id": f"{i}", "egl": float(i)} for i in range(5)]
    firsts = [pick(rows, "1", method, seed=seed).ids[0] for seed in range(1500)]
    share = np.array([firsts.count(f"{i}") for i in range(5)]) / 1500
    assert share[0] == 0
    assert np.abs(share - np.arange(5) / 10).max() < 3.5 * np.sqrt(0.25 / 1500)


def test_second_picks_of_kmeans_are_as_frequent_as_squared_distances():
    rows = [{"id": f"{i}", "embedding": [x, 0.0]} for i, x in enumerate([0.0, 1.0, 3.0])]
    pairs = [pick(rows, "2", "kmeans++", weights="uniform", seed=s).ids for s in range(1500)]
    after_first = [b for a, b in pairs if a == "0"]
    assert len(after_first) > 400
    assert after_first.count("2") / len(after_first) == pytest.approx(0.9, abs=0.05)


def test_a_draw_is_the_clips_own():
    # leaving out a clip that is not drawn changes nothing
    rows = pool(30)
    drawn = pick(rows, "6", "proportional").ids
    left = next(row for row in rows if row["id"] not in drawn)
    assert pick([row for row in rows if row is not left], "6", "proportional").ids == drawn


@pytest.mark.parametrize("method", ["kmeans++", "k-centre"])
def test_diverse_picks_take_one_of_each_heap(method):
    rng = np.random.default_rng(3)
    rows = [
        {"id": f"{i:02d}", "embedding": (100.0 * np.eye(4)[i % 4] + rng.normal(size=4)).tolist()}
        for i in range(40)
    ]
    found = pick(rows, "4", method)
    assert sorted(int(id_) % 4 for id_ in found.ids) == [0, 1, 2, 3]


def test_a_shortlist_bounds_what_diverse_methods_look_at():
    rows = pool()
    best = sorted(rows, key=lambda row: -row["egl"])[:5]
    found = pick(rows, "5", "k-centre", shortlist=1)
    assert set(found.ids) == {row["id"] for row in best}


def test_weights():
    rows = [{"id": f"{i}", "egl": -float(i)} for i in range(4)]
    for method in ("proportional", "kmeans++"):
        with pytest.raises(RequestError, match="weigh by rank"):
            pick(rows, "2", method)
        assert len(pick(rows, "2", method, weights="rank").ids) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"column": "entropy"}, "there are duration_s, egl"),
        ({"column": "id"}, "holds no numbers"),
        ({"method": "best"}, "there are top"),
        ({"method": "kmeans++", "embedding": "sketch"}, "needs a column 'sketch'"),
        ({"shortlist": 0.5}, "shortlist"),
        ({"column": "margin", "per_second": True}, "'margin': reaches below 0"),
    ],
)
def test_wrong_requests(config, message):
    with pytest.raises(RequestError, match=message):
        pick([{"id": "a", "margin": -1.0}], "1", **config)


def test_embeddings_of_unequal_length():
    with pytest.raises(RequestError, match=r"\[1, 2\] numbers"):
        pick([{"id": "a"}, {"id": "b", "embedding": [1.0]}], "1", "k-centre")


def test_clusters_find_heaps():
    points = np.array([[0.0], [9.0], [0.1], [9.1], [0.2]])
    assert clusters(points, 2).tolist() == [0, 1, 0, 1, 0]
    assert clusters(points[:0], 2).tolist() == []
    assert clusters(points, 99).max() == 4


def test_keyed_numbers_are_uniform_and_independent():
    keys = keys_of((str(i) for i in range(4000)), seed=5)
    a, b = uniforms(keys), uniforms(keys, step=1)
    assert 0 < a.min() < a.max() < 1
    assert abs(a.mean() - 0.5) < 3.5 / np.sqrt(12 * 4000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert not np.array_equal(a, uniforms(keys_of(map(str, range(4000)), seed=6)))
