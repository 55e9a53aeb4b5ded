"""The files of an evaluation hold the figures."""

import json

import pytest

from speechkit.asr.confidence import reliability
from speechkit.asr.evaluation_report import write_evaluation
from speechkit.asr.scoring import Transcript, score


def test_report_and_alignments(tmp_path):
    scored = score(
        [
            Transcript("u1", "the cat | sat", "the cat sat", "s1"),
            Transcript("u2", "zoë", "zo", None),
            Transcript("u3", "", "uh", "s1"),
        ]
    )
    write_evaluation(
        tmp_path,
        scored,
        title="Some model",
        about={"seed": 3, "decoder": "greedy"},
        notes=["few clips"],
        reliability=reliability([0.2, 0.9, 0.95], [False, True, True]),
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["wer"] == scored.words.rate == 3 / 5
    assert report["cer"] == scored.characters.rate
    assert report["wer_low"] <= report["wer"] <= report["wer_high"]
    assert report["words"] == {
        "reference": 5,
        "substitutions": 1,
        "deletions": 1,
        "insertions": 1,
    }
    assert report["decoder"] == "greedy"
    assert [row["speaker"] for row in report["speakers"]] == [None, "s1"]
    assert report["commonest"]["delete"] == [{"reference": "|", "hypothesis": None, "times": 1}]
    assert report["reliability"]["error"] == pytest.approx((0.2 + 2 * 0.075) / 3)

    rows = [json.loads(line) for line in (tmp_path / "utterances.jsonl").open()]
    assert [row["id"] for row in rows] == ["u1", "u2", "u3"]
    assert rows[1]["alignment"] == [["substitute", "zoë", "zo"]]
    assert rows[2]["words"]["insertions"] == 1

    markdown = (tmp_path / "report.md").read_text()
    assert "| WER | 60.00% |" in markdown
    assert "- few clips" in markdown
    assert "\\|" in markdown
    assert (tmp_path / "reliability.png").stat().st_size > 1000


def test_nothing_to_report(tmp_path):
    write_evaluation(tmp_path, score([]), title="Nothing", about={})
    assert json.loads((tmp_path / "report.json").read_text())["wer"] == 0
    assert (tmp_path / "utterances.jsonl").read_text() == ""
    assert not (tmp_path / "reliability.png").exists()
