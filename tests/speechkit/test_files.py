import json
import os

import pytest

from speechkit.files import atomic_path, write_json, write_text


def test_text_arrives_whole_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "grüße.txt"
    write_text(path, "höre zu\n")
    assert path.read_text(encoding="utf-8") == "höre zu\n"
    write_text(str(path), "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("name", ["cuts.jsonl.gz", "a.wav", "noext", ".hidden"])
def test_the_temporary_file_is_a_neighbour_with_the_same_ending(tmp_path, name):
    with atomic_path(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name != name
        assert temporary.name.endswith(name)
        temporary.touch()
    assert os.listdir(tmp_path) == [name]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass


def test_json_round_trip(tmp_path):
    value = {"b": [1, 2.5, None, True], "ä": "ö", "nested": {"x": []}}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '"ä": "ö"' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_lacks_are_refused_and_the_old_file_stays(tmp_path, number):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": number})
    assert json.loads((tmp_path / "a.json").read_text()) == 1
    assert os.listdir(tmp_path) == ["a.json"]
