import hashlib
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from lhotse import CutSet

from speechkit import manifests, synthetic
from speechkit.audio import load_cut
from speechkit.errors import RequestError
from speechkit.espeak import is_installed
from speechkit.phrases import confusables, contains, normalize, sounds, without
from speechkit.synthetic import SPLITS, SyntheticConfig, plan, prepare

pytestmark = pytest.mark.skipif(not is_installed(), reason="needs the extra [synth]")

CONFIG = SyntheticConfig(
    keywords=("computer", "hey jarvis"),
    clips_per_keyword=12,
    confusables_per_keyword=8,
    clips_per_confusable=5,
    negative_hours=0.03,
    seed=11,
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    out = tmp_path_factory.mktemp("corpus") / "made"
    return out, prepare(out, CONFIG)


def test_splits_hold_what_was_asked_for(corpus):
    out, splits = corpus
    assert tuple(splits) == SPLITS
    everything = [cut for split in SPLITS for cut in splits[split]]
    labels = [manifests.label_of(cut) for cut in everything]
    assert labels.count("computer") == labels.count("hey jarvis") == 12
    assert {cut.id for cut in manifests.read(out)} == {cut.id for cut in everything}
    for split in SPLITS:
        assert [c.id for c in manifests.read(out / split)] == [c.id for c in splits[split]]
        assert {"computer", "hey jarvis", None} == {manifests.label_of(c) for c in splits[split]}
    hours = sum(c.duration for c in everything if c.id.startswith("sentence")) / 3600
    assert hours == pytest.approx(CONFIG.negative_hours, rel=0.15)


def test_splits_share_no_timbre_and_no_sentence(corpus):
    _, splits = corpus
    timbres = [{manifests.speaker_of(c) for c in splits[s]} for s in SPLITS]
    texts = [{c.supervisions[0].text for c in splits[s] if "sentence" in c.id} for s in SPLITS]
    for kept_apart in (timbres, texts):
        assert sum(map(len, kept_apart)) == len(set.union(*kept_apart))
    accents = {manifests.custom_of(c)["accent"] for s in SPLITS[:2] for c in splits[s]}
    assert not accents & {"en-gb-scotland", "cmn"}


def test_supervision_covers_the_speech(corpus):
    _, splits = corpus
    for cut in splits["dev"]:
        audio, (speech,) = load_cut(cut), cut.supervisions
        begin, end = round(speech.start * 16_000), round(speech.end * 16_000)
        assert not audio[:begin].any()
        assert not audio[end:].any()
        assert min(speech.start, cut.duration - speech.end) >= 0.29
        assert np.abs(audio).max() <= 0.951
        assert np.sqrt(np.mean(audio[begin:end] ** 2)) > 0.01
        ends = audio[begin : begin + 480], audio[end - 480 : end]
        assert min(np.abs(part).max() for part in ends) > 0.003 * np.abs(audio).max()


def test_words_lie_in_order_inside_their_clip(corpus):
    _, splits = corpus
    for cut in CutSet.from_cuts(c for s in SPLITS for c in splits[s]):
        (speech,) = cut.supervisions
        words = speech.alignment["word"]
        assert " ".join(word.symbol for word in words) == manifests.text_of(cut)
        times = [time for word in words for time in (word.start, word.end)]
        assert all(b >= a - 2e-4 for a, b in pairwise(times))
        assert times[0] >= speech.start - 2e-4
        assert times[-1] <= speech.end + 2e-4


def test_no_negative_holds_a_keyword():
    config = replace(CONFIG, keywords=("cake", "hey cake"), negative_hours=0.3)
    negatives = {clip.text for clip in plan(config) if clip.label is None}
    assert len(negatives) > 100
    heard = sounds(config.keywords)
    for text, sound in zip(negatives, sounds(list(negatives)), strict=True):
        assert not any(contains(text, keyword) for keyword in config.keywords)
        assert not any(keyword in sound for keyword in heard)


def test_confusables_are_near_and_never_the_keyword():
    found = confusables("hey computer", 30)
    assert len(found) == len(set(found)) == 30
    assert {"hey", "hey commuter", "hey computing"} <= set(found)
    assert not any(contains(phrase, "hey computer") for phrase in found)


def test_texts_that_sound_like_the_keyword_are_left_out():
    kept = without(["too late", "two bees", "one bee", "a tuba"], ["two"])
    assert kept == ["one bee"]
    assert normalize("  Why, that's   ODD: no? ") == "why that's odd no"


def test_more_processes_give_equal_bytes(corpus, tmp_path):
    out, _ = corpus
    prepare(tmp_path / "again", replace(CONFIG, workers=2))
    assert _digests(tmp_path / "again") == _digests(out)


def test_an_interrupted_corpus_is_finished(corpus, tmp_path, monkeypatch):
    out, _ = corpus
    rendered = []

    def render_until_killed(clips, folder, part):
        if len(rendered) == 2:
            raise KeyboardInterrupt
        rendered.append(part)
        original(clips, folder, part)

    original = synthetic.render
    monkeypatch.setattr(synthetic, "render", render_until_killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "part", CONFIG)
    assert not (tmp_path / "part" / manifests.CUTS_NAME).exists()
    begun = {path: path.stat().st_mtime_ns for path in (tmp_path / "part").rglob("*.flac")}
    monkeypatch.setattr(synthetic, "render", original)
    prepare(tmp_path / "part", CONFIG)
    assert _digests(tmp_path / "part") == _digests(out)
    assert begun
    assert all(path.stat().st_mtime_ns == time for path, time in begun.items())


def test_a_finished_corpus_is_left_alone_and_can_be_moved(corpus, tmp_path, monkeypatch):
    out, splits = corpus
    monkeypatch.setattr(synthetic, "render", None)
    again = prepare(out, replace(CONFIG, workers=3))
    assert [c.id for c in again["test"]] == [c.id for c in splits["test"]]
    with pytest.raises(RequestError, match="seed 11 there, 12 given"):
        prepare(out, replace(CONFIG, seed=12))
    moved = out.rename(tmp_path / "moved")
    try:
        assert len(load_cut(manifests.read(moved / "dev")[0])) > 0
    finally:
        moved.rename(out)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match="holds something else"):
        prepare(tmp_path, CONFIG)


def test_noises_and_rooms(corpus):
    out, splits = corpus
    voices = {manifests.speaker_of(c) for s in SPLITS for c in splits[s]}
    assert not voices & _babble_variants()
    for folder, kinds in (("noise", 9), ("rir", None)):
        cuts = manifests.read(out / folder)
        assert {cut.custom["split"] for cut in cuts} == set(SPLITS)
        assert not any(cut.supervisions for cut in cuts)
        assert kinds is None or len({cut.custom["kind"] for cut in cuts}) == kinds
        for cut in cuts:
            audio = load_cut(cut)
            assert np.isfinite(audio).all()
            assert 0.4 < np.abs(audio).max() <= 1.0


@pytest.mark.parametrize("keyword", ["", " ", "Computer", "route 66", "привет", "hey  you", "-"])
def test_keywords_that_cannot_be_spoken(keyword):
    with pytest.raises(RequestError, match="keyword"):
        SyntheticConfig(keywords=(keyword,))


@pytest.mark.parametrize(
    "wrong",
    [
        {"keywords": ("on", "on")},
        {"clips_per_keyword": -1},
        {"negative_hours": float("nan")},
        {"dev_share": 0.0},
        {"test_share": 0.9},
        {"workers": 0},
    ],
)
def test_wrong_settings_are_named(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        SyntheticConfig(**wrong)


def _digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _babble_variants():
    _, crowds = synthetic.deal_voices(CONFIG.seed, CONFIG.shares)
    return {name for crowd in crowds.values() for name in (*crowd.high, *crowd.low)}
