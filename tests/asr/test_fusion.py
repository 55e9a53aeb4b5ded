"""Scorers: sums over a hypothesis equal the model's, whatever the tokenizer; what is forbidden."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr import kneser_ney
from speechkit.asr.fusion import Lexicon, Sum, WordLanguageModel, check_vocabulary
from speechkit.asr.ngram import NGramModel
from speechkit.asr.tokenizer import Bytes, Characters, SentencePieces
from speechkit.ctc_beam import BeamConfig, beam_search
from speechkit.errors import RequestError

TEXTS = ["the cat sat", "the café is shut", "a cat is a cat", "cats sat"] * 2
MODEL = kneser_ney.train(TEXTS)
TOKENIZERS = [Characters.fit(TEXTS), Bytes.fit(TEXTS), SentencePieces.fit(TEXTS, size=25)]
WORDS = sorted(MODEL.vocabulary)
STRANGE = ["catsa", "hut", "ca", "tea"]


def total(scorer, tokens):
    """Return the bonus of a whole hypothesis."""
    state, bonus = scorer.start(), 0.0
    for token in tokens:
        gain, state = scorer.score(state, token)
        assert isinstance(hash(state), int)
        bonus += gain
        if bonus == -math.inf:
            return bonus
    return bonus + scorer.finish(state)


@given(st.lists(st.sampled_from([*WORDS, *STRANGE]), max_size=5), st.sampled_from(TOKENIZERS))
@settings(max_examples=60, deadline=None)
def test_a_hypothesis_gets_its_sentence(words, tokenizer):
    scorer = WordLanguageModel(MODEL, tokenizer, weight=0.7, word_bonus=1.5, unknown_penalty=-4.0)
    unknown = sum(word in STRANGE for word in words)
    wanted = 0.7 * (MODEL.sentence(words) - 4.0 * unknown) + 1.5 * len(words)
    assert total(scorer, tokenizer.encode(" ".join(words))) == pytest.approx(wanted)


def test_an_unknown_word_pays_as_soon_as_it_is_one():
    tokenizer = TOKENIZERS[0]
    scorer = WordLanguageModel(MODEL, tokenizer, weight=1.0, unknown_penalty=-4.0)
    state, gains = scorer.start(), []
    for token in tokenizer.encode("catsaa"):
        gain, state = scorer.score(state, token)
        gains.append(gain)
    assert gains == [0, 0, 0, 0, -4.0, 0]


def test_extra_spaces_are_no_words():
    tokenizer = TOKENIZERS[0]
    scorer = WordLanguageModel(MODEL, tokenizer, word_bonus=1.0)
    tight, loose = (tokenizer.encode(text) for text in ("the cat", " the   cat "))
    assert total(scorer, loose) == pytest.approx(total(scorer, tight))


def test_without_unknown_words():
    tokenizer = TOKENIZERS[0]
    entries = {gram: entry for gram, entry in MODEL.entries.items() if gram != ("<unk>",)}
    model = NGramModel(entries)
    known, strange = tokenizer.encode("the cat"), tokenizer.encode("the hut")
    closed = WordLanguageModel(model, tokenizer, unknown_penalty=-math.inf)
    assert total(closed, strange) == -math.inf
    assert total(closed, known) > -math.inf
    # only the penalty is left to say
    assert total(WordLanguageModel(model, tokenizer), strange) > -math.inf
    assert total(WordLanguageModel(model, tokenizer, weight=0.0), strange) == 0


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
def test_a_lexicon_allows_its_words_only(tokenizer):
    lexicon = Lexicon(["cat", "cats", "sat", "café"], tokenizer)
    for text in ("", "cat", "cats sat", "café cat cat"):
        assert total(lexicon, tokenizer.encode(text)) == 0
    for text in ("ca", "cat sa", "catsat", "sat hut", "the", "sa cat", "caf"):
        assert total(lexicon, tokenizer.encode(text)) == -math.inf


def test_scorers_add_up():
    tokenizer = TOKENIZERS[0]
    lm = WordLanguageModel(MODEL, tokenizer)
    both = Sum(lm, Lexicon(["cat", "the"], tokenizer))
    assert total(both, tokenizer.encode("the cat")) == total(lm, tokenizer.encode("the cat"))
    assert total(both, tokenizer.encode("the sat")) == -math.inf
    assert total(both, tokenizer.encode("the ca")) == -math.inf


def test_beam_search_heeds_them():
    tokenizer = TOKENIZERS[0]
    # "the cet sat", heard with some doubt, and "hat" for the last word a little likelier
    heard = tokenizer.encode("the cet hat")
    probs = torch.full((2 * len(heard), tokenizer.size), 0.02)
    probs[::2, 0] = 0.9
    for place, token in enumerate(heard):
        probs[2 * place + 1, token] = 0.5
    probs[11, tokenizer.encode("a")[0]] = 0.3
    probs[17, tokenizer.encode("s")[0]] = 0.4
    log_probs = (probs / probs.sum(dim=1, keepdim=True)).log()

    def best(scorer):
        return tokenizer.decode(beam_search(log_probs, scorer=scorer)[0][0].tokens)

    assert best(None) == "the cet hat"
    assert best(WordLanguageModel(MODEL, tokenizer, weight=1.0)) == "the cat sat"
    assert best(Lexicon(["the", "cat", "hat"], tokenizer)) == "the cat hat"
    both = Sum(WordLanguageModel(MODEL, tokenizer), Lexicon(["the", "cat"], tokenizer))
    assert set(best(both).split()) <= {"the", "cat"}


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: t.kind)
@pytest.mark.parametrize("beam", [1, 4, 16])
def test_what_is_found_ends_on_a_word(tokenizer, beam):
    words = ["café", "cats", "sat", "shut"]
    generator = torch.Generator().manual_seed(0)
    for text in ("the cat sat", "a caf", "cats shu", "s", ""):
        heard = torch.tensor([0, *(t for token in tokenizer.encode(text) for t in (token, 0))])
        logits = 6 * torch.nn.functional.one_hot(heard, tokenizer.size)
        logits = logits + torch.randn(logits.shape, generator=generator)
        (found,) = beam_search(
            logits, config=BeamConfig(beam=beam), scorer=Lexicon(words, tokenizer)
        )
        assert all(math.isfinite(hypothesis.score) for hypothesis in found)
        assert {w for h in found for w in tokenizer.decode(h.tokens).split()} <= set(words)


def test_another_vocabulary_is_refused():
    upper = kneser_ney.train(["THE CAT SAT"])
    with pytest.raises(RequestError, match=r"0% of the 3 words .*CAT, SAT, THE.*mind the case"):
        WordLanguageModel(upper, TOKENIZERS[0])
    with pytest.raises(RequestError, match="mind the case"):
        Lexicon(["猫", "THE"], TOKENIZERS[2])
    with pytest.raises(RequestError, match="no word"):
        Lexicon([], TOKENIZERS[0])
    # bytes know every character; what they saw in training tells
    with pytest.raises(RequestError, match="mind the case"):
        WordLanguageModel(upper, TOKENIZERS[1])
    assert check_vocabulary(upper.vocabulary, Bytes()) == 1
    assert check_vocabulary(["cat", "hat", "X"], TOKENIZERS[0]) == pytest.approx(2 / 3)
    with pytest.raises(RequestError, match="of the 0 words"):
        check_vocabulary([], TOKENIZERS[0])


def test_bad_weights():
    with pytest.raises(RequestError, match="weight -1"):
        WordLanguageModel(MODEL, TOKENIZERS[0], weight=-1)
    with pytest.raises(RequestError, match="weight nan"):
        WordLanguageModel(MODEL, TOKENIZERS[0], weight=math.nan)
    with pytest.raises(RequestError, match="word_bonus inf"):
        WordLanguageModel(MODEL, TOKENIZERS[0], word_bonus=math.inf)
    with pytest.raises(RequestError, match="unknown_penalty 3"):
        WordLanguageModel(MODEL, TOKENIZERS[0], unknown_penalty=3)
