"""Tokenizers: round trips, descriptions, word starts, unknown characters."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.asr.normaliser import Normaliser
from speechkit.asr.tokenizer import (
    Bytes,
    Characters,
    SentencePieces,
    from_description,
    out_of_vocabulary,
)
from speechkit.errors import RequestError

TEXTS = [
    "the cat sat on the mat",
    "it's a dog's life",
    "the quick brown fox jumps over the lazy dog",
    "fünf zoë",
    "hello hello world",
] * 3


def tokenizers():
    return [
        Characters.fit(TEXTS),
        Bytes.fit(TEXTS),
        SentencePieces.fit(TEXTS, size=60, model_type="bpe"),
        SentencePieces.fit(TEXTS, size=45),
    ]


@pytest.mark.parametrize("tokenizer", tokenizers(), ids=lambda t: t.kind)
def test_round_trips(tokenizer):
    same = from_description(json.loads(json.dumps(tokenizer.describe())))
    assert same.pieces == tokenizer.pieces
    assert tokenizer.pieces[0] == b""
    assert tokenizer.size == len(tokenizer.pieces)
    for text in TEXTS:
        tokens = tokenizer.encode(text)
        assert all(0 < token < tokenizer.size for token in tokens)
        assert same.encode(text) == tokens
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode([0, *tokens, 0]) == text
        starts = sum(tokenizer.starts_word(token) for token in tokens)
        assert starts in (len(text.split()) - 1, len(text.split()))
    assert tokenizer.encode("") == []
    assert tokenizer.decode([]) == ""


@given(st.text())
def test_bytes_hold_every_text(text):
    tokenizer, text = Bytes(), Normaliser()(text)
    if all(map(tokenizer.knows, text)):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.lists(st.integers(0, 256)))
def test_any_bytes_can_be_decoded(tokens):
    assert isinstance(Bytes().decode(tokens), str)


@pytest.mark.parametrize("index", [0, 2, 3])
def test_unknown_characters_are_counted_and_dropped(index):
    tokenizer = tokenizers()[index]
    texts = ["the CAT", "the cat", "CC ñ"]
    report = out_of_vocabulary(tokenizer, texts)
    assert report.characters == {"C": 3, "A": 1, "T": 1, "ñ": 1}
    assert report.texts == 2
    assert report.rate == 6 / 18
    assert tokenizer.decode(tokenizer.encode("the ñcat")) == "the cat"
    report.require(at_most=0.34)
    with pytest.raises(RequestError, match=r"33\.33% .* in 2 texts: 'C' \(3\).*normalise"):
        report.require()


def test_nothing_is_unknown():
    assert out_of_vocabulary(Bytes(), ["x ñ"]).rate == 0
    assert out_of_vocabulary(Characters("a "), []).rate == 0
    out_of_vocabulary(Characters("a "), ["a a"]).require()


def test_bad_input():
    with pytest.raises(RequestError, match="no text"):
        Characters.fit(["", " "])
    with pytest.raises(RequestError, match="occur twice"):
        Characters("aab ")
    with pytest.raises(RequestError, match="half characters"):
        Characters("a \ud800")
    with pytest.raises(RequestError, match="lack the space"):
        Characters("ab")
    with pytest.raises(RequestError, match="no text"):
        SentencePieces.fit([])
    with pytest.raises(RequestError, match=r"size 5: these texts need at least \d+"):
        SentencePieces.fit(TEXTS, size=5)
    with pytest.raises(RequestError, match="damaged"):
        SentencePieces(b"no model")
    with pytest.raises(RequestError, match=r"'words' is not known; give one of characters, bytes"):
        from_description({"kind": "words"})
    with pytest.raises(RequestError, match="damaged"):
        from_description({"kind": "sentencepiece", "model": "*"})
    with pytest.raises(RequestError, match="damaged"):
        from_description({"kind": "characters"})


def test_sentencepiece_size_is_a_limit():
    texts = [*TEXTS, "a" * 6000]
    assert SentencePieces.fit(texts, size=60).size <= 60
    assert SentencePieces.fit(texts, size=10_000).size < 10_000
    first, second = (SentencePieces.fit(TEXTS, size=40).describe() for _ in range(2))
    assert first == second
