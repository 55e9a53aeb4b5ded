"""Evaluations of the same utterances beside each other."""

import json

import pytest

from speechkit.asr.compare import compare
from speechkit.asr.evaluation_report import write_evaluation
from speechkit.asr.scoring import Transcript, score
from speechkit.errors import RequestError


def evaluated(folder, hypotheses):
    said = {"u1": "one\u2028two", "u2": "three", "u3": "four five six"}
    transcripts = [Transcript(id_, said[id_], text) for id_, text in hypotheses.items()]
    write_evaluation(folder, score(transcripts), title="A model", about={})
    return folder


def test_each_is_compared_with_the_first(tmp_path, capsys):
    poor = evaluated(tmp_path / "poor", {"u1": "one", "u2": "tree", "u3": "four five"})
    good = evaluated(tmp_path / "good", {"u3": "four five six", "u1": "one two", "u2": "tree"})
    compare(reports=[poor, good, poor], out=tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    first, second, third = report["compared"]
    assert [row["words"]["rate"] for row in (first, second)] == [3 / 6, 1 / 6]
    assert second["words"]["value"] == pytest.approx(-2 / 6)
    assert second["words"]["interval"]["low"] <= -2 / 6 <= second["words"]["interval"]["high"]
    assert second["characters"]["value"] < 0
    assert third["words"]["value"] == 0
    said = capsys.readouterr().out
    assert said.strip() == (tmp_path / "out" / "report.md").read_text().strip()
    assert "| 50.00% | - |" in said
    assert "| 16.67% | -33.33 (" in said


def test_a_report_of_no_text_is_named(tmp_path):
    whole = evaluated(tmp_path / "whole", {"u1": "one two"})
    other = evaluated(tmp_path / "other", {"u1": "one two"})
    (other / "utterances.jsonl").write_bytes(b"\xff")
    with pytest.raises(RequestError, match="cannot be read"):
        compare(reports=[whole, other])


def test_what_cannot_be_compared(tmp_path):
    whole = evaluated(tmp_path / "whole", {"u1": "one two", "u2": "three"})
    part = evaluated(tmp_path / "part", {"u1": "one two"})
    with pytest.raises(RequestError, match="seed -1: give 0 or more"):
        compare(reports=[whole, whole], seed=-1)
    with pytest.raises(RequestError, match="1 report: give two"):
        compare(reports=[whole])
    with pytest.raises(RequestError, match="different utterances"):
        compare(reports=[whole, part])
    with pytest.raises(RequestError, match=r"no utterances\.jsonl.*asr evaluate"):
        compare(reports=[whole, tmp_path])
    (part / "utterances.jsonl").write_text('{"id": "u1", "refer')
    with pytest.raises(RequestError, match="line 1: not an utterance"):
        compare(reports=[whole, part])
