import json

import pytest

from speechkit.claims import claim
from speechkit.errors import RequestError

RUN = {"config": {"fit": {"epochs": 20, "snr_db": (-5, 15)}, "seed": 0}, "data": "abc"}


def test_the_same_run_takes_its_folder_again(tmp_path):
    claim(tmp_path / "out", RUN)
    claim(tmp_path / "out", json.loads(json.dumps(RUN)))
    assert json.loads((tmp_path / "out" / "resume" / "run.json").read_text())["data"] == "abc"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({**RUN, "data": "abd"}, 'data "abc" there, "abd" given'),
        ({"config": {**RUN["config"], "seed": 1}, "data": "abc"}, "config.seed 0 there, 1 given"),
        ({**RUN, "init": "m"}, 'init absent there, "m" given'),
        ({"config": RUN["config"]}, 'data "abc" there, absent given'),
    ],
)
def test_another_run_is_told_what_differs_and_changes_nothing(tmp_path, other, said):
    claim(tmp_path, RUN, file="run.json")
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(RequestError, match=said):
        claim(tmp_path, other, file="run.json")
    assert (tmp_path / "run.json").read_bytes() == before


def test_many_differences_are_counted(tmp_path):
    claim(tmp_path, {str(n): n for n in range(9)})
    with pytest.raises(RequestError, match="and 5 more"):
        claim(tmp_path, {str(n): -1 - n for n in range(9)})


def test_a_damaged_claim_is_named(tmp_path):
    claim(tmp_path, {"a": 1})
    (tmp_path / "resume" / "run.json").write_text('{"a"')
    with pytest.raises(RequestError, match=r"run\.json: cannot be read"):
        claim(tmp_path, {"a": 1})
