"""Formats are read back by small readers of their own."""

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.asr.formats import (
    CaptionLimits,
    to_ctm,
    to_json,
    to_srt,
    to_textgrid,
    to_txt,
)
from speechkit.asr.hypothesis import Hypothesis, Word

WORDS = (Word("hello", 0.5, 0.9, 0.75), Word("world", 0.9, 1.4, 1.0), Word("again", 3.0, 3.25))
HYPOTHESIS = Hypothesis("hello world again", (1, 2, 3), (0.6, 1.0, 3.1), 0.9, WORDS)
EMPTY = Hypothesis("")

TIMES = st.floats(0, 4000)
SOME_WORDS = st.lists(
    st.builds(Word, st.text(st.characters(codec="utf-8"), min_size=1), TIMES, TIMES), max_size=6
).map(tuple)


def read_srt(text):
    """Return (start, end in ms, lines) of each caption."""
    captions = []
    for number, block in enumerate(re.split(r"\n\n", text.strip("\n")), start=1):
        index, times, *lines = block.split("\n")
        assert int(index) == number
        found = re.fullmatch(r"(\d+):(\d\d):(\d\d),(\d{3}) --> (\d+):(\d\d):(\d\d),(\d{3})", times)
        h, m, s, ms, h2, m2, s2, ms2 = map(int, found.groups())
        start, end = ((h * 60 + m) * 60 + s) * 1000 + ms, ((h2 * 60 + m2) * 60 + s2) * 1000 + ms2
        captions.append((start, end, lines))
    return captions


def read_textgrid(text):
    """Return (end of the file, [(start, end, label)])."""
    intervals = re.findall(
        r'xmin = (\S+)\n +xmax = (\S+)\n +text = "((?:[^"]|"")*)"', text, flags=re.DOTALL
    )
    size = int(re.search(r"intervals: size = (\d+)", text)[1])
    assert len(intervals) == size
    end = float(re.search(r"^xmax = (\S+)", text, flags=re.MULTILINE)[1])
    return end, [(float(a), float(b), label.replace('""', '"')) for a, b, label in intervals]


def test_text_and_json():
    assert to_txt(HYPOTHESIS) == "hello world again\n"
    assert to_txt(EMPTY) == "\n"
    read = json.loads(to_json(HYPOTHESIS))
    assert read["words"][0] == {
        "text": "hello",
        "start_s": 0.5,
        "end_s": 0.9,
        "confidence": 0.75,
    }
    assert read["tokens"] == [1, 2, 3]
    assert json.loads(to_json(EMPTY))["words"] == []


def test_ctm():
    lines = to_ctm(HYPOTHESIS, recording="my call.wav").splitlines()
    assert lines[0].split() == ["my_call.wav", "1", "0.500", "0.400", "hello", "0.7500"]
    assert lines[2].split() == ["my_call.wav", "1", "3.000", "0.250", "again"]
    assert to_ctm(EMPTY, recording="a") == ""


def test_srt():
    assert read_srt(to_srt(HYPOTHESIS)) == [
        (500, 1400, ["hello world"]),
        (3000, 3250, ["again"]),
    ]
    assert to_srt(EMPTY) == ""
    late = Hypothesis("x", words=(Word("x --> y", 3661.2341, 3662.0),))
    assert to_srt(late) == "1\n01:01:01,234 --> 01:01:02,000\nx \u2192 y\n"


def test_srt_limits():
    words = tuple(Word("word", 0.5 * i, 0.5 * i + 0.4) for i in range(40))
    limits = CaptionLimits(line_characters=14, duration_s=2.5)
    captions = read_srt(to_srt(Hypothesis("", words=words), limits=limits))
    assert all(end - start <= 2500 for start, end, _ in captions)
    assert all(len(line) <= 14 for _, _, lines in captions for line in lines)
    assert all(1 <= len(lines) <= 2 for _, _, lines in captions)
    assert sum(len(line.split()) for _, _, lines in captions for line in lines) == 40


@given(SOME_WORDS)
def test_captions_are_ordered(words):
    text = to_srt(Hypothesis("", words=words))
    captions = read_srt(text) if text else []
    times = [time for start, end, _ in captions for time in (start, end)]
    assert times == sorted(times)
    assert all(start < end for start, end, _ in captions)


@given(SOME_WORDS, st.floats(0, 5000))
def test_textgrid_tiles_the_time(words, duration_s):
    end, intervals = read_textgrid(to_textgrid(Hypothesis("", words=words), duration_s=duration_s))
    assert intervals[0][0] == 0
    assert intervals[-1][1] == end
    assert end >= duration_s - 1e-3
    assert all(a[1] == b[0] for a, b in itertools.pairwise(intervals))
    assert all(start < stop for start, stop, _ in intervals)
    texts = [" ".join(word.text.split()) for word in words]
    assert sorted(label for *_, label in intervals if label) == sorted(filter(None, texts))


def test_textgrid():
    end, intervals = read_textgrid(to_textgrid(HYPOTHESIS, duration_s=4.0))
    assert end == 4.0
    assert intervals == [
        (0.0, 0.5, ""),
        (0.5, 0.9, "hello"),
        (0.9, 1.4, "world"),
        (1.4, 3.0, ""),
        (3.0, 3.25, "again"),
        (3.25, 4.0, ""),
    ]
    assert read_textgrid(to_textgrid(EMPTY, duration_s=2.5)) == (2.5, [(0.0, 2.5, "")])


@pytest.mark.parametrize("text", ['say "hi"', '"', "a\nb"])
def test_textgrid_quotes(text):
    grid = to_textgrid(Hypothesis(text, words=(Word(text, 0.0, 1.0),)), duration_s=1.0)
    assert read_textgrid(grid)[1] == [(0.0, 1.0, text.replace("\n", " "))]
