"""Labelling without a browser: what is shown, what is kept, and where a second visit goes on."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from speechkit import cli, manifests
from speechkit.active_learning.annotations import TextRules, read_labels
from speechkit.active_learning.exchange import import_labels
from speechkit.active_learning.jsonl import write_rows
from speechkit.active_learning.labelling import Labelling
from speechkit.audio import load, write_audio
from speechkit.errors import AudioError, RequestError

COUNT = 4


def make_selection(folder):
    """Write a selection of four clips of a second, the third of them broken."""
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        write_audio(folder / f"pool/{i}.wav", rng.normal(0, 0.1, 16000).astype(np.float32))
    rows = [
        {"audio_filepath": f"{i}.wav", "duration": 1.0, "speaker": f"s{i}"} for i in range(COUNT)
    ]
    write_rows(folder / "pool/manifest.jsonl", rows)
    cuts = list(manifests.read(folder / "pool"))
    (folder / "pool/2.wav").write_bytes(b"nothing")
    manifests.write(cuts, folder / "selection" / manifests.CUTS_NAME)
    write_rows(
        folder / "selection/selection.jsonl",
        [
            {"id": cut.id, "rank": i + 1, "duration_s": 1.0, "speaker": f"s{i}"}
            | {"hypothesis": f"guess {i}", "nbest": [f"guess {i}", f"<b>guest</b> {i}"]}
            for i, cut in enumerate(cuts)
        ],
    )
    return folder / "selection"


@pytest.fixture
def selection(tmp_path):
    return make_selection(tmp_path)


def texts_in(folder):
    return {cut.id: manifests.text_of(cut) for cut in manifests.read(folder, allow_empty=True)}


def test_a_label_is_on_disk_at_once(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels", annotator="ann")
    assert labelling.text(0) == "guess 0"
    assert labelling.suggestions(0) == ["guess 0", "<b>guest</b> 0"]
    assert labelling.label(0, " a  guest ", seconds=2.345) is None
    kept = read_labels(tmp_path / "labels")[labelling.cuts[0].id]
    assert (kept.status, kept.text, kept.annotator, kept.seconds) == (
        "labelled",
        "a guest",
        "ann",
        2.3,
    )
    assert texts_in(tmp_path / "labels") == {labelling.cuts[0].id: "a guest"}


def test_a_second_visit_goes_on_behind_what_is_answered(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    labelling.label(0, "one")
    labelling.skip(1)
    again = Labelling(selection, tmp_path / "labels")
    assert again.next_open(-1) == 2
    assert again.text(0) == "one"
    progress = again.progress()
    assert (progress.clips, progress.all_clips) == (2, COUNT)
    assert (progress.seconds, progress.all_seconds) == (2.0, 4.0)


def test_the_round_ends_when_every_clip_has_an_answer(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    labelling.label(2, "two")
    order = []
    index = labelling.next_open(0)
    while index is not None:
        order.append(index)
        labelling.skip(index)
        index = labelling.next_open(index)
    assert order == [1, 3, 0]


@pytest.mark.parametrize(
    ("text", "fault"),
    [("", "empty text"), ("x" * 50, "cannot have been said"), ("a\x07", "unknown")],
)
def test_what_cannot_be_a_label_is_not_kept(tmp_path, selection, text, fault):
    labelling = Labelling(selection, tmp_path / "labels")
    assert fault in labelling.label(0, text)
    assert read_labels(tmp_path / "labels") == {}


def test_rules_and_choices(tmp_path, selection):
    strict = Labelling(selection, tmp_path / "a", rules=TextRules(characters="abc"))
    assert "unknown characters 'd'" in strict.label(0, "bad")
    picked = Labelling(selection, tmp_path / "b", choices=["yes", "guess 1"])
    assert picked.suggestions(0) == ["yes", "guess 1"]
    assert (picked.text(0), picked.text(1)) == ("", "guess 1")
    assert picked.label(0, "maybe") == "'maybe' is none of yes, guess 1"
    assert picked.label(0, "yes") is None


@pytest.mark.parametrize("choice", ["cafe\u0301", "turn  left", "_background_noise_" * 9])
def test_every_choice_can_be_given(tmp_path, selection, choice):
    picked = Labelling(selection, tmp_path / "labels", choices=["yes", choice])
    assert picked.label(0, picked.suggestions(0)[1]) is None
    assert read_labels(tmp_path / "labels")[picked.cuts[0].id].text == choice
    assert picked.label(1, " yes ") is None


@pytest.mark.parametrize("choices", [[], [""], ["yes", " "], ["yes", "yes "]])
def test_choices_that_are_none(tmp_path, selection, choices):
    with pytest.raises(RequestError, match="choices"):
        Labelling(selection, tmp_path / "labels", choices=choices)


def test_two_pages_may_come_to_one_clip(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    for number in range(5):
        with ThreadPoolExecutor(8) as threads:
            paths = list(threads.map(labelling.write_audio, [0] * 8, [tmp_path / f"{number}"] * 8))
        assert len(load(paths[0])) == 16_000


def test_skipping_keeps_a_label_and_a_new_label_remembers_the_old(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    labelling.label(0, "first")
    labelling.skip(0)
    assert labelling.given(0).text == "first"
    labelling.label(0, "second")
    assert labelling.given(0).text == "second"
    assert labelling.given(0).previous == ("first",)


def test_audio_to_play(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    assert len(load(labelling.write_audio(0, tmp_path / "audio"))) == 16000
    with pytest.raises(AudioError):
        labelling.write_audio(2, tmp_path / "audio")


def test_its_labels_can_be_imported_elsewhere(tmp_path, selection):
    labelling = Labelling(selection, tmp_path / "labels")
    labelling.label(1, "one")
    cuts = tmp_path / "labels" / manifests.CUTS_NAME
    assert import_labels(cuts, selection=selection, out=tmp_path / "other") == 0
    assert texts_in(tmp_path / "other") == {labelling.cuts[1].id: "one"}


def test_damaged_labels_are_left_as_they_are(tmp_path, selection):
    Labelling(selection, tmp_path / "labels").label(0, "one")
    path = tmp_path / "labels" / "labels.jsonl"
    whole = path.read_text()
    path.write_text(whole[: len(whole) // 2])
    with pytest.raises(RequestError, match=r"labels\.jsonl, line 1: is no JSON"):
        Labelling(selection, tmp_path / "labels")
    assert path.read_text() == whole[: len(whole) // 2]


def test_bad_requests(tmp_path, selection, capsys):
    def label(*words):
        return cli.main(["al", "label", *map(str, words)])

    assert label(tmp_path / "nothing", "--out", tmp_path / "labels") == 2
    assert "holds no selection.jsonl" in capsys.readouterr().err
    assert label(selection, "--out", selection) == 2
    assert "is the selection itself" in capsys.readouterr().err
    empty = tmp_path / "empty"
    manifests.write([], empty / manifests.CUTS_NAME)
    (empty / "selection.jsonl").write_text("")
    assert label(empty, "--out", tmp_path / "labels") in (1, 2)
    assert not (tmp_path / "labels").exists()


def test_rows_of_labels_are_plain_json(tmp_path, selection):
    Labelling(selection, tmp_path / "labels").label(0, "naïve café")
    (line,) = (tmp_path / "labels" / "labels.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["text"] == "naïve café"
