"""The conformance suite: every backend against float64, on the machine at hand.

The tolerance is FlashAttention's rule: an error may be twice that of plain attention in the same
precision (three times for gradients), which asks of a kernel no more than arithmetic allows, and
there is a floor for each precision, for where plain attention happens to be exact.

Shapes: B batch, H heads, T positions, D head size.
"""

import math
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from speechkit.kernels import operator, reference
from speechkit.kernels.encoding import encode
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    Pattern,
    PerHead,
    Strided,
)

QUANTITIES = ("output", "lse", "dq", "dk", "dv")
_INTERPRET = "TRITON_INTERPRET"
_LAYOUT = ((1, 0, 1), (0, 0, 0), (1, 1, 0))
PATTERNS: tuple[Pattern, ...] = (
    Dense(),
    Local(20),
    Strided(7),
    Dilated(5, 3),
    OwnBlock(23),
    Columns(16, 3),
    Fixed(16, 3, spread_heads=True),
    Merged(Local(20), Strided(16)),
    Merged(Local(9), Strided(7), OwnBlock(13)),
    PerHead(Local(12), Strided(12)),
    Blocks(_LAYOUT, 67),
)
_LENGTHS = (1, 2, 63, 64, 65, 127, 200)
_QUICK_PATTERNS = (Local(20), Fixed(16, 3, spread_heads=True), Merged(Local(20), Strided(16)))
_QUICK_LENGTHS = (1, 65, 150)
_FACTORS = {"output": 2.0, "lse": 2.0, "dq": 3.0, "dk": 3.0, "dv": 3.0}
# relative to the largest value; for half precision the rounding of the result, once
_FLOORS = {
    torch.float64: 1e-12,
    torch.float32: 1e-6,
    torch.bfloat16: torch.finfo(torch.bfloat16).eps,
    torch.float16: torch.finfo(torch.float16).eps,
}

Outcome = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request; the sequences of its batch have T, about T / 2 and 0 keys if `ragged`."""

    backend: str
    device: str
    pattern: Pattern
    dtype: torch.dtype
    length: int
    causal: bool
    ragged: bool
    heads: int = 2
    head_size: int = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a case gave: errors and limits, each relative to the largest value in float64."""

    case: Case
    errors: dict[str, float]
    limits: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every error is within its limit; NaN is not."""
        return all(self.errors[name] <= self.limits[name] for name in self.errors)


def cases(backend: str, device: str, *, quick: bool = False) -> Iterator[Case]:
    """Return the suite of a backend: ``dense``, ``cpu`` or ``triton``.

    Triton on the CPU means its interpreter, which is slow, and wrong in bfloat16: there only a few
    short requests in the types that it gets right.
    """
    few = quick or (backend == "triton" and device == "cpu")
    for dtype in _dtypes(backend, device):
        for pattern in _QUICK_PATTERNS if few else PATTERNS:
            for length in _QUICK_LENGTHS if few else _LENGTHS:
                for causal in (True, False):
                    yield Case(
                        backend=backend,
                        device=device,
                        pattern=pattern,
                        dtype=dtype,
                        length=length,
                        causal=causal,
                        ragged=length > 2,
                    )


def _dtypes(backend: str, device: str) -> tuple[torch.dtype, ...]:
    if backend != "triton":
        return torch.float64, torch.float32, torch.bfloat16, torch.float16
    if device == "cpu":
        return torch.float32, torch.float16
    return torch.float32, torch.bfloat16, torch.float16


def run(case: Case) -> Row:
    """Compute a case by its backend, by plain attention in its precision, and in float64."""
    names = [name for name in QUANTITIES if name != "lse" or case.backend != "dense"]
    expected = _expected(case, torch.float64)
    plain = _expected(case, case.dtype)
    found = _outcome(case, _inputs(case), _by_backend(case))
    floor = _FLOORS[case.dtype]
    return Row(
        case=case,
        errors={name: _difference(found[name], expected[name]) for name in names},
        limits={
            name: floor + _FACTORS[name] * _difference(plain[name], expected[name])
            for name in names
        },
    )


def run_interpreted(chosen: list[Case]) -> list[Row]:
    """Run cases of Triton on the CPU, in a process of its own where the interpreter is on.

    The variable that turns it on must be set before anything imports Triton, so the process
    inherits it.
    """
    fresh = multiprocessing.get_context("spawn")
    before = os.environ.get(_INTERPRET)
    os.environ[_INTERPRET] = "1"
    try:
        with ProcessPoolExecutor(1, fresh, torch.set_num_threads, (1,)) as pool:
            return list(pool.map(run, chosen))
    finally:
        del os.environ[_INTERPRET]
        if before is not None:
            os.environ[_INTERPRET] = before


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    causal: bool,
    scale: float,
    key_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Return output and log-sum-exp as plain torch computes them in the inputs' own precision."""
    visible = pattern.mask(q.shape[2], causal=causal, heads=q.shape[1], device=q.device)[None]
    if key_lengths is not None:
        key = torch.arange(q.shape[2], device=q.device)
        visible = visible & (key < key_lengths[:, None])[:, None, None, :]
    empty = ~visible.any(-1, keepdim=True)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~(visible | empty), -torch.inf)
    output = scores.softmax(-1).masked_fill(empty, 0.0) @ v
    return output, scores.logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)


def _expected(case: Case, dtype: torch.dtype) -> Outcome:
    """Return what plain torch makes of a case's inputs in a type."""
    compute = reference.attention if dtype == torch.float64 else plain_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return compute(
            q,
            k,
            v,
            case.pattern,
            causal=case.causal,
            scale=_scale(case),
            key_lengths=_key_lengths(case),
        )

    return _outcome(case, [x.to(dtype) for x in _inputs(case)], attend)


def _by_backend(case: Case) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return operator.sparse_attention(
            q,
            k,
            v,
            _key_lengths(case),
            pattern=encode(case.pattern),
            causal=case.causal,
            scale=_scale(case),
            backend=case.backend,
        )

    return attend


def _outcome(
    case: Case,
    given: list[Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> Outcome:
    """Return output, log-sum-exp and the gradients of a loss of both.

    The dense kernel's log-sum-exp has no gradient: there the loss is of the output alone.
    """
    *leaves, gradient = given
    leaves = [x.detach().requires_grad_() for x in leaves]
    output, lse = attend(*leaves)
    loss = (output * gradient).sum(dtype=torch.float64)
    if case.backend != "dense":
        weight = torch.linspace(-1, 1, lse.shape[-1], dtype=lse.dtype, device=lse.device)
        loss = loss + (lse.masked_fill(lse == -torch.inf, 0.0) * weight).sum(dtype=torch.float64)
    found = (output, lse, *torch.autograd.grad(loss, leaves))
    return dict(zip(QUANTITIES, (x.detach().double() for x in found), strict=True))


def _inputs(case: Case) -> list[Tensor]:
    """Return q, k, v and the output's gradient, seeded by the shape."""
    generator = torch.Generator().manual_seed(case.length)
    shape = (3 if case.ragged else 1, case.heads, case.length, case.head_size)
    numbers = (torch.randn(shape, generator=generator) for _ in range(4))
    return [x.to(case.device, case.dtype) for x in numbers]


def _key_lengths(case: Case) -> Tensor | None:
    if not case.ragged:
        return None
    return torch.tensor([case.length, case.length // 2 + 1, 0], device=case.device)


def _scale(case: Case) -> float:
    return 1.3 / math.sqrt(case.head_size)


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference relative to the largest value; infinite where only one is."""
    if not torch.equal(found == -torch.inf, expected == -torch.inf):
        return math.inf
    found, expected = (x.masked_fill(x == -torch.inf, 0.0) for x in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
