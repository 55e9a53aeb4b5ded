import re

import numpy as np
import pytest

from speechkit.density.generator import Writer, generate_text, generated_corpus, write_tale
from speechkit.density.metrics import compressor_baselines
from speechkit.errors import RequestError


def text_of(size, seed=0):
    return generate_text(size, seed=seed).data.tobytes().decode()


def test_text_depends_on_the_seed_alone_and_has_the_size_asked():
    assert text_of(4001) == text_of(4001)
    assert text_of(4001) == text_of(9000)[:4001]
    assert text_of(4001, seed=1) != text_of(4001)
    assert [len(text_of(size)) for size in (1, 77, 4001)] == [1, 77, 4001]


def test_brackets_and_quotes_close():
    closes = {")": "(", "]": "[", "}": "{"}
    text = text_of(100_000).rpartition("\n\n")[0]
    stack, deepest = [], 0
    for letter in text:
        if letter in closes.values():
            stack.append(letter)
        elif letter in closes:
            assert stack.pop() == closes[letter]
        deepest = max(deepest, len(stack))
    assert stack == []
    assert deepest == 3
    assert text.count('"') % 2 == 0


def test_what_was_said_stays_true():
    tales = text_of(100_000).split("\n\n")[:-1]
    answers = sums = 0
    for tale in tales:
        homes = {}
        for name, trade, home in re.findall(r"(\w+) is a (\w+) from (\w+) with", tale):
            homes[name] = homes[f"the {trade}"] = home
        for who, home in re.findall(r"Where does ((?:the )?\w+) live\? In (\w+)\.", tale):
            assert homes[who] == home
            answers += 1
        for first, second, total in re.findall(r"(\d+) of \w+ and (\d+) more, (\d+) in", tale):
            assert int(first) + int(second) == int(total)
            sums += 1
        title = re.match(r"A tale of (.*)\.\n", tale)[1]
        assert tale.endswith(f"So ends the tale of {title}.")
    assert min(answers, sums) > 30


class Reader(Writer):
    """A writer that may only say what a given text goes on with."""

    def __init__(self, index, text):
        super().__init__(index)
        self.given = text

    def say(self, text):
        if not self.given.startswith(text, self.length):
            raise LookupError
        super().say(text)


def derivations(text):
    """Return the bits of each way to make ``text`` by choices, by trying all of them."""
    found = []
    script = []  # pairs of an option and the number of options, as far as the text agrees
    while True:
        place = 0

        def index(choice):
            nonlocal place
            if place == len(script):
                script.append([0, len(choice.options)])
            place += 1
            return script[place - 1][0]

        reader = Reader(index, text)
        try:
            write_tale(reader)
            if reader.length == len(text):
                found.append(reader.bits)
        except LookupError:
            pass
        while script and script[-1][0] + 1 == script[-1][1]:
            script.pop()
        if not script:
            return found
        script[-1][0] += 1


@pytest.mark.parametrize("seed", range(3))
def test_a_tale_has_one_derivation_so_that_its_cost_is_its_information(seed):
    random = np.random.default_rng(seed)
    while True:
        writer = Writer(
            lambda choice: int(np.searchsorted(choice.cumulative, random.random(), side="right"))
        )
        write_tale(writer)
        if 500 < writer.length < 900:
            break
    assert derivations(writer.text) == [pytest.approx(writer.bits)]


def test_the_cost_of_the_choices_is_below_what_a_compressor_needs():
    corpus = generated_corpus(train_bytes=200_000, valid_bytes=20_000)
    train, valid = (corpus.split(name).data for name in ("train", "valid"))
    xz = next(b for b in compressor_baselines(train, valid) if b.name == "xz -9")
    assert 0.3 < corpus.entropy["valid"] < 0.6 < 1.0 < xz.after_training < 2.5
    assert corpus.entropy["valid"] == pytest.approx(corpus.entropy["train"], rel=0.05)
    assert not np.array_equal(train[:5000], valid[:5000])


def test_no_text():
    with pytest.raises(RequestError, match="0 bytes of text"):
        generate_text(0)
