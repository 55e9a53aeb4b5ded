"""How long attention takes and how much memory, beside torch's dense attention and FlexAttention.

Shapes: B batch, H heads, T positions, D head size.
"""

import logging
import math
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from speechkit.kernels import conformance, peak_memory
from speechkit.kernels.attention import sparse_attention
from speechkit.kernels.dispatch import Request, choose
from speechkit.kernels.patterns import Pattern

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
logger = logging.getLogger(__name__)

# a multiplication and an addition count as two; the backward pass has five products to two
_FORWARD_OPERATIONS = 4
_BOTH_OPERATIONS = 14
# no further repetition of what has taken so long
_PATIENCE_S = 4.0
# a mask may take a quarter of this; the scores of torch's other paths take the rest
_MASKED_PAIRS = 1 << 28

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    pattern: Pattern
    length: int
    dtype: torch.dtype = torch.float32
    causal: bool = True
    device: str = "cpu"
    batch: int = 1
    heads: int = 8
    head_size: int = 64

    @property
    def pairs(self) -> int:
        """The attended pairs of the whole batch."""
        each = self.pattern.per_head(self.heads)
        return self.batch * sum(head.count(self.length, causal=self.causal) for head in each)

    @property
    def dense_pairs(self) -> int:
        """The pairs that dense attention computes."""
        pairs = self.length * (self.length + 1) // 2 if self.causal else self.length**2
        return self.batch * self.heads * pairs


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Seconds of the forward pass and of both passes, and of the others; None: not run."""

    case: Case
    forward_s: float
    both_s: float
    dense_s: float
    masked_s: float | None
    flex_forward_s: float | None
    flex_s: float | None
    peak_bytes: int

    @property
    def tflops(self) -> float:
        """The rate of both passes, counting attended pairs only, in 10^12 operations a second."""
        return self.case.pairs * self.case.head_size * _BOTH_OPERATIONS / self.both_s / 1e12

    @property
    def forward_tflops(self) -> float:
        """The rate of the forward pass."""
        return self.case.pairs * self.case.head_size * _FORWARD_OPERATIONS / self.forward_s / 1e12

    @property
    def speedup(self) -> float:
        """How many times faster than dense attention, both passes."""
        return self.dense_s / self.both_s

    @property
    def allowed(self) -> float:
        """How many times fewer pairs than dense attention: what arithmetic allows."""
        return self.case.dense_pairs / self.case.pairs


def checks(case: Case) -> list[conformance.Row]:
    """Return the conformance of the code that is to be measured, at a length that is quick.

    Of the sparse kernel, and of what `auto` takes in its place at the length of the case.
    """
    sparse_code = "cpu" if case.device == "cpu" else "triton"
    return [
        conformance.run(
            conformance.Case(
                backend=code,
                device=case.device,
                pattern=case.pattern,
                dtype=case.dtype,
                length=min(case.length, 300),
                causal=case.causal,
                ragged=False,
                head_size=case.head_size,
                heads=case.heads,
            )
        )
        for code in dict.fromkeys((sparse_code, _chosen(case)))
    ]


def _chosen(case: Case) -> str:
    """Return which code `auto` runs."""
    request = Request(
        batch=case.batch,
        heads=case.heads,
        length=case.length,
        head_size=case.head_size,
        dtype=case.dtype,
        device=case.device,
        causal=case.causal,
        has_lengths=False,
    )
    return choose("auto", case.pattern, request)[0]


def measure(case: Case, *, repeats: int = 5, flex: bool = False) -> Measured:
    """Measure a case: medians of so many runs after one that warms up."""
    time_of = partial(seconds, case, repeats=repeats)
    return Measured(
        case=case,
        forward_s=time_of(sparse(case), backward=False),
        both_s=time_of(sparse(case)),
        dense_s=time_of(dense(case)),
        masked_s=time_of(masked(case)) if case.length**2 * case.heads <= _MASKED_PAIRS else None,
        flex_forward_s=_flex_seconds(case, repeats, backward=False) if flex else None,
        flex_s=_flex_seconds(case, repeats) if flex and case.device != "cpu" else None,
        peak_bytes=peak_bytes(case),
    )


def sparse(case: Case, backend: str = "auto") -> Attend:
    """Return this package's attention."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, case.pattern, causal=case.causal, backend=backend)

    return attend


def dense(case: Case) -> Attend:
    """Return torch's dense attention, which takes no pattern."""
    return partial(scaled_dot_product_attention, is_causal=case.causal)


def masked(case: Case) -> Attend:
    """Return torch's dense attention under the pattern's mask."""
    mask = case.pattern.mask(case.length, causal=case.causal, heads=case.heads, device=case.device)
    return partial(scaled_dot_product_attention, attn_mask=mask[None])


def flex_attention(case: Case) -> Attend:
    """Return torch's FlexAttention under the pattern's rule, compiled."""
    from torch.nn.attention import flex_attention as flex

    (rule,) = set(case.pattern.per_head(case.heads))

    def visible(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = rule.allows(i, j) | (i == j)
        return seen & (j <= i) if case.causal else seen

    blocks = flex.create_block_mask(
        visible, None, None, case.length, case.length, device=case.device
    )
    compiled = torch.compile(flex.flex_attention)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return compiled(q, k, v, block_mask=blocks)

    return attend


def _flex_seconds(case: Case, repeats: int, *, backward: bool = True) -> float | None:
    """Return FlexAttention's time, or None where it does not run."""
    try:
        return seconds(case, flex_attention(case), repeats=repeats, backward=backward)
    except Exception as error:  # what it raises depends on compiler, device and release
        logger.warning("FlexAttention does not run: %s", str(error).partition("\n")[0])
        return None


def seconds(case: Case, attend: Attend, *, repeats: int, backward: bool = True) -> float:
    """Return the median time of a run, after one that warms up unless that one takes long."""
    return seconds_in_turn(case, [attend], repeats=repeats, backward=backward)[0]


def seconds_in_turn(
    case: Case, several: Sequence[Attend], *, repeats: int, backward: bool = True
) -> list[float]:
    """Return the median times of several, run in turn: what disturbs one disturbs all alike.

    The order is drawn anew each round, because what runs behind a dense pass finds cold caches.
    """
    *leaves, gradient = inputs(case)
    for leaf in leaves:
        leaf.requires_grad_(backward)

    def once(attend: Attend) -> float:
        start = time.perf_counter()
        output = attend(*leaves)
        if backward:
            torch.autograd.grad(output, leaves, gradient)
        _wait_for(case.device)
        return time.perf_counter() - start

    rounds: list[list[float]] = []
    order, shuffle = list(range(len(several))), random.Random(0).shuffle
    # the first round, in which compiled code is compiled, never counts
    while len(rounds) < 2 or (
        len(rounds) <= repeats and sum(map(sum, rounds[1:])) < _PATIENCE_S * len(several)
    ):
        shuffle(order)
        durations = {place: once(several[place]) for place in order}
        rounds.append([durations[place] for place in range(len(several))])
    return [median(durations) for durations in zip(*rounds[1:], strict=True)]


def inputs(case: Case) -> list[Tensor]:
    """Return q, k, v and the output's gradient, (B, H, T, D) each."""
    generator = torch.Generator(case.device).manual_seed(case.length)
    shape = (case.batch, case.heads, case.length, case.head_size)
    return [
        torch.randn(shape, generator=generator, device=case.device, dtype=torch.float32).to(
            case.dtype
        )
        for _ in range(4)
    ]


def peak_bytes(case: Case) -> int:
    """Return the memory that both passes need beyond q, k, v and the output's gradient.

    On the CPU the growth of a fresh process's resident memory, on Linux only (0 elsewhere); on a
    GPU the growth of what torch has allocated.
    """
    if case.device != "cpu":
        return _growth(case)
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(_growth, case, torch.get_num_threads()).result()


def _growth(case: Case, threads: int | None = None) -> int:
    if threads:
        torch.set_num_threads(threads)
    # libraries load and caches fill at the first call
    _run_once(replace(case, length=min(case.length, 4096)))
    given = inputs(case)
    before = peak_memory.start_counting(case.device)
    _run_once(case, given)
    return max(0, peak_memory.peak_bytes(case.device) - before)


def _run_once(case: Case, given: list[Tensor] | None = None) -> None:
    *leaves, gradient = inputs(case) if given is None else given
    leaves = [leaf.requires_grad_() for leaf in leaves]
    torch.autograd.grad(sparse(case)(*leaves), leaves, gradient)
    _wait_for(case.device)


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


def exponent(lengths: list[int], times: list[float]) -> float:
    """Return the slope of log time over log length, by least squares."""
    x, y = ([math.log(number) for number in numbers] for numbers in (lengths, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in x)
