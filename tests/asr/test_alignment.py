"""Forced alignment on posteriors whose answer is known."""

import itertools

import pytest
import torch

from speechkit.asr import alignment
from speechkit.asr.alignment import align, timed, words_of
from speechkit.asr.tokenizer import Bytes, Characters, SentencePieces
from speechkit.errors import JobError

TOKENIZER = Characters(" abct")
FRAME_S = 0.04


def posteriors(path, *, size=6, sure=0.9):
    """Return log-probabilities (T, V) whose likeliest path is given."""
    probs = torch.full((len(path), size), (1 - sure) / (size - 1))
    probs[torch.arange(len(path)), torch.tensor(path)] = sure
    return probs.log()


def test_peaks_share_the_blanks_between():
    spans = align(posteriors([0, 0, 2, 2, 0, 0, 0, 3, 0]), [2, 3], frame_s=FRAME_S, reach_s=10.0)
    assert [span.token for span in spans] == [2, 3]
    assert [span.start_s for span in spans] == pytest.approx([0.0, 5.5 * FRAME_S])
    assert [span.end_s for span in spans] == pytest.approx([5.5 * FRAME_S, 9 * FRAME_S])
    assert spans[1].peak_s == pytest.approx(7.5 * FRAME_S)
    assert spans[1].confidence == pytest.approx(0.9)


def test_times_follow_the_middle_of_the_first_frame():
    log_probs = posteriors([2, 0, 0, 3, 0])
    usual = align(log_probs, [2, 3], frame_s=FRAME_S)
    centred = align(log_probs, [2, 3], frame_s=FRAME_S, first_s=0.0)
    assert [span.peak_s for span in centred] == pytest.approx([0.0, 3 * FRAME_S])
    assert centred[0].start_s == 0
    for name in ("start_s", "end_s", "peak_s"):
        late = getattr(usual[1], name) - getattr(centred[1], name)
        assert late == pytest.approx(FRAME_S / 2)


def test_reach_is_limited():
    spans = align(posteriors([0] * 10 + [2] + [0] * 10), [2], frame_s=FRAME_S, reach_s=0.08)
    assert spans[0].start_s == pytest.approx(8 * FRAME_S)
    assert spans[0].end_s == pytest.approx(13 * FRAME_S)


def best_path(log_probs, tokens):
    """Return the score of the likeliest path that spells the tokens, by enumeration."""
    best = -float("inf")
    for path in itertools.product(range(log_probs.shape[1]), repeat=len(log_probs)):
        spelled = [token for token, _ in itertools.groupby(path) if token]
        if spelled == tokens:
            best = max(best, sum(log_probs[t, token].item() for t, token in enumerate(path)))
    return best


@pytest.mark.parametrize("tokens", [[1], [1, 2], [1, 1], [2, 1, 2], [2, 2, 1]])
@pytest.mark.parametrize("seed", range(3))
def test_the_path_is_the_likeliest(tokens, seed):
    generator = torch.Generator().manual_seed(seed)
    log_probs = torch.randn(5, 3, generator=generator).log_softmax(dim=1)
    spans = align(log_probs, tokens, frame_s=1.0, reach_s=0.0)
    assert [span.token for span in spans] == tokens
    # frames outside all spans are blanks
    path = [0] * 5
    for span in spans:
        for frame in range(round(span.start_s), round(span.end_s)):
            path[frame] = span.token
    score = sum(log_probs[t, token].item() for t, token in enumerate(path))
    assert score == pytest.approx(best_path(log_probs, tokens), abs=1e-5)


def test_words():
    log_probs = posteriors([0, 4, 2, 0, 5, 1, 0, 0, 0, 2, 3, 0])
    tokens = TOKENIZER.encode("cat ab")
    assert [TOKENIZER.decode([token]) for token in tokens] == ["c", "a", "t", "", "a", "b"]
    log_probs[9] = posteriors([2], sure=0.4)[0]
    spans = align(log_probs, tokens, frame_s=FRAME_S)
    first, second = words_of(spans, TOKENIZER)
    assert (first.text, second.text) == ("cat", "ab")
    assert 0 <= first.start_s < first.end_s <= second.start_s < second.end_s
    assert first.confidence == pytest.approx(0.9)
    assert second.confidence == pytest.approx(0.4)


def test_words_are_those_of_the_text_whatever_white_space_bytes_spell():
    tokenizer = Bytes()
    text = "a\u00a0b\tcd  e \t f\u3000"
    spans = [
        alignment.TokenSpan(token, at, at + 1.0, at + 0.5, 0.9)
        for at, token in enumerate(tokenizer.encode(text))
    ]
    words = [word.text for word in words_of(spans, tokenizer)]
    assert words == ["a", "b", "cd", "e", "f"]
    assert words == tokenizer.decode(span.token for span in spans).split()


def test_words_of_pieces():
    texts = ["the cat sat", "a cat"] * 3
    tokenizer = SentencePieces.fit(texts, size=16)
    tokens = tokenizer.encode("the cat sat")
    path = [0, *itertools.chain.from_iterable((token, 0) for token in tokens)]
    hypothesis = timed(posteriors(path, size=tokenizer.size), tokens, tokenizer, frame_s=FRAME_S)
    assert [word.text for word in hypothesis.words] == ["the", "cat", "sat"]
    assert hypothesis.text == "the cat sat"
    assert hypothesis.tokens == tuple(tokens)
    assert list(hypothesis.times) == sorted(hypothesis.times)
    assert hypothesis.confidence == pytest.approx(0.9)


def test_another_transcript_than_the_likeliest():
    log_probs = posteriors([0, 4, 0, 2, 0, 5, 0, 0])
    spans = align(log_probs, TOKENIZER.encode("bat"), frame_s=1.0)
    assert [round(span.peak_s - 0.5) for span in spans][1:] == [3, 5]
    assert spans[0].confidence == pytest.approx(0.02)


def test_pieces_of_long_recordings_give_the_whole(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    said = torch.randint(1, 6, (400,), generator=generator).tolist()
    path = [0, *itertools.chain.from_iterable((token, 0, 0) for token in said)]
    noise = 0.3 * torch.randn(len(path), 6, generator=generator)
    log_probs = (posteriors(path) + noise).log_softmax(dim=1)
    tokens = [*said[:90], 1, *said[90:200], *said[205:]]
    whole = align(log_probs, tokens, frame_s=FRAME_S)
    cut = []
    monkeypatch.setattr(alignment, "_CELLS", 1000)
    monkeypatch.setattr(alignment, "_PIECE", 50)
    viterbi = alignment._viterbi
    monkeypatch.setattr(alignment, "_viterbi", lambda x, y: cut.append(len(y)) or viterbi(x, y))
    assert align(log_probs, tokens, frame_s=FRAME_S) == whole
    assert len(cut) > 4
    assert sum(cut) == len(tokens)


def test_nothing_said():
    assert align(posteriors([0, 0]), [], frame_s=FRAME_S) == []
    assert align(torch.zeros(0, 6), [], frame_s=FRAME_S) == []
    hypothesis = timed(posteriors([0, 0]), [], TOKENIZER, frame_s=FRAME_S)
    assert (hypothesis.text, hypothesis.words, hypothesis.confidence) == ("", (), 1.0)


def test_transcripts_that_cannot_be_aligned():
    with pytest.raises(JobError, match=r"3 tokens needs at least 4 frames, the recording has 3"):
        align(posteriors([2, 2, 3]), [2, 2, 3], frame_s=FRAME_S)
    with pytest.raises(JobError, match="at least 1 frames, the recording has 0"):
        align(torch.zeros(0, 6), [2], frame_s=FRAME_S)
    log_probs = posteriors([2, 3, 0])
    log_probs[:, 4] = -float("inf")
    with pytest.raises(JobError, match="no probability"):
        align(log_probs, [2, 4], frame_s=FRAME_S)
    with pytest.raises(JobError, match="no probability"):
        align(torch.full((4, 6), float("nan")), [2], frame_s=FRAME_S)
