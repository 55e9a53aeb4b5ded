import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechkit.density.corpus import Stream
from speechkit.density.windows import Window, WindowPlan
from speechkit.errors import RequestError


@st.composite
def plans(draw):
    length = draw(st.integers(1, 40))
    return WindowPlan(
        draw(st.integers(length, 400)), length, min_context=draw(st.integers(0, length - 1))
    )


@given(plans())
def test_every_byte_is_scored_once_and_in_order(plan):
    scored = [place for window in plan for place in window.scored]
    assert scored == list(range(plan.total))


@given(plans())
def test_windows_lie_in_the_stream_and_have_the_context_promised(plan):
    first, *others = list(plan)
    assert (first.start, first.scored_from) == (0, 0)
    for window in others:
        assert 0 <= window.start <= plan.total - plan.length
        assert plan.min_context <= window.scored_from < plan.length
        assert window.length == plan.length


@given(plans())
def test_no_window_is_in_vain(plan):
    assert all(len(window.scored) > 0 for window in plan)
    assert [plan[index] for index in range(len(plan))] == list(plan)


@given(plans(), st.integers(0, 2**32 - 1))
def test_windows_of_a_stream_hold_its_bytes(plan, seed):
    data = np.random.default_rng(seed).integers(0, 256, plan.total, dtype=np.uint8)
    windows = Stream(data).evaluation(length=plan.length, min_context=plan.min_context)
    scored = np.concatenate([window.data[window.scored_from :] for window in windows])
    np.testing.assert_array_equal(scored, data)
    contexts = np.concatenate([window.context for window in windows])
    assert (contexts[plan.length :] >= plan.min_context).all()
    np.testing.assert_array_equal(contexts[: plan.length], np.arange(plan.length))


@pytest.mark.parametrize(
    ("least", "step"), [(6144, 6144), (9216, 3072), (10752, 1536), (11904, 384), (12160, 128)]
)
def test_the_papers_settings_for_enwik8(least, step):
    plan = WindowPlan(5_000_000, 12_288, least)
    assert plan.step == step
    assert plan[1] == Window(step, 12_288, least)
    assert sum(len(window.scored) for window in plan) == 5_000_000


@pytest.mark.parametrize(
    ("total", "length", "least", "message"),
    [
        (9, 10, 0, "9 bytes are fewer than a window of 10"),
        (100, 10, 10, "minimum context 10: give 0 to 9"),
        (100, 10, -1, "minimum context -1"),
    ],
)
def test_what_cannot_be(total, length, least, message):
    with pytest.raises(RequestError, match=message):
        WindowPlan(total, length, least)


@pytest.mark.parametrize("index", [-1, 3])
def test_an_index_beyond_the_plan(index):
    plan = WindowPlan(30, 10)
    assert len(plan) == 3
    with pytest.raises(IndexError):
        plan[index]
