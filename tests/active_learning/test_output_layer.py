import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from speechkit.active_learning.gradient_norms import record
from speechkit.active_learning.output_layer import (
    layer_inputs,
    logit_squares,
    output_layer_squares,
)
from speechkit.active_learning.per_clip_autograd import per_clip_autograd
from speechkit.errors import RequestError


def problem(frames: int, width: int, symbols: int, hypotheses: int = 4) -> tuple[Tensor, ...]:
    """Return hidden (B, T, d), gradients (K, B, T, V) and lengths, with NaN behind the lengths."""
    torch.manual_seed(frames)
    lengths = torch.tensor([frames, max(1, frames // 2), 1])
    hidden = torch.randn(3, frames, width, dtype=torch.float64)
    gradients = torch.randn(hypotheses, 3, frames, symbols, dtype=torch.float64)
    outside = torch.arange(frames) >= lengths[:, None]
    hidden[outside], gradients[:, outside] = torch.nan, torch.nan
    return hidden, gradients, lengths


@settings(max_examples=20, deadline=None)
@given(
    frames=st.integers(1, 20),
    width=st.integers(1, 12),
    symbols=st.integers(2, 12),
    bias=st.booleans(),
    limit=st.sampled_from([1, 100, 2**18]),
)
def test_the_closed_form_is_the_norm_of_the_layers_gradient(frames, width, symbols, bias, limit):
    hidden, gradients, lengths = problem(frames, width, symbols)
    layer = nn.Linear(width, symbols, bias=bias).double()
    expected = per_clip_autograd(
        layer,
        lambda i: layer(hidden[i : i + 1, : lengths[i]]),
        [gradients[:, i : i + 1, :n] for i, n in enumerate(lengths.tolist())],
    )
    found = output_layer_squares(hidden, gradients, lengths, bias=bias, limit_elements=limit)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)


def test_it_equals_the_recorded_norm_of_the_same_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    x, lengths = torch.randn(3, 9, 5, dtype=torch.float64), torch.full((3,), 9)
    gradients = torch.randn(2, 3, 9, 4, dtype=torch.float64)
    with record(model, "2") as norms, layer_inputs(model[2]) as seen:
        expected = norms.squared(model(x), gradients)
    assert not seen[0].requires_grad
    found = output_layer_squares(seen[0], gradients, lengths)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    model(x)
    assert len(seen) == 1


def test_logit_norms_ignore_what_lies_behind_a_clip():
    _, gradients, lengths = problem(7, 1, 5)
    expected = gradients.nan_to_num().square().sum((2, 3))
    torch.testing.assert_close(logit_squares(gradients, lengths), expected)


def test_shapes_that_do_not_fit_raise():
    hidden, gradients, lengths = problem(7, 2, 5)
    for wrong in (lengths[:2], lengths + 1):
        with pytest.raises(RequestError, match="lengths"):
            output_layer_squares(hidden, gradients, wrong)
    with pytest.raises(RequestError, match="logit gradients"):
        output_layer_squares(hidden, gradients[:, :, :-1], torch.ones(3, dtype=torch.int64))
