import json

import numpy as np
import pytest

from speechkit import cli
from speechkit.active_learning.blocks import commit, cut_blocks, finish
from speechkit.active_learning.compare import ComparisonConfig, compare
from speechkit.active_learning.joined_scores import read_joined
from speechkit.active_learning.jsonl import write_rows
from speechkit.errors import RequestError

SHARES = (0.05, 0.1, 0.2, 0.4)


def cell(strategy, seed, share, wer):
    return {
        "strategy": strategy,
        "seed": seed,
        "share": share,
        "clips": round(100 * share),
        "seconds": 300 * share,
        "wer": wer,
        "cer": wer / 3,
        "cell": f"{strategy}-{seed}-{share}",
    }


def results(seeds=6):
    """Random's error is 0.8 - share; egl needs half of the labels; worst is always worse."""
    rows = []
    for seed in range(seeds):
        luck = 0.02 * np.random.default_rng(seed).normal()
        rows += [cell("base", seed, 0.0, 0.8 + luck), cell("base", seed, 1.0, 0.1 + luck)]
        for share in SHARES:
            rows.append(cell("random", seed, share, 0.8 - share + luck))
            rows.append(cell("egl", seed, share, 0.8 - min(2 * share, 0.65) + luck))
            rows.append(cell("worst", seed, share, 0.9 + luck))
    return rows


def run(tmp_path, rows, name="run", **more):
    write_rows(tmp_path / name / "results.jsonl", rows)
    config = ComparisonConfig(draws=200, **more.pop("config", {}))
    compare([tmp_path / name], out=tmp_path / "out", config=config, **more)
    return json.loads((tmp_path / "out/report.json").read_text())


def by_name(report, metric="wer"):
    return {row["strategy"]: row for row in report["metrics"][metric]["against_baseline"]}


def test_the_verdict(tmp_path):
    report = run(tmp_path, results())
    rows = by_name(report)
    assert rows["egl"]["saving"]["saving"] == pytest.approx(0.5)
    assert rows["egl"]["saving"]["interval"]["low"] == pytest.approx(0.5)
    assert rows["egl"]["reduction"]["value"] == pytest.approx(0.2 / 0.6, abs=0.02)
    assert rows["egl"]["share"] == list(SHARES)
    at = rows["egl"]["share"].index(0.2)
    assert rows["egl"]["reductions"][at] == rows["egl"]["reduction"]
    assert rows["egl"]["error_p"] == pytest.approx(2 / 64)
    assert rows["egl"]["error_p_holm"] == pytest.approx(4 / 64)
    assert rows["egl"]["area"]["value"] < rows["egl"]["baseline_area"]["value"]
    assert rows["worst"]["saving"]["censored"] == "at most"
    assert rows["worst"]["saving"]["saving"] is None
    curves = report["metrics"]["wer"]["curves"]
    # at shares 0 and 1 nothing is chosen, so all have the base's model
    assert curves["random"]["share"] == curves["egl"]["share"] == [0.0, *SHARES, 1.0]
    text = (tmp_path / "out/report.md").read_text()
    assert "50.0% [50.0%, 50.0%]" in text
    assert (tmp_path / "out/wer.png").stat().st_size > 5000
    assert (tmp_path / "out/cer.png").exists()
    assert (tmp_path / "out/difference_wer.png").stat().st_size > 5000


def test_a_baseline_without_errors_and_a_single_seed(tmp_path):
    """Nothing is a part of no errors, and one seed says nothing of others: gaps, not a crash."""
    rows = results()
    for row in rows:
        if row["strategy"] == "random" and row["share"] == 0.4:
            row["wer"] = 0.0
    report = run(tmp_path, rows)
    assert by_name(report)["egl"]["reductions"][-1]["value"] is None
    assert (tmp_path / "out/difference_wer.png").exists()
    alone = run(tmp_path, results(seeds=2)[: len(results(seeds=1))], name="alone")
    curve = alone["metrics"]["wer"]["curves"]["egl"]
    assert curve["low"] == [None] * len(curve["x"])
    assert (
        "[" not in (tmp_path / "out/report.md").read_text().split("| egl | 1 |")[-1].split("|")[2]
    )


def test_labels_can_be_counted_in_seconds(tmp_path):
    rows = results()
    for row in rows:
        row["seconds"] *= 2 if row["strategy"] == "egl" else 1
    report = run(tmp_path, rows, config={"axis": "seconds"})
    # twice as good a clip that lasts twice as long saves nothing
    saving = by_name(report)["egl"]["saving"]
    assert by_name(report)["egl"]["x"] == pytest.approx(120)
    assert saving["equal_x"] == pytest.approx(120)
    assert saving["saving"] == pytest.approx(0, abs=1e-9)


def test_curves_that_end_at_different_seconds_compare_where_both_reach(tmp_path):
    """Errors follow seconds alone; one strategy takes short clips, another long ones."""
    lengths = {"random": 1.0, "egl": 0.5, "worst": 3.0}
    rows = [row for row in results() if row["share"] < 1]
    for row in rows:
        row["seconds"] *= lengths.get(row["strategy"], 1.0)
        row["wer"] = 0.8 - row["seconds"] / 1000 + row["seed"] / 100
    report = run(tmp_path, rows, config={"axis": "seconds", "at": 0.1})
    found = by_name(report)
    for name in ("egl", "worst"):
        assert found[name]["area"]["value"] == pytest.approx(found[name]["baseline_area"]["value"])
    assert found["egl"]["share"] == list(SHARES)
    assert found["worst"]["share"] == [0.05, 0.1]
    # without a model before any label, curves begin at different seconds too
    rows = [row for row in rows if row["strategy"] != "base"]
    report = run(tmp_path, rows, name="later", config={"axis": "seconds", "at": 0.1})
    assert by_name(report)["egl"]["share"] == [0.1, 0.2, 0.4]


def test_shares_of_equal_seconds_are_no_curve_over_seconds(tmp_path):
    rows = results()
    for row in rows:
        if row["strategy"] == "egl" and row["share"] == 0.1:
            row["seconds"] = 300 * 0.05
    report = run(tmp_path, rows, config={"axis": "seconds"})
    assert set(report["metrics"]["wer"]["curves"]) == {"random", "worst"}
    assert any(
        "egl: shares 0.05 and 0.1 hold the same seconds" in note
        for note in report["metrics"]["wer"]["notes"]
    )


def test_a_measure_that_is_no_number_leaves_the_others(tmp_path):
    rows = results()
    path = tmp_path / "run" / "results.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row | {"loss": float("nan")}) + "\n" for row in rows))
    compare([path], out=tmp_path / "out", metrics=["wer"], config=ComparisonConfig(draws=50))
    assert by_name(json.loads((tmp_path / "out/report.json").read_text()))["egl"]["error_p"] < 0.05


def test_unfinished_seeds_are_left_out_and_named(tmp_path):
    rows = [r for r in results() if (r["strategy"], r["seed"], r["share"]) != ("egl", 2, 0.4)]
    rows += [cell("late", 0, 0.2, 0.5)]
    report = run(tmp_path, rows)
    assert by_name(report)["egl"]["seeds"] == 5
    assert by_name(report)["worst"]["seeds"] == 6
    notes = report["metrics"]["wer"]["notes"]
    assert "egl: seeds 2 lack some shares, left out" in notes
    assert any(note.startswith("late: 1 whole seeds") for note in notes)


def test_what_cannot_be_compared_there_is_named(tmp_path):
    report = run(tmp_path, [r for r in results() if r["share"] < 1], config={"at": 0.9})
    assert report["metrics"]["wer"]["against_baseline"] == []
    (note, _) = report["metrics"]["wer"]["notes"]
    assert note.startswith("egl: cannot be compared (share 0.9: it has [0.0,")


def test_repeated_rows_count_once_and_contradictions_are_refused(tmp_path):
    assert by_name(run(tmp_path, results() * 2))["egl"]["seeds"] == 6
    with pytest.raises(RequestError, match=r"egl, seed 0, share 0\.05 is there with other"):
        run(tmp_path, [*results(), cell("egl", 0, 0.05, 0.123)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {"baseline": "chance"}}, "not among the strategies"),
        ({"metrics": ["mos"]}, "the results hold cer, wer"),
        ({"rows": []}, "no results"),
        ({"rows": [{"strategy": "x"}]}, "row 1: needs strategy, seed and share"),
        ({"rows": [cell("random", 0, 1.5, 0.1)]}, "must be 0 to 1"),
        ({"rows": [cell("random", 0, 0.5, 0.1) | {"wer": None, "cer": None}]}, r"\(none\)"),
    ],
)
def test_wrong_requests(tmp_path, change, message):
    rows = change.pop("rows", None)
    with pytest.raises(RequestError, match=message):
        run(tmp_path, results() if rows is None else rows, **change)


def test_scores_and_selections(tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        f"{i:02d}": {
            "id": f"{i:02d}",
            "duration_s": float(i + 1),
            "status": "ok" if i else "failed",
            "error": None if i else "broken",
            "egl": float(i * i) if i else None,
            "egl_k": 16,
            "egl_beam_mass": 0.5 + i / 100,
            "noise": float(rng.normal()),
            "speaker": f"s{i % 3}",
            "snr_db": float(i),
        }
        for i in range(30)
    }
    blocks = cut_blocks(rows, size=7)
    for block in blocks:
        commit(block, [rows[id_] for id_ in block.ids], tmp_path / "scores")
    finish(blocks, tmp_path / "scores")
    write_rows(tmp_path / "long/selection.jsonl", [rows["29"], rows["28"]])
    report = run(tmp_path, results(), scores=[tmp_path / "scores"], selections=[tmp_path / "long"])
    found = report["correlations"]
    at = found["columns"].index
    assert found["clips"] == 29
    assert found["columns"] == ["duration_s", "egl", "noise", "snr_db"]
    assert found["spearman"][at("egl")][at("duration_s")] == pytest.approx(1)
    assert found["top_overlap"][at("egl")][at("snr_db")] == 1
    made_of = report["selections"]
    assert made_of["pool"]["clips"] == 30
    assert made_of[str(tmp_path / "long")]["duration, median (s)"] == 29.5
    assert made_of[str(tmp_path / "long")]["speakers"] == 2
    assert (tmp_path / "out/correlations.png").stat().st_size > 5000
    assert "What was selected" in (tmp_path / "out/report.md").read_text()
    report = run(tmp_path, results(), selections=[tmp_path / "long"])
    assert report["selections"][str(tmp_path / "long")]["seconds"] == 59
    # the first row need not know the speaker, and nothing need be selected
    bare = {name: rows["29"][name] for name in ("id", "duration_s")}
    write_rows(tmp_path / "long/selection.jsonl", [bare, rows["28"], rows["27"]])
    write_rows(tmp_path / "none/selection.jsonl", [])
    folders = [tmp_path / "long", tmp_path / "none"]
    made_of = run(tmp_path, results(), selections=folders)["selections"]
    assert made_of[str(folders[0])]["speakers"] == 2
    assert made_of[str(folders[1])] == {"clips": 0, "seconds": 0.0}


def test_scores_written_apart_are_joined(tmp_path):
    def write(name, ids, status, **columns):
        rows = {
            id_: {"id": id_, "duration_s": 1.0, "status": status.get(id_, "ok"), "error": None}
            | {column: float(number) for column, number in columns.items()}
            for id_ in ids
        }
        blocks = cut_blocks(rows, size=3)
        for block in blocks:
            commit(block, [rows[id_] for id_ in block.ids], tmp_path / name)
        finish(blocks, tmp_path / name)

    write("scores/1", "abcd", {"b": "failed"}, egl=1)
    write("scores/2", "abcd", {"c": "failed"}, entropy=2, egl=9)
    joined = read_joined([tmp_path / "scores"])
    assert joined["id"].to_pylist() == list("abcd")
    assert joined["status"].to_pylist() == ["ok", "failed", "failed", "ok"]
    assert set(joined["egl"].to_pylist()) == {1.0}
    assert set(joined["entropy"].to_pylist()) == {2.0}
    assert joined.equals(read_joined([tmp_path / "scores/1", tmp_path / "scores/2"]))
    write("other", "abce", {}, margin=1)
    with pytest.raises(RequestError, match="scores of other clips"):
        read_joined([tmp_path / "scores", tmp_path / "other"])
    with pytest.raises(RequestError, match="holds no scores"):
        read_joined([tmp_path / "nothing"])


def test_as_a_verb(tmp_path, capsys):
    write_rows(tmp_path / "r.jsonl", results(3))
    verb = cli.Verb("speechkit.active_learning.compare:compare", "compare", ("runs",))
    out = tmp_path / "out"
    words = [str(tmp_path / "r.jsonl"), "--out", str(out), "--test", "t", "--draws", "50"]
    assert cli._run(verb, words, prog="speechkit al compare") == 0
    assert json.loads((out / "report.json").read_text())["comparison"]["test"] == "t"
    (tmp_path / "r.jsonl").write_text('{"strategy": "ra')
    with pytest.raises(RequestError, match="line 1: is no JSON"):
        cli._run(verb, words, prog="speechkit al compare")


def test_rows_of_two_studies_are_refused(tmp_path):
    rows = [row | {"settings": "aa"} for row in results()]
    rows[-1] = rows[-1] | {"settings": "bb"}
    with pytest.raises(RequestError, match=r"different settings: aa \(.*; bb \("):
        run(tmp_path, rows)
