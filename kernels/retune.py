"""The constants of the choice between the dense and the tiled CPU path, measured on this machine.

`dispatch` predicts a time as a sum of constants times what it counts; here a few shapes are timed
on one thread and on more, and the constants fitted by least squares, none below 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import nnls

from speechkit.kernels.bench import Case, seconds, sparse
from speechkit.kernels.dispatch import work
from speechkit.kernels.patterns import Dense, Fixed, Local, Merged, Pattern, Strided

_LENGTHS = (64, 256, 1024, 2048)
_PATTERNS: tuple[Pattern, ...] = (Merged(Local(32), Strided(32)), Local(64), Fixed(64, 4))
_SPARSE = ("call_s", "batch_s", "score_s", "product_s")
_DENSE = ("dense_call_s", "pair_s", "causal_pair_s", "masked_pair_s")

Costs = dict[str, dict[str, float]]


def measure(lengths: Sequence[int] = _LENGTHS, *, repeats: int = 5) -> Costs:
    """Return the constants for full and half precision, fitted at 1 ... n threads.

    Leaves the number of threads as it was.
    """
    threads = torch.get_num_threads()
    some = sorted({1, *(2**n for n in range(threads.bit_length())), threads})
    try:
        return {
            "full": _fitted(torch.float32, lengths, some, repeats),
            "half": _fitted(torch.bfloat16, lengths, some, repeats),
        }
    finally:
        torch.set_num_threads(threads)


def _fitted(
    dtype: torch.dtype, lengths: Sequence[int], threads: Sequence[int], repeats: int
) -> dict[str, float]:
    tiled, whole = [], []
    for number in threads:
        torch.set_num_threads(number)
        for length in lengths:
            for size in (32, 64):
                for pattern in _PATTERNS:
                    case = Case(pattern=pattern, length=length, dtype=dtype, head_size=size)
                    tiled.append((_work(case, number), _seconds(case, "cpu", repeats)))
                for case in _dense_cases(length, dtype, size):
                    whole.append((_pairs(case, number), _seconds(case, "dense", repeats)))
    constants = (*_solved(tiled), *_solved(whole))
    return dict(zip((*_SPARSE, *_DENSE), constants, strict=True))


def _dense_cases(length: int, dtype: torch.dtype, size: int) -> list[Case]:
    patterns = ((Dense(), False), (Dense(), True), (Local(32), True))
    return [
        Case(pattern=pattern, causal=causal, length=length, dtype=dtype, head_size=size)
        for pattern, causal in patterns
    ]


def _seconds(case: Case, backend: str, repeats: int) -> float:
    return seconds(case, sparse(case, backend), repeats=repeats)


def _work(case: Case, threads: int) -> tuple[float, ...]:
    """Return what each of the tiled path's constants is multiplied by."""
    scores, batches = work(case.pattern, case.length, causal=case.causal, heads=case.heads)
    each = scores * case.heads / threads
    return 1.0, batches, each, each * case.head_size / 64


def _pairs(case: Case, threads: int) -> tuple[float, ...]:
    """Return what each of the dense path's constants is multiplied by."""
    pairs = case.length**2 * case.heads * case.head_size / 64 / min(threads, case.heads)
    kind = 2 if case.pattern != Dense() else int(case.causal)
    return 1.0, *(pairs if kind == n else 0.0 for n in range(3))


def _solved(samples: Sequence[tuple[tuple[float, ...], float]]) -> list[float]:
    """Return the constants that predict the times best, all times counting alike."""
    rows = np.array([row for row, _ in samples])
    times = np.array([time for _, time in samples])
    relative = rows / times[:, None]
    # the constants differ by many powers of ten
    scales = np.linalg.norm(relative, axis=0)
    found, _ = nnls(relative / scales, np.ones(len(times)))
    return [float(f"{number:.3g}") for number in found / scales]
