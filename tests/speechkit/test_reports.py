import json

import pytest

from speechkit import __version__
from speechkit.reports import markdown_table, provenance, short_names, write_report


def test_a_report_is_both_files_and_json_comes_last(tmp_path, monkeypatch):
    write_report(tmp_path / "out", {"frr": 0.25}, "# Title\n\n")
    assert json.loads((tmp_path / "out/report.json").read_text()) == {"frr": 0.25}
    assert (tmp_path / "out/report.md").read_text() == "# Title\n"
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "broken", {"frr": float("nan")}, "text")
    assert not (tmp_path / "broken/report.json").exists()


def test_provenance_says_what_it_takes_to_repeat(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/bin/speechkit", "kws", "train"])
    known = provenance(seed=3, data={"dev": "0123456789abcdef"})
    assert json.loads(json.dumps(known, allow_nan=False)) == known
    assert known["seed"] == 3
    assert known["speechkit"] == __version__
    assert known["data"] == {"dev": "0123456789abcdef"}
    assert known["command"][1:] == ["kws", "train"]
    assert set(known["versions"]) >= {"torch", "numpy", "lhotse"}
    assert {"written", "python", "device", "machine", "threads"} <= set(known)


def test_a_table():
    assert markdown_table(("name", "value"), [("a|b", 1), (None, 0.5), ("", "x")]).split("\n") == [
        "| name | value |",
        "| --- | --- |",
        "| a\\|b | 1 |",
        "| - | 0.5 |",
        "|  | x |",
    ]


def test_a_table_without_rows_has_its_header():
    assert markdown_table(["only"], []) == "| only |\n| --- |"


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["out/a", "out/b/"], ["a", "b"]),
        (["one/a", "two/a", "b"], ["one/a", "two/a", "b"]),
        ([], []),
    ],
)
def test_folders_are_called_by_their_own_names_where_these_tell_them_apart(folders, names):
    assert short_names(folders) == dict(zip(folders, names, strict=True))
