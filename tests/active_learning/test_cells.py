"""Cells that are carried: measured once, wherever; never mixed, never lost."""

import json
import re

import pytest

from speechkit.active_learning.cells import Cells
from speechkit.active_learning.jsonl import read_rows
from speechkit.errors import RequestError

ROW = {"strategy": "egl", "seed": 0, "share": 0.2, "wer": 0.5}


def cells(out, carried=None, **settings):
    found = Cells(out, settings, carried)
    found.claim()
    return found


def test_a_row_says_where_it_comes_from(tmp_path):
    kept = cells(tmp_path, heard_h=2).add("a", ROW)
    assert ROW.items() <= kept.items()
    assert kept["cell"] == "a"
    assert kept["commit"] is None or re.fullmatch(r"[0-9a-f]{7,}\+?", kept["commit"])
    assert read_rows(tmp_path / "results.jsonl") == [kept]


def test_cells_go_from_folder_to_folder(tmp_path):
    file = tmp_path / "carried.jsonl"
    first = cells(tmp_path / "here", file)
    first.add("a", ROW)
    first.add("b", ROW | {"seed": 1})
    second = cells(tmp_path / "there", file)
    assert "a" in second
    assert "c" not in second
    second.add("c", ROW | {"share": 0.4})
    assert [row["cell"] for row in read_rows(file)] == ["a", "c", "b"]
    # what one folder lacks stays in the file
    cells(tmp_path / "here").add("d", ROW | {"seed": 2})
    cells(tmp_path / "fresh", file)
    assert [row["cell"] for row in read_rows(file)] == ["a", "c", "b"]
    assert [row["cell"] for row in cells(tmp_path / "here", file).collect()] == list("acbd")
    assert [row["cell"] for row in read_rows(file)] == list("acbd")


def test_rows_of_other_settings_are_refused(tmp_path):
    file = tmp_path / "carried.jsonl"
    cells(tmp_path / "here", file, heard_h=2).add("a", ROW)
    with pytest.raises(RequestError, match="row 1: is of other settings"):
        cells(tmp_path / "there", file, heard_h=3)
    with pytest.raises(RequestError, match="holds a run with other settings"):
        cells(tmp_path / "here", heard_h=3)


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"cell": "a", "strat', "if the file was cut"), ('{"wer": 1}\n', "is no cell of a study")],
)
def test_what_is_no_row_is_refused(text, message, tmp_path):
    file = tmp_path / "carried.jsonl"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        cells(tmp_path / "out", file)
    assert file.read_text() == text


def test_what_a_kill_left_half_written_does_no_harm(tmp_path):
    kept = cells(tmp_path).add("a", ROW)
    (tmp_path / "cells/.tmp-1-b.json").write_text('{"cell": "b"')
    assert cells(tmp_path).collect() == [kept]


def test_an_empty_file_is_a_beginning(tmp_path):
    file = tmp_path / "carried.jsonl"
    file.touch()
    cells(tmp_path / "out", file).add("a", ROW)
    assert json.loads(file.read_text())["cell"] == "a"
