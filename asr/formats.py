"""Transcripts in the formats of other programs: text, JSON, SRT, CTM and Praat's TextGrid."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from speechkit.asr.hypothesis import Hypothesis, Word

# the shortest interval that is written: formats refuse empty ones
_LEAST_S = 0.001


@dataclass(frozen=True, kw_only=True)
class CaptionLimits:
    """When a caption ends; broadcasters' usual limits.

    Parameters
    ----------
    line_characters, lines
        size of a caption; a longer word has a line for itself.
    duration_s
        how long it may stand.
    pause_s
        a silence this long ends it.
    """

    line_characters: int = 42
    lines: int = 2
    duration_s: float = 6.0
    pause_s: float = 1.0


def to_txt(hypothesis: Hypothesis) -> str:
    """Return the text as one line."""
    return hypothesis.text + "\n"


def to_json(hypothesis: Hypothesis) -> str:
    """Return all that is known, as JSON."""
    return json.dumps(hypothesis.to_dict(), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def to_srt(hypothesis: Hypothesis, *, limits: CaptionLimits = CaptionLimits()) -> str:
    """Return SubRip captions; words need times."""
    captions = []
    for number, words in enumerate(_captions(_ordered(hypothesis.words), limits), start=1):
        times = f"{_clock(words[0].start_s)} --> {_clock(words[-1].end_s)}"
        # SRT cannot quote its own arrow
        lines = [line.replace("-->", "\u2192") for line in _wrapped(words, limits.line_characters)]
        captions.append("\n".join([str(number), times, *lines]) + "\n")
    return "\n".join(captions)


def to_ctm(hypothesis: Hypothesis, *, recording: str) -> str:
    """Return NIST's CTM, a line a word: recording, channel 1, start, duration, word, confidence.

    Fields are separated by white space, so white space in the recording's name becomes "_".
    """
    name = "_".join(recording.split()) or "_"
    lines = []
    for word in hypothesis.words:
        fields = [name, "1", f"{word.start_s:.3f}", f"{word.end_s - word.start_s:.3f}"]
        fields.append("_".join(word.text.split()))
        if word.confidence is not None:
            fields.append(f"{word.confidence:.4f}")
        lines.append(" ".join(fields) + "\n")
    return "".join(lines)


def to_textgrid(hypothesis: Hypothesis, *, duration_s: float) -> str:
    """Return a TextGrid with one tier of words, whose intervals tile [0, duration_s].

    Silences are intervals without text. The last frame of a model may reach beyond the end of the
    recording; words are cut there, so that the tier is longer only if a word begins later.
    """
    words = [replace(w, end_s=min(w.end_s, duration_s)) for w in hypothesis.words]
    intervals = _tiles(_ordered(words), duration_s)
    end_s = intervals[-1].end_s
    lines = [
        'File type = "ooTextFile"',
        'Object class = "TextGrid"',
        "",
        "xmin = 0",
        f"xmax = {end_s:.6f}",
        "tiers? <exists>",
        "size = 1",
        "item []:",
        "    item [1]:",
        '        class = "IntervalTier"',
        '        name = "words"',
        "        xmin = 0",
        f"        xmax = {end_s:.6f}",
        f"        intervals: size = {len(intervals)}",
    ]
    for number, interval in enumerate(intervals, start=1):
        lines += [
            f"        intervals [{number}]:",
            f"            xmin = {interval.start_s:.6f}",
            f"            xmax = {interval.end_s:.6f}",
            '            text = "' + interval.text.replace('"', '""') + '"',
        ]
    return "\n".join(lines) + "\n"


def _ordered(words: Iterable[Word]) -> list[Word]:
    """Return the words made to follow each other without overlap, none shorter than 1 ms.

    White space inside them, line ends above all, becomes single spaces.
    """
    ordered: list[Word] = []
    for word in sorted(words, key=lambda word: word.start_s):
        text = " ".join(word.text.split())
        if not text:
            continue
        start_s = round(max(word.start_s, ordered[-1].end_s if ordered else 0.0), 3)
        end_s = max(round(word.end_s, 3), round(start_s + _LEAST_S, 3))
        ordered.append(Word(text, start_s, end_s, word.confidence))
    return ordered


def _tiles(words: Sequence[Word], duration_s: float) -> list[Word]:
    """Return the words with empty ones between, so that together they fill the time."""
    tiles: list[Word] = []
    now_s = 0.0
    for word in words:
        if word.start_s > now_s:
            tiles.append(Word("", now_s, word.start_s))
        tiles.append(word)
        now_s = word.end_s
    if duration_s > now_s or not tiles:
        tiles.append(Word("", now_s, max(duration_s, now_s + _LEAST_S)))
    return tiles


def _captions(words: Sequence[Word], limits: CaptionLimits) -> list[list[Word]]:
    captions: list[list[Word]] = []
    for word in words:
        if captions and _fits(captions[-1], word, limits):
            captions[-1].append(word)
        else:
            captions.append([word])
    return captions


def _fits(caption: list[Word], word: Word, limits: CaptionLimits) -> bool:
    return (
        word.start_s - caption[-1].end_s < limits.pause_s
        and word.end_s - caption[0].start_s <= limits.duration_s
        and len(_wrapped([*caption, word], limits.line_characters)) <= limits.lines
    )


def _wrapped(words: Sequence[Word], characters: int) -> list[str]:
    """Fill lines with words."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word.text) <= characters:
            lines[-1] += " " + word.text
        else:
            lines.append(word.text)
    return lines


def _clock(time_s: float) -> str:
    """Return hours:minutes:seconds,milliseconds."""
    seconds, ms = divmod(round(time_s * 1000), 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02},{ms:03}"
