import signal
import sys
import timeit

import numpy as np
import pytest

from speechkit.errors import RequestError
from speechkit.espeak import Voice, is_installed, phonemes, speak, variants
from speechkit.synthetic_clips import _HIGH, _LOW

installed = pytest.mark.skipif(not is_installed(), reason="needs the extra [synth]")
# a breath and an echo, a Klatt synthesiser, a foreign tune
VOICES = (
    Voice("en-us+f5", rate_wpm=150),
    Voice("en-029+klatt4", pitch=70),
    Voice("hi+m3", pitch_range=20),
)
TEXT = "She saw three ships, in the harbour, at noon"


@installed
def test_equal_calls_give_equal_samples_in_any_order():
    first = [speak(TEXT, voice).audio for voice in VOICES]
    speak("something else", Voice("en+m7", pitch=10))
    again = [speak(TEXT, voice).audio for voice in reversed(VOICES)]
    for a, b in zip(first, reversed(again), strict=True):
        assert np.array_equal(a, b)


@installed
def test_all_corpus_voices_exist_and_speak_equally_each_time(monkeypatch):
    names = (_HIGH + _LOW).split()
    assert len(set(names)) == len(names)
    assert set(names) <= variants()
    first = {name: speak("fish soup", Voice(f"en+{name}")).audio for name in names}
    for name in reversed(names):
        assert np.array_equal(first[name], speak("fish soup", Voice(f"en+{name}")).audio), name
    assert len({audio.tobytes() for audio in first.values()}) == len(names)
    assert max(np.abs(audio).max() for audio in first.values()) < 0.9


@installed
def test_an_interrupt_is_raised_and_never_costs_speech():
    """ctypes drops what is raised while C calls Python, and the rest would be spoken without it."""
    whole = speak(TEXT, VOICES[0]).audio
    took_s = min(timeit.repeat(lambda: speak(TEXT, VOICES[0]), number=1, repeat=3))
    interrupted = 0

    def interrupt(*_):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for part in np.linspace(0.05, 0.95, 40):
            signal.setitimer(signal.ITIMER_REAL, float(part) * took_s)
            try:
                assert np.array_equal(speak(TEXT, VOICES[0]).audio, whole)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGINT, former)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
    assert interrupted > 20


@installed
@pytest.mark.parametrize("voice", VOICES)
def test_words_are_in_order_and_inside(voice):
    utterance = speak(TEXT, voice)
    assert [word for word, _, _ in utterance.words] == TEXT.split()
    times = [time for _, start_s, end_s in utterance.words for time in (start_s, end_s)]
    assert times == sorted(times)
    assert times[0] >= 0
    assert times[-1] <= len(utterance.audio) / 16_000
    assert all(end_s > start_s for _, start_s, end_s in utterance.words)


@installed
def test_pauses_lie_between_words():
    utterance = speak("Hello, goodbye", Voice("en-us+m3"))
    (_, _, end_s), (_, start_s, _) = utterance.words
    middle = round((end_s + start_s) / 2 * 16_000)
    assert start_s - end_s > 0.03
    quiet = np.abs(utterance.audio[middle - 100 : middle + 100]).max()
    assert quiet < 0.01 * np.abs(utterance.audio).max()


@installed
def test_manner_changes_speech():
    normal = len(speak(TEXT, Voice("en-us", rate_wpm=170)).audio)
    assert len(speak(TEXT, Voice("en-us", rate_wpm=120)).audio) > 1.2 * normal
    low, high = (_pitch_hz(speak("no", Voice("en-us", pitch=p)).audio) for p in (20, 80))
    assert high > 1.2 * low


@installed
@pytest.mark.parametrize("text", ["", "  ", "..."])
def test_nothing_to_say(text):
    with pytest.raises(RequestError, match="nothing to say"):
        speak(text, Voice("en-us"))


@installed
@pytest.mark.parametrize("name", ["xx-unknown", "en-us+nobody", ""])
def test_unknown_voice(name):
    with pytest.raises(RequestError, match="no such voice"):
        speak("hello", Voice(name))


@pytest.mark.parametrize("wrong", [{"rate_wpm": 20}, {"pitch": 100}, {"pitch_range": -1}])
def test_manner_out_of_range(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Voice("en", **wrong)


@installed
def test_phonemes_of_homophones_are_equal():
    assert len(set(phonemes(["two", "too"]))) == 1
    assert len(set(phonemes(["two", "three"]))) == 2


def test_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    assert not is_installed()
    with pytest.raises(RequestError, match=r"sparse-speechkit\[synth\]"):
        speak("hello", Voice("en-us"))


def _pitch_hz(audio):
    """Return the pitch of the loudest 64 ms, by its autocorrelation between 60 and 400 Hz."""
    centre = np.clip(np.argmax(np.abs(audio)), 512, len(audio) - 512)
    frame = audio[centre - 512 : centre + 512]
    correlation = np.correlate(frame, frame, "full")[len(frame) - 1 :]
    return 16_000 / (40 + np.argmax(correlation[40:266]))
