"""Where the time of an attention goes: torch's operators by the time spent in themselves.

The products' share bounds what anything but faster products can gain; what stands under the names
of our operators is Python between the calls.
"""

from collections import defaultdict
from dataclasses import dataclass

import torch

from speechkit.kernels.bench import Case, inputs, sparse

_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class Spent:
    """The seconds that an operator of torch takes in one run of both passes, and its calls."""

    operator: str
    calls: int
    seconds: float


def profile(case: Case) -> list[Spent]:
    """Return where the time goes, what takes longest first; the profiler's own time is in it."""
    *leaves, gradient = inputs(case)
    for leaf in leaves:
        leaf.requires_grad_()
    attend = sparse(case)

    def once() -> None:
        torch.autograd.grad(attend(*leaves), leaves, gradient)

    once()
    with torch.profiler.profile() as profiler:
        for _ in range(_REPEATS):
            once()
    return _by_operator(profiler, "cpu" if case.device == "cpu" else "device")


def _by_operator(profiler: torch.profiler.profile, where: str) -> list[Spent]:
    calls: dict[str, int] = defaultdict(int)
    micros: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        # an operator and its form in place are the same arithmetic
        name = event.key.removeprefix("aten::").rstrip("_")
        calls[name] += event.count
        micros[name] += getattr(event, f"self_{where}_time_total")
    found = [
        Spent(operator=name, calls=calls[name] // _REPEATS, seconds=micros[name] / _REPEATS / 1e6)
        for name in micros
    ]
    return sorted(found, key=lambda spent: -spent.seconds)
