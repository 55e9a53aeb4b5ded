"""Back-off models: a known file, round trips, bad files, Kneser-Ney's sums."""

import gzip
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.asr import kneser_ney
from speechkit.asr.ngram import NGramModel
from speechkit.errors import RequestError

ARPA = """a comment

\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-99\t<s>\t-0.5
-0.8\t</s>
-1.0\t<unk>
-0.6\ta\t-0.3
-0.7 b -0.2

\\2-grams:
-0.1\t<s> a\t-0.4
-0.25\ta b\t-0.05
-0.35\tb </s>

\\3-grams:
-0.15\t<s> a b

\\end\\
"""

LN10 = math.log(10)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "lm.arpa"
    path.write_text(ARPA)
    return path


@pytest.mark.parametrize(
    ("sentence", "log10"),
    [
        ("a b", -0.1 - 0.15 + (-0.05 - 0.35)),
        # b after <s> backs off; so does the end after a
        ("b a", (-0.5 - 0.7) + (-0.2 - 0.6) + (-0.3 - 0.8)),
        ("", -0.5 - 0.8),
        ("what", (-0.5 - 1.0) - 0.8),
        ("a a b", -0.1 + (-0.4 - 0.3 - 0.6) - 0.25 + (-0.05 - 0.35)),
    ],
)
def test_probabilities_by_hand(path, sentence, log10):
    model = NGramModel.load(path)
    assert model.sentence(sentence.split()) == pytest.approx(log10 * LN10)


def test_what_a_model_says_of_itself(path):
    model = NGramModel.load(path)
    assert model.order == 3
    assert model.vocabulary == {"a", "b"}
    assert model.knows("a")
    assert not model.knows("what")
    # nothing longer than b matters to what follows b
    assert model.score(("<s>", "b"), "b")[1] == ("b",)
    assert model.score(("<s>", "a"), "b")[1] == ("a", "b")
    measured = model.perplexity(["a b", "a what"])
    assert (measured.known, measured.unknown) == (5, 1)
    total = -0.1 - 0.15 - 0.4 - 0.1 - 0.8
    assert measured.value == pytest.approx(10 ** (-total / 5))
    with pytest.raises(RequestError, match="no text to measure"):
        model.perplexity([])


@pytest.mark.parametrize("name", ["lm.arpa", "lm.arpa.gz"])
def test_round_trip(path, tmp_path, name):
    model = NGramModel.load(path)
    model.save(tmp_path / "again" / name)
    again = NGramModel.load(tmp_path / "again" / name)
    assert again.entries.keys() == model.entries.keys()
    for gram, entry in model.entries.items():
        assert again.entries[gram] == pytest.approx(entry)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\\data\\", "", r"line 23: no line \\data\\; this is no ARPA file"),
        ("ngram 2=3", "ngram 2=x", "line 5: wanted is 'ngram 2=COUNT', found is 'ngram 2=x'"),
        ("ngram 2=3", "ngram 3=3", "line 5: wanted is 'ngram 2=COUNT'"),
        ("ngram 2=3", "ngram 2=4", "line 20: 3 2-grams are there, announced are 4"),
        ("-0.25\ta b\t-0.05", "-0.25\ta", "line 17: wanted are a number, 2 words and a back-off"),
        ("-0.25\ta b", "x\ta b", "line 17: a number is malformed"),
        ("-0.25\ta b", "nan\ta b", "line 17: nan is no logarithm of a probability"),
        ("-0.25\ta b", "0.25\ta b", "line 17: 0.25 is no logarithm of a probability"),
        ("-0.35\tb </s>", "-0.35\ta b", "line 18: 'a b' is there twice"),
        ("\\2-grams:", "\\3-grams:", r"line 15: wanted is \\2-grams:"),
        ("\\end\\", "", r"ends without \\end\\; it is cut off"),
    ],
)
def test_bad_files_are_named_with_the_line(path, old, new, message):
    path.write_text(ARPA.replace(old, new))
    with pytest.raises(RequestError, match=message) as caught:
        NGramModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_arpa(tmp_path):
    with pytest.raises(RequestError, match="no such file"):
        NGramModel.load(tmp_path / "none.arpa")
    path = tmp_path / "x.arpa"
    path.write_bytes(b"\\data\\\n\xff\xfe\x00")
    with pytest.raises(RequestError, match="no UTF-8"):
        NGramModel.load(path)
    packed = tmp_path / "x.arpa.gz"
    packed.write_bytes(gzip.compress(ARPA.encode())[:-20])
    with pytest.raises(RequestError, match="cannot be read"):
        NGramModel.load(packed)
    packed.write_text(ARPA)
    with pytest.raises(RequestError, match="cannot be read"):
        NGramModel.load(packed)


WORDS = st.sampled_from(["a", "b", "c", "d"])
SENTENCES = st.lists(st.lists(WORDS, max_size=6), min_size=1, max_size=8).filter(any)


@given(SENTENCES, st.integers(1, 4), st.lists(WORDS | st.just("z"), max_size=4))
@settings(max_examples=60, deadline=None)
def test_kneser_ney_sums_to_one_after_any_history(sentences, order, before):
    model = kneser_ney.train([" ".join(words) for words in sentences], order=order)
    history = model.start()
    for word in before:
        history = model.score(history, word)[1]
    words = [*model.vocabulary, "<unk>"]
    total = sum(math.exp(model.score(history, word)[0]) for word in words)
    assert total + math.exp(model.finish(history)) == pytest.approx(1)


def test_kneser_ney_by_hand():
    # bigrams: <s> a (2), a b (1), b </s> (1), a c (1), c </s> (1): n1 = 4, n2 = 1, D = 2/3
    # unigrams count contexts: a 1, b 1, c 1, </s> 2: n1 = 3, n2 = 1, D = 3/5
    model = kneser_ney.train(["a b", "a c"])
    uniform = 1 / 5
    unigram_a = (1 - 0.6) / 5 + (0.6 * 4 / 5) * uniform
    assert math.exp(model.score((), "a")[0]) == pytest.approx(unigram_a)
    wanted = (2 - 2 / 3) / 2 + (2 / 3 * 1 / 2) * unigram_a
    assert math.exp(model.score(("<s>",), "a")[0]) == pytest.approx(wanted)


def test_kneser_ney_counts_contexts_not_occurrences():
    # "francisco" is frequent but follows one word only
    model = kneser_ney.train(["san francisco"] * 5 + ["a glass", "the glass", "no glass"])
    assert model.score((), "glass")[0] > model.score((), "francisco")[0]


def test_trained_model_predicts_what_it_saw(tmp_path):
    texts = ["one two three", "two three four", "one two four"] * 4
    models = [kneser_ney.train(texts, order=order) for order in (1, 2, 3)]
    measured = [model.perplexity(texts).value for model in models]
    assert measured == sorted(measured, reverse=True)
    models[2].save(tmp_path / "x.arpa")
    again = NGramModel.load(tmp_path / "x.arpa")
    assert again.perplexity(texts).value == pytest.approx(measured[2], rel=1e-6)


def test_bad_training_texts():
    with pytest.raises(RequestError, match="order 0: give 1 to"):
        kneser_ney.train(["a"], order=0)
    with pytest.raises(RequestError, match="no words"):
        kneser_ney.train(["", " "])
    with pytest.raises(RequestError, match="<s> is reserved"):
        kneser_ney.train(["a <s>"])
