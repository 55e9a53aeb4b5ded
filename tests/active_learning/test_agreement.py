"""Forms against each other: the reference with itself, what resumes, what cannot be ranked."""

import pytest

from speechkit.active_learning.agreement import OTHERS, agreement, markdown
from speechkit.errors import RequestError
from tests.active_learning.helpers import TinyRecogniser, cut_of, pool_of

GRID = ("weights=raw,k=1", "weights=renorm,k=4", "weights=stratified,k=4")


def found(cuts, folder, **changes):
    words = {"grid": GRID, "reference": "weights=stratified,k=16", **changes}
    return agreement(cuts, TinyRecogniser(), parameters="output", folder=folder, **words)


def test_a_row_a_form(tmp_path):
    report = found(pool_of(12), tmp_path)
    assert [row["form"] for row in report["rows"]] == [*GRID, "weights=stratified,k=16"]
    last = report["rows"][-1]
    assert (last["reference"], last["ratio"]) == (pytest.approx(1), pytest.approx(1))
    assert {*OTHERS, "true_gradient"} <= last.keys()
    raw, renormalised, _, _ = report["rows"]
    assert raw["beam_mass"] < renormalised["beam_mass"] < 1
    assert raw["ratio"] < renormalised["ratio"]
    table = markdown(report)
    assert table.startswith("Spearman over 12 clips, gradients of output")
    assert len(table.splitlines()) == 2 + 2 + 4


def test_it_resumes_from_its_scores(tmp_path):
    report = found(pool_of(6), tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert found(pool_of(6), tmp_path) == report
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == stamps


def test_clips_that_fail_are_left_out(tmp_path):
    cuts = [*pool_of(6), cut_of("broken", broken=True)]
    assert found(cuts, tmp_path / "some")["clips"] == 6
    with pytest.raises(RequestError, match="fewer than three"):
        found([cut_of(f"b{i}", broken=True) for i in range(4)], tmp_path / "none")
