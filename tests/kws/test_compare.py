"""Spotters of the same clips beside each other, with known misses."""

import json

import numpy as np
import pytest

from speechkit.cli import main
from speechkit.errors import RequestError
from speechkit.kws.compare import compare
from speechkit.kws.events import onsets
from speechkit.kws.measure import Occurrence, Scored
from speechkit.kws.report import PIPELINE, SCORES, load_scored, save_scored
from speechkit.metrics import mcnemar_test, paired_difference_interval

KEY = ("computer", "5")


def heard(scores, alarms=(0.4,), *, hours=2.0, threshold=0.5, prefix="c"):
    """One keyword a score, one alarm each; all of them in one window."""
    occurrences = [
        Occurrence(f"{prefix}{i}", onsets(np.array([score]), 10), np.zeros(1))
        for i, score in enumerate(scores)
    ]
    negatives = [onsets(np.array([score]), 10) for score in alarms]
    return Scored(occurrences, negatives, hours, threshold)


def evaluated(folder, measured):
    folder.mkdir(parents=True)
    save_scored(folder / SCORES, measured)
    return folder


def rows(out):
    found = json.loads((out / "report.json").read_text())["rows"]
    return {(r["system"].rsplit("/", 1)[-1], r["keyword"], r["threshold_from"]): r for r in found}


def test_misses_are_counted_in_pairs(tmp_path, capsys):
    # dev: at 0.5 each; eval: one alarm is allowed, so above 0.4 and above 0.7
    one = evaluated(tmp_path / "one", {KEY: [heard([0.9, 0.45, 0.3, 0.8], [0.4, 0.2, 0.6])]})
    two = evaluated(tmp_path / "two", {KEY: [heard([0.9, 0.9, 0.2, 0.3], [0.7, 0.8])]})
    compare(systems=[one, two], out=tmp_path / "out")
    found = rows(tmp_path / "out")
    first, second = found["one", "computer", "eval"], found["two", "computer", "eval"]
    assert (first["misses"], first["false_alarms"], first["measured_fa_per_hour"]) == (1, 1, 0.5)
    assert (first["difference"], first["p"], first["status"]) == (None, None, "ok")
    assert (second["misses"], second["only_this"], second["only_first"]) == (2, 1, 0)
    assert second["difference"] == 1 / 4
    assert second["difference_low"] < 0 < 1 / 4 < second["difference_high"]
    frozen = found["two", "computer", "dev"]
    assert (frozen["misses"], frozen["only_this"], frozen["only_first"]) == (2, 1, 1)
    assert (frozen["difference"], frozen["p"], frozen["false_alarms"]) == (0, 1.0, 2)
    said = capsys.readouterr().out
    assert "| 50.00% (15.00% to 85.00%) | 2 of 4 | 50.00% |" in said
    assert "| +25.00 (" in said
    for name in ("report.md", "det.png", "snr.png"):
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_from_the_command_line(tmp_path, capsys):
    one = evaluated(tmp_path / "one", {KEY: [heard([0.9, 0.3])], ("computer", "0"): [heard([0.2])]})
    two = evaluated(tmp_path / "two", {KEY: [heard([0.9, 0.8])], ("computer", "0"): [heard([0.2])]})
    assert main(["kws", "compare", str(one), str(two), "--snr", "5"]) == 0
    said = capsys.readouterr().out
    assert said.count("| all | 5 |") == 4
    assert "| all | 0 |" not in said
    assert main(["kws", "compare", str(one)]) == 2
    assert "1 system: give two or more" in capsys.readouterr().err


def test_folds_and_words_are_pooled_each_at_its_own_threshold(tmp_path):
    def system(name, words, folds):
        folder = tmp_path / name
        evaluated(folder / "words", {("left", "5"): [heard(words, threshold=0.35)]})
        for number, scores in enumerate(folds):
            part = heard(scores, hours=1.0, prefix=f"f{number}-", threshold=0.5 + number / 10)
            evaluated(folder / f"fold-{number}", {KEY: [part]})
        return folder

    one = system("one", [0.9, 0.3], [[0.55], [0.55]])
    two = system("two", [0.9, 0.2], [[0.7], [0.7]])
    compare(systems=[one, two], out=tmp_path / "out", snr=["5"])
    found = rows(tmp_path / "out")
    folds = found["one", "computer", "dev"]
    assert (folds["misses"], folds["positives"], folds["negative_hours"]) == (1, 2, 2.0)
    whole = found["one", "all", "dev"]
    assert (whole["misses"], whole["positives"], whole["false_alarms"]) == (2, 4, 1)
    assert whole["mean_frr"] == (0.5 + 0.5) / 2
    better = found["two", "all", "dev"]
    assert (better["misses"], better["only_this"], better["only_first"]) == (1, 0, 1)
    assert better["mean_frr"] == (0.5 + 0.0) / 2
    assert "## By keyword" in (tmp_path / "out" / "report.md").read_text()


def test_a_target_that_is_not_reached_has_no_figure(tmp_path):
    one = evaluated(tmp_path / "one", {KEY: [heard([0.9], [1.0, 1.0], threshold=None)]})
    two = evaluated(tmp_path / "two", {KEY: [heard([0.9])]})
    compare(systems=[two, one], out=tmp_path / "out")
    found = rows(tmp_path / "out")
    for kind in ("eval", "dev"):
        row = found["one", "all", kind]
        assert (row["frr"], row["difference"], row["status"]) == (None, None, "not reached")
    assert found["two", "all", "eval"]["frr"] == 0


@pytest.mark.parametrize("lacking", [{"scores": []}, {"scores": [0.9], "hours": 0.0}])
def test_without_keywords_or_negatives_there_is_no_figure(tmp_path, lacking):
    one, two = (evaluated(tmp_path / name, {KEY: [heard(**lacking)]}) for name in ("one", "two"))
    compare(systems=[one, two], out=tmp_path / "out")
    assert {row["status"] for row in rows(tmp_path / "out").values()} == {"no data"}


def test_what_cannot_be_compared(tmp_path):
    one = evaluated(tmp_path / "one", {KEY: [heard([0.9, 0.8])]})
    fewer = evaluated(tmp_path / "fewer", {KEY: [heard([0.9])]})
    longer = evaluated(tmp_path / "longer", {KEY: [heard([0.9, 0.8], hours=3.0)]})
    clean = evaluated(tmp_path / "clean", {("computer", "clean"): [heard([0.9, 0.8])]})
    twice = evaluated(tmp_path / "twice", {KEY: [heard([0.9]), heard([0.9])]})
    two = evaluated(tmp_path / "two", {KEY: [heard([0.9, 0.7])]})
    evaluated(tmp_path / "unfinished" / "round-0", {KEY: [heard([0.9, 0.8])]})
    unfinished = tmp_path / "unfinished"
    (unfinished / PIPELINE).write_text("{}")
    (tmp_path / "empty").mkdir()
    for name, content in (("cut", (one / SCORES).read_bytes()[:200]), ("text", b"no scores")):
        (tmp_path / name).mkdir()
        (tmp_path / name / SCORES).write_bytes(content)
    (tmp_path / "old").mkdir()
    with np.load(one / SCORES) as arrays:
        older = {name: array for name, array in arrays.items() if "threshold" not in name}
    np.savez(tmp_path / "old" / SCORES, **older)
    for systems, options, message in (
        ([one, one], {}, "1 system: give two or more"),
        ([one, fewer], {}, r"heard other keywords of 'computer' at 5: 1, such as c1"),
        ([one, longer], {}, r"other negatives for 'computer' at 5: 3\.000 and 2\.000 hours"),
        ([one, clean], {}, "no keyword and condition that all have.*'computer' at clean"),
        ([one, fewer], {"snr": ["10"]}, "no keyword and condition"),
        ([one, twice], {}, "computer, 5: c0 is measured twice"),
        ([one, tmp_path / "empty"], {}, r"no scores\.npz in it, nor in a folder in it"),
        ([one, tmp_path / "cut"], {}, "cannot be read as scores"),
        ([one, tmp_path / "text"], {}, "cannot be read as scores"),
        ([one, tmp_path / "old"], {}, "cannot be read as scores.*measure again"),
        ([one, fewer], {"fa_per_hour": 0.0}, "fa_per_hour 0.0: give a positive number"),
        ([one, fewer], {"snr": ["loud"]}, "SNR 'loud'"),
        ([one, two], {"snr": ["5", "7"]}, "SNR 7: was not measured in all systems"),
        ([one, unfinished], {}, r"its last round is not measured yet.*unfinished/round-0"),
    ):
        with pytest.raises(RequestError, match=message):
            compare(systems=systems, **options)


def test_keywords_that_one_system_lacks_are_named(tmp_path, caplog):
    both = {KEY: [heard([0.9])], ("jarvis", "5"): [heard([0.9])]}
    systems = [evaluated(tmp_path / "two", both), evaluated(tmp_path / "one", {KEY: both[KEY]})]
    compare(systems=systems)
    assert "jarvis: left out, as not all systems have it" in caplog.text


def test_a_keyword_may_hold_the_sign_that_parts_names(tmp_path):
    odd = {("a|b", "5"): [heard([0.9])]}
    folder = evaluated(tmp_path / "odd", odd)
    assert list(load_scored(folder / SCORES)) == list(odd)


def test_a_paired_interval_holds_the_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    shares = (0.04, 0.01)  # missed by one alone, by the other alone
    drawn = rng.multinomial(150, [*shares, 1 - sum(shares)], size=4000)
    inside = []
    for only_first, only_second, _ in drawn:
        found = paired_difference_interval(only_first, only_second, 150)
        inside.append(found.low <= shares[1] - shares[0] <= found.high)
    assert 0.94 < np.mean(inside) < 0.98
    none = paired_difference_interval(0, 0, 10)
    assert none.low == -none.high < 0


def test_chance_of_a_difference():
    assert mcnemar_test(0, 0) == 1
    assert mcnemar_test(3, 3) == 1
    assert mcnemar_test(0, 5) == pytest.approx(2 / 32)
