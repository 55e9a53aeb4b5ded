"""What the product makes of real recordings, where they are at hand."""

import numpy as np
import pytest

from speechkit import manifests
from speechkit.kws.clips import load_clips
from speechkit.kws.rows import sort_rows
from speechkit.kws.select import select

WORDS = ("alexa", "computer", "jarvis", "smart mirror", "snowboy", "view glass")


@pytest.mark.parametrize("word", WORDS)
def test_spans_of_wake_words_fit_a_window(real_data, word):
    rows = sort_rows(manifests.read(real_data / "picovoice_ww"), word)
    loaded = load_clips(rows.positives[::10], what="positives")
    durations_s = [clip.span.samples / 16000 for clip in loaded.clips]
    assert not loaded.broken
    assert 0.4 < np.median(durations_s) < 1.1
    assert np.mean(np.array(durations_s) < 1.5) > 0.9


def test_keywords_in_other_manifests_are_left_out(real_data):
    found = select(
        ["computer"],
        positives=[real_data / "picovoice_ww"],
        negatives=[real_data / "precise_pd"],
    )
    assert all(cut.id.startswith("picovoice_ww/computer/") for cut in found.positives["computer"])
    texts = [manifests.text_of(cut) or "" for cut in found.negatives]
    assert not any("computer" in text for text in texts)
