"""The speed and memory that this package promises, measured: one row for each promise."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from speechkit.kernels.attention import explain
from speechkit.kernels.bench import (
    Case,
    dense,
    exponent,
    inputs,
    peak_bytes,
    seconds,
    seconds_in_turn,
    sparse,
)
from speechkit.kernels.patterns import Fixed, Local, Merged, Pattern, Strided

_FIRST = Merged(Local(128), Strided(128))
# pattern, length, causal, at least how many times faster than dense attention
_SPEEDUPS: tuple[tuple[Pattern, int, bool, float], ...] = (
    (_FIRST, 16_384, True, 20.0),
    (Merged(Local(64), Strided(64)), 4096, True, 9.0),
    (Strided(128), 16_384, True, 40.0),
    (Fixed(128, 8), 16_384, True, 7.0),
    (Local(256), 4096, False, 4.5),
)
_SHORT, _LONG = (64, 128, 256), (512, 1024, 2048)
_CHOICES: tuple[Pattern, ...] = (Merged(Local(64), Strided(64)), Local(32))
_GROWTH = (4096, 16_384, 65_536, 262_144)
_MEMORY_LENGTH = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Promise:
    """A promise and what was measured: both in `unit`; `allows` is what arithmetic allows."""

    name: str
    unit: str
    aim: float
    found: float
    at_least: bool
    allows: float | None = None

    @property
    def kept(self) -> bool:
        """Whether the measurement is on the right side of the aim."""
        return self.found >= self.aim if self.at_least else self.found <= self.aim


@dataclass(frozen=True)
class Choice:
    """What `auto` takes for a request, and the times of what it can choose from."""

    case: Case
    code: str
    auto_s: float
    sparse_s: float
    dense_s: float

    @property
    def ratio(self) -> float:
        """The time of `auto` relative to the better of the two."""
        return self.auto_s / min(self.sparse_s, self.dense_s)

    @property
    def excess_s(self) -> float:
        """The seconds that `auto` takes more than the better of the two."""
        return self.auto_s - min(self.sparse_s, self.dense_s)


def promises(device: str, *, repeats: int = 3) -> Iterator[Promise]:
    """Measure the promises one by one, which takes some minutes.

    On a GPU with half precision, without those about the CPU's choices.
    """
    dtype = _type_on(device)
    aims = (aim for *_, aim in _SPEEDUPS)
    for case, aim in zip(cases(device), aims, strict=True):
        yield _speedup(case, aim, repeats)
    if device == "cpu":
        yield from _of_the_choice(repeats)
        yield _half_precision(repeats)
    yield _memory(device, dtype)
    yield _growth(device, dtype, repeats)


def cases(device: str) -> list[Case]:
    """Return what is compared with dense attention."""
    return [
        Case(pattern=pattern, length=length, causal=causal, device=device, dtype=_type_on(device))
        for pattern, length, causal, _ in _SPEEDUPS
    ]


def _type_on(device: str) -> torch.dtype:
    return torch.float32 if device == "cpu" else torch.bfloat16


def _speedup(case: Case, aim: float, repeats: int) -> Promise:
    sparse_s, dense_s = seconds_in_turn(case, [sparse(case), dense(case)], repeats=repeats)
    kind = "causal" if case.causal else "bidirectional"
    return Promise(
        name=f"{case.pattern} {kind}, T = {case.length}: faster than dense",
        unit="times",
        aim=aim,
        found=dense_s / sparse_s,
        at_least=True,
        allows=case.dense_pairs / case.pairs,
    )


def choices(repeats: int) -> Iterator[Choice]:
    """Measure on the CPU how well `auto` chooses."""
    for pattern in _CHOICES:
        for length in _SHORT + _LONG:
            case = Case(pattern=pattern, length=length)
            yield choice(case, repeats)


def choice(case: Case, repeats: int) -> Choice:
    """Measure both paths and what `auto` makes of it."""
    *leaves, _ = inputs(case)
    code = explain(leaves[0], case.pattern, causal=case.causal).partition(":")[0]
    each = [sparse(case, name) for name in ("auto", "cpu", "dense")]
    return Choice(case, code, *seconds_in_turn(case, each, repeats=repeats))


def _of_the_choice(repeats: int) -> Iterator[Promise]:
    found = list(choices(10 * repeats))
    long = max(c.ratio for c in found if c.case.length in _LONG)
    short = max(c.excess_s for c in found if c.case.length in _SHORT)
    yield Promise(
        name="auto against the better of dense and sparse, T = 512 ... 2048",
        unit="times",
        aim=1.05,
        found=long,
        at_least=False,
    )
    yield Promise(
        name="auto above the better of dense and sparse, T = 64 ... 256",
        unit="microseconds",
        aim=150.0,
        found=short * 1e6,
        at_least=False,
    )


def _half_precision(repeats: int) -> Promise:
    case = Case(pattern=_FIRST, length=16_384)
    full, half = (
        seconds(one, sparse(one), repeats=repeats)
        for one in (case, replace(case, dtype=torch.bfloat16))
    )
    return Promise(
        name=f"{_FIRST} causal, T = 16384: bfloat16 faster than float32",
        unit="times",
        aim=1.5,
        found=full / half,
        at_least=True,
    )


def _memory(device: str, dtype: torch.dtype) -> Promise:
    length = _MEMORY_LENGTH
    case = Case(pattern=_FIRST, length=length, heads=1, device=device, dtype=dtype)
    one = length * case.head_size * dtype.itemsize
    return Promise(
        name=f"{_FIRST} causal, T = {length}, H = 1: peak memory beyond q, k, v and the gradient",
        unit="times q",
        aim=8.0,
        found=peak_bytes(case) / one,
        at_least=False,
        allows=4.0,
    )


def _growth(device: str, dtype: torch.dtype, repeats: int) -> Promise:
    """Fit the exponent of time over length with window = stride = sqrt(T)."""
    times = []
    for length in _GROWTH:
        side = round(length**0.5)
        pattern = Merged(Local(side), Strided(side))
        case = Case(pattern=pattern, length=length, heads=1, device=device, dtype=dtype)
        times.append(seconds(case, sparse(case), repeats=repeats))
    return Promise(
        name="Merged(Local(n), Strided(n)), n = sqrt(T), T = 4k ... 256k: time grows as T to the",
        unit="power",
        aim=1.6,
        found=exponent(list(_GROWTH), times),
        at_least=False,
        allows=1.5,
    )
