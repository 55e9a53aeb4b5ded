import numpy as np
import pytest

from speechkit.active_learning.budget import AnnotationCost, Budget
from speechkit.errors import RequestError


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("500", "clips", 500),
        ("1clip", "clips", 1),
        ("500 clips", "clips", 500),
        ("1800s", "seconds", 1800),
        ("30min", "seconds", 1800),
        ("2h", "seconds", 7200),
        (" 0.5H ", "seconds", 1800),
        ("cost:120", "cost", 120),
        ("cost:.5", "cost", 0.5),
    ],
)
def test_forms(text, kind, amount):
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, amount)


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0h", "-5", "-2h", "nan", "inf", "1e999", "2 days", "h", "2.5", "2.5clips"),
        *("cost:", "cost:2h", "cost:0", "1_000", "٣", "5%"),
    ],
)
def test_nonsense_is_refused(text):
    with pytest.raises(RequestError, match="budget"):
        Budget.parse(text)


def test_costs():
    durations = np.array([1.0, 2.5])
    assert Budget.parse("5").costs(durations).tolist() == [1, 1]
    assert Budget.parse("5s").costs(durations).tolist() == [1, 2.5]
    cost = AnnotationCost(fixed=2, per_second=4)
    assert Budget.parse("cost:5", annotation=cost).costs(durations).tolist() == [6, 12]
    with pytest.raises(RequestError, match="annotation cost"):
        AnnotationCost(fixed=0, per_second=0)
    with pytest.raises(RequestError, match="annotation cost"):
        AnnotationCost(fixed=-1)
