"""Which rows are positives, negatives, neither, and which nobody has verified."""

import pytest
from lhotse import MonoCut, SupervisionSegment

from speechkit.errors import RequestError
from speechkit.kws.rows import is_silent, normalise, sort_rows


def row(text=None, label=None, *, id_="a", duration=2.0, **custom):
    if label is not None:
        custom["label"] = label
    supervision = SupervisionSegment(
        id=id_, recording_id=id_, start=0, duration=duration, text=text, custom=custom
    )
    return MonoCut(id=id_, start=0, duration=duration, channel=0, supervisions=[supervision])


def kind(cut, keyword="computer"):
    rows = sort_rows([cut], keyword)
    found = [
        name for name in ("positives", "negatives", "left_out") if len(getattr(rows, name)) == 1
    ]
    assert len(found) == 1
    return found[0] + (" unverified" if rows.unverified else "")


@pytest.mark.parametrize(
    ("text", "label", "silent"),
    [
        (None, "_silence_", True),
        (None, "_music_", True),
        (None, "", True),
        ("", None, True),
        (" ", None, True),
        ("yes", "_noise_", True),
        ("", "yes", False),
        ("yes", None, False),
        (None, None, False),
    ],
)
def test_clips_without_speech_are_known_by_name(text, label, silent):
    assert is_silent(row(text, label)) == silent


@pytest.mark.parametrize(
    ("text", "label", "wanted"),
    [
        ("computer", None, "positives"),
        ("Computer", None, "positives"),
        ("  COMPUTER ", None, "positives"),
        (None, "computer", "positives"),
        ("anything", "Computer", "positives"),
        ("computer", "other", "positives"),
        # inside something longer
        ("hey computer", None, "left_out"),
        ("turn the computer off", None, "left_out"),
        (None, "hey_computer", "left_out"),
        ("Hey, Computer!", None, "left_out"),
        ("computer's fan", None, "negatives"),
        ("computer\u2019s fan", None, "negatives"),
        ("on/off computer-room", None, "left_out"),
        ("computer.", None, "left_out"),
        ("something else", "my computer", "left_out"),
        # a part of a word is another word
        ("computers", None, "negatives"),
        ("supercomputer", None, "negatives"),
        (None, "microcomputers", "negatives"),
        ("compute er", None, "negatives"),
        ("", None, "negatives"),
        (None, "_unknown_", "negatives"),
        # nothing is known
        (None, None, "negatives unverified"),
        (None, "_speech_", "negatives unverified"),
        ("words", "_speech_", "negatives"),
        (None, "_music_", "negatives"),
        # no single clips
        ("computer", "_stream_", "left_out"),
        (None, "_stream_", "left_out"),
    ],
)
def test_the_rule(text, label, wanted):
    assert kind(row(text, label)) == wanted


@pytest.mark.parametrize("text", ["computer", "something", None])
def test_near_silent_clips_are_neither(text):
    assert kind(row(text, near_silent=True)) == "left_out"
    assert kind(row("something", near_silent=False)) == "negatives"


@pytest.mark.parametrize("keyword", ["hey computer", "hey_computer", "Hey  Computer"])
def test_a_keyword_of_two_words(keyword):
    assert kind(row("hey computer"), keyword) == "positives"
    assert kind(row(None, "hey_computer"), keyword) == "positives"
    assert kind(row("computer"), keyword) == "negatives"
    assert kind(row("hey my computer"), keyword) == "negatives"
    assert kind(row("say hey computer"), keyword) == "left_out"
    assert kind(row("hey, computer!"), keyword) == "left_out"
    assert kind(row("they computer"), keyword) == "negatives"


@pytest.mark.parametrize(
    ("keyword", "text", "wanted"),
    [
        # composed and decomposed accents are one spelling
        ("caf\u00e9", "cafe\u0301", "positives"),
        ("caf\u00e9", "le cafe\u0301 noir", "left_out"),
        ("caf\u00e9", "cafe", "negatives"),
        ("ÜBER", "über", "positives"),
        # vowel signs are marks, no letters
        ("नमस्ते", "नमस्ते", "positives"),
        ("नमस्ते", "अरे नमस्ते जी", "left_out"),
        ("नमस्ते", "धन्यवाद", "negatives"),
        # punctuation of the keyword itself
        ("wi-fi", "turn the Wi-Fi on", "left_out"),
        ("o'clock", "seven o'clock now", "left_out"),
        ("o'clock", "clock", "negatives"),
        # scripts that write words together
        ("你好", "你好", "positives"),
        ("你好", "你好世界", "left_out"),
        ("你好", "世界", "negatives"),
    ],
)
def test_other_scripts_and_spellings(keyword, text, wanted):
    assert kind(row(text), keyword) == wanted


def test_the_normalised_text_is_what_counts():
    assert kind(row("Kompüter!", text_norm="computer")) == "positives"
    assert kind(row("computer", text_norm="something")) == "negatives"


@pytest.mark.parametrize("keyword", ["music", "_music", "silence", "noise"])
def test_labels_of_sounds_are_no_words(keyword):
    label = f"_{normalise(keyword)}_"
    assert kind(row(label=label), keyword) == "negatives"
    assert kind(row("Music", label=label), "music") == "positives"


def test_a_label_that_is_no_text():
    assert kind(row(label=5), "5") == "positives"


def test_a_keyword_in_one_of_several_supervisions_is_left_out():
    cut = row("hello")
    later = SupervisionSegment(id="b", recording_id="a", start=1, duration=1, text="computer")
    cut.supervisions.append(later)
    assert kind(cut) == "left_out"
    assert kind(cut, "hello") == "left_out"
    assert kind(cut, "hello computer") == "left_out"
    assert kind(cut, "jarvis") == "negatives"
    later.text, later.custom = None, {"label": "computer"}
    assert kind(cut) == "left_out"


def test_a_row_without_supervision_is_unverified():
    cut = MonoCut(id="a", start=0, duration=1, channel=0, supervisions=[])
    assert kind(cut) == "negatives unverified"


def test_each_row_is_counted_once_and_hours_add_up():
    cuts = [
        row("computer", id_="p"),
        row("other", id_="n", duration=1800.0),
        row(id_="u", duration=900.0),
        row("hey computer", id_="l"),
        row("computer", near_silent=True, id_="s"),
    ]
    rows = sort_rows(iter(cuts), "computer")
    assert [c.id for c in rows.positives] == ["p"]
    assert [c.id for c in rows.negatives] == ["n", "u"]
    assert [c.id for c in rows.unverified] == ["u"]
    assert [c.id for c in rows.left_out] == ["l", "s"]
    assert rows.counts() == {
        "positives": 1,
        "negatives": 2,
        "left_out": 2,
        "unverified": 1,
        "negative_hours": 0.75,
        "unverified_hours": 0.25,
    }


@pytest.mark.parametrize("keyword", ["", "  ", "_", " _ "])
def test_an_empty_keyword_is_refused(keyword):
    with pytest.raises(RequestError, match="empty"):
        sort_rows([], keyword)


def test_normalising():
    assert normalise("  Smart__Mirror \n") == "smart mirror"
    assert normalise(normalise("A_b  C")) == normalise("A_b  C") == "a b c"
