"""The form of text: each rule, and that a second pass changes nothing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.asr.normaliser import Normaliser
from speechkit.errors import RequestError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Hello, World!", "hello world"),
        ("  Don\u2019t  stop\n", "don't stop"),
        ("the debtors' prison, 'em", "the debtors' prison 'em"),
        ("hey_computer twenty-one", "hey computer twenty one"),
        ("\ufb01ne caf\u0065\u0301", "fine caf\u00e9"),
        ("rock 'n' roll ''' ...", "rock 'n' roll"),
        ("in 1999, £5", "in 1999 5"),
        ("a\x00b\u00a0c", "a b c"),
        ("\ufeffco\u00adop \u202ahello\u202c", "coop hello"),
        ("\u0e20\u0e32\u200b\u0e44\u0e17\u0e22", "\u0e20\u0e32 \u0e44\u0e17\u0e22"),
        ("\u0645\u06cc\u200c\u062e\u0648", "\u0645\u06cc\u200c\u062e\u0648"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_the_defaults(text, wanted):
    assert Normaliser()(text) == wanted


def test_settings():
    assert Normaliser(case="upper")("straße, Don't") == "STRASSE DON'T"
    assert Normaliser(case="keep", strip_punctuation=False)(" A,  b_c ") == "A, b_c"
    assert Normaliser(kept="'-")("twenty-one - two") == "twenty-one two"


@given(
    st.text(),
    st.sampled_from(["NFC", "NFKC", "NFD", "NFKD"]),
    st.sampled_from(["lower", "upper", "keep"]),
    st.booleans(),
)
def test_twice_is_once(text, form, case, strip):
    normalise = Normaliser(unicode_form=form, case=case, strip_punctuation=strip)
    once = normalise(text)
    assert normalise(once) == once
    assert once == " ".join(once.split())


def test_configuration_round_trip():
    normalise = Normaliser(case="upper", kept="'-")
    assert Normaliser.from_dict(normalise.to_dict()) == normalise
    with pytest.raises(RequestError, match=r"kase: give only unicode_form, case"):
        Normaliser.from_dict({"kase": "lower"})
    with pytest.raises(RequestError, match=r"case 'Lower': give one of lower, upper, keep"):
        Normaliser.from_dict({"case": "Lower"})
