import json

import pytest

from speechkit import manifests
from speechkit.errors import RequestError
from speechkit.kws.select import free_of, select


def manifest(folder, name, rows):
    lines = []
    for index, (label, text) in enumerate(rows):
        lines.append(
            {
                "audio_filepath": f"{name}/{index}.wav",
                "duration": 3600.0,
                "sample_rate": 16000,
                "label": label,
                "text": text,
            }
        )
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_rows_are_sorted_and_counted(tmp_path):
    words = manifest(
        tmp_path,
        "words",
        [("computer", None), ("snow_boy", "snow boy"), ("_stream_", None), ("hey computer", None)],
    )
    speech = manifest(
        tmp_path, "speech", [(None, "the computer, said he"), (None, "hello"), (None, None)]
    )
    found = select(["Computer"], positives=[words], negatives=[speech])
    assert [cut.id.rsplit("/", 1)[1] for cut in found.positives["computer"]] == ["0.wav"]
    assert len(found.negatives) == 3
    assert found.counts["computer"] == {
        "positives": 1,
        "negatives": 3,
        "left_out": 3,
        "unverified": 1,
        "negative_hours": 3.0,
        "unverified_hours": 1.0,
    }


def test_a_keyword_among_the_negatives_manifests_is_left_out(tmp_path):
    words = manifest(tmp_path, "words", [("computer", None)])
    others = manifest(tmp_path, "others", [("computer", None), ("athena", None)])
    found = select(["computer"], positives=[words], negatives=[others])
    assert len(found.positives["computer"]) == 1
    assert [cut.id.rsplit("/", 1)[1] for cut in found.negatives] == ["1.wav"]
    assert found.counts["computer"]["left_out"] == 1


def test_one_manifest_may_be_given_as_both(tmp_path):
    words = manifest(tmp_path, "words", [("yes", None), ("no", None), ("bed", None)])
    found = select(["yes", "no"], positives=[words], negatives=[words])
    assert {k: len(v) for k, v in found.positives.items()} == {"yes": 1, "no": 1}
    assert len(found.negatives) == 1
    counts = found.counts["yes"]
    assert [counts[name] for name in ("positives", "negatives", "left_out")] == [1, 1, 1]


def test_with_several_keywords_the_counts_are_of_what_is_measured(tmp_path):
    words = manifest(tmp_path, "words", [("yes", None)] * 3 + [("no", None)] * 2)
    others = manifest(tmp_path, "others", [("bed", None)] * 4 + [("no", None), (None, None)])
    found = select(["yes", "no"], positives=[words], negatives=[others])
    for keyword, positives in (("yes", 3), ("no", 2)):
        counts = found.counts[keyword]
        assert counts["negatives"] == len(found.negatives) == 5
        assert counts["unverified"] == 1
        assert sum(counts[n] for n in ("positives", "negatives", "left_out")) == 11
        assert counts["positives"] == positives


def test_a_kind_of_sound_is_no_keyword(tmp_path):
    sounds = manifest(tmp_path, "sounds", [("_music_", None)])
    with pytest.raises(RequestError, match="names a kind of sound"):
        select(["_music_"], positives=[sounds], negatives=[])


def test_wrong_requests(tmp_path):
    words = manifest(tmp_path, "words", [("yes", None)])
    with pytest.raises(RequestError, match="each once"):
        select(["yes", "Yes"], positives=[words], negatives=[])
    with pytest.raises(RequestError, match="they hold yes"):
        select(["maybe"], positives=[words], negatives=[])


def test_what_may_hold_a_keyword_is_no_hard_negative(tmp_path):
    rows = [
        ("computer", None),
        (None, "my Computer!"),
        ("athena", None),
        (None, "a jarvis"),
        (None, "hi"),
    ]
    cuts = list(manifests.read(manifest(tmp_path, "mined", rows)))
    assert free_of(cuts, ["computer", "Jarvis"]) == [cuts[2], cuts[4]]
    # a mined alarm has no text of its own, but says what it was cut from
    cuts[4].supervisions[0].custom = {"mined_for": "computer", "amid": ["yes", "oh jarvis"]}
    assert free_of(cuts, ["computer", "Jarvis"]) == [cuts[2]]


def test_one_id_for_two_recordings_is_refused(tmp_path):
    """Ids are made of the last folder's name: those of jarvis/clips and other/clips are equal."""
    for name in ("jarvis", "other"):
        (tmp_path / name / "clips").mkdir(parents=True)
    words = manifest(tmp_path / "jarvis" / "clips", "clips", [("jarvis", None), ("yes", None)])
    others = manifest(tmp_path / "other" / "clips", "clips", [("hello", None), ("no", None)])
    with pytest.raises(
        RequestError, match=r"clip clips/clips/0.wav: is .*jarvis.* in one manifest, .*other"
    ):
        select(["jarvis"], positives=[words], negatives=[others])
