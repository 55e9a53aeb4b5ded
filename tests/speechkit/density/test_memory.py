import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from speechkit.density.memory import dense_attention_bytes, training_memory
from speechkit.density.model import DensityConfig, DensityModel
from speechkit.sparse_transformer import StackConfig

# steps, GB of all 64 layers, GB of one, each with the unit of its last printed digit
PUBLISHED = [
    (1024, (1.0, 0.1), (0.016, 0.001)),
    (3072, (9.6, 0.1), (0.151, 0.001)),
    (12288, (154, 1), (2.4, 0.1)),
    (24000, (590, 1), (9.2, 0.1)),
]


@pytest.mark.parametrize(("steps", "stored", "recomputed"), PUBLISHED)
def test_published_figures_of_dense_attention(steps, stored, recomputed):
    for recompute, (figure, unit) in ((False, stored), (True, recomputed)):
        size = dense_attention_bytes(steps, layers=64, heads=4, recompute=recompute)
        assert size / 1e9 == pytest.approx(figure, abs=unit)


def measured_peak(config, batch, steps, half):
    """The most that tensors hold in a training step, from the allocator's own events."""
    tokens = torch.randint(256, (batch, steps))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        model = DensityModel(config)
        optimiser = torch.optim.Adam(model.parameters())
        for part in (tokens[:, :8], tokens):  # the first step makes the optimiser's moments
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = model.loss(part)
            loss.backward()
            optimiser.step()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


SIZES = {
    "deep": ({"layers": 6, "width": 128, "heads": 4, "dropout": 0.1}, 1, 1500),
    "half-size": (
        {"layers": 8, "width": 128, "heads": 2, "half_keys": True, "feed_forward_ratio": 2},
        1,
        1500,
    ),
    "many parameters": ({"layers": 3, "width": 256, "heads": 4, "dropout": 0.1}, 1, 300),
    "long": ({"layers": 2, "width": 64, "heads": 2, "feed_forward_steps": 1024}, 1, 8192),
    "one head": ({"layers": 4, "width": 64, "heads": 1, "feed_forward_steps": 16384}, 1, 4096),
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_predicts_the_measured_peak(size, recompute, half):
    stack, batch, steps = SIZES[size]
    config = DensityConfig(
        shape=(256, 64),
        stack=StackConfig(
            **stack, patterns=("Local(64)", "Strided(64)"), recompute=recompute, backend="cpu"
        ),
    )
    predicted = training_memory(config, batch=batch, steps=steps, half=half).peak
    assert predicted == pytest.approx(measured_peak(config, batch, steps, half), rel=0.15)


def test_recomputation_pays_more_the_deeper():
    def saved(layers):
        peaks = [
            training_memory(
                DensityConfig(
                    shape=(64, 64),
                    stack=StackConfig(layers=layers, width=256, heads=2, recompute=recompute),
                ),
                batch=4,
                steps=4096,
            ).peak
            for recompute in (False, True)
        ]
        return peaks[0] / peaks[1]

    assert saved(4) > 2
    assert saved(32) > 1.5 * saved(4)
