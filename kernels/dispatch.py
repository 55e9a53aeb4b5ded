"""Which code computes an attention: a pure function of shape, type, pattern, device and threads."""

import importlib.util
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from speechkit.kernels.errors import KernelError
from speechkit.kernels.parts import parts
from speechkit.kernels.patterns import Pattern
from speechkit.kernels.tiles import tiles

BACKENDS = ("auto", "reference", "dense", "cpu", "triton")
VARIABLE = "SPEECHKIT_ATTENTION_BACKEND"
COSTS = Path(__file__).with_name("cpu_costs.json")

# `auto` may hold a mask of T x T up to this many pairs
_DENSE_PAIRS = 1 << 22

_forced: ContextVar[str | None] = ContextVar("speechkit_attention_backend", default=None)


@dataclass(frozen=True)
class Request:
    """What the choice depends on."""

    batch: int
    heads: int
    length: int
    head_size: int
    dtype: torch.dtype
    device: str
    causal: bool
    has_lengths: bool


def request_of(q: Tensor, v: Tensor, *, causal: bool, has_lengths: bool) -> Request:
    """Return what the choice depends on, for q (B, H, T, D) and v (B, H, T, E)."""
    batch, heads, length, size = q.shape
    size = max(size, v.shape[3])
    return Request(batch, heads, length, size, q.dtype, q.device.type, causal, has_lengths)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend for the calls inside; an explicit ``backend=`` of a call still wins."""
    _check_name(name)
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """Return the backend that `use_backend` forces here, if any."""
    return _forced.get()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def requested(backend: str) -> str:
    """Return the backend that is asked for: by the call, `use_backend`, or the environment.

    Compiled code keeps the one that was asked for when it was compiled.
    """
    _check_name(backend)
    if backend != "auto":
        return backend
    name = _forced.get() or os.environ.get(VARIABLE) or "auto"
    _check_name(name)
    return name


def choose(backend: str, pattern: Pattern, request: Request) -> tuple[str, str]:
    """Return the code to run (``reference``, ``dense``, ``cpu`` or ``triton``) and why.

    Raises
    ------
    KernelError
        If a forced backend cannot serve the request, or none can.
    """
    name = requested(backend)
    if name == "reference":
        return name, "asked for"
    if name in ("cpu", "dense"):
        _require(request.device == "cpu", name, f"the tensors are on {request.device}")
        return name, "asked for"
    if name == "triton":
        problem = _triton_problem(request)
        _require(problem is None, "triton", str(problem))
        return name, "asked for"
    if request.device == "cpu":
        return _choose_on_cpu(pattern, request, torch.get_num_threads())
    problem = _triton_problem(request)
    _require(problem is None, "auto", f"on {request.device} only Triton serves, but {problem}")
    return "triton", f"the tensors are on {request.device}"


@lru_cache(maxsize=4096)
def _choose_on_cpu(pattern: Pattern, request: Request, threads: int) -> tuple[str, str]:
    length = request.length
    same = len(set(pattern.per_head(request.heads))) == 1
    if not same or length == 0:
        return "cpu", "heads differ" if length else "nothing to do"
    if length * length > _DENSE_PAIRS:
        return "cpu", f"{length} positions are too many for a dense mask"
    sparse, dense = _predict(pattern, request, threads)
    name = "cpu" if sparse < dense else "dense"
    return name, f"forward and backward: sparse {sparse:.2g} s, dense {dense:.2g} s predicted"


def _predict(pattern: Pattern, request: Request, threads: int) -> tuple[float, float]:
    """Return the predicted seconds of the tiled and of the dense path, forward and backward."""
    costs = _costs()["half" if request.dtype.itemsize == 2 else "full"]
    heads = request.batch * request.heads
    head = pattern.per_head(request.heads)[0]
    scores, batches = work(head, request.length, causal=request.causal, heads=heads)
    share = request.head_size / 64
    per_thread = 1 / min(threads, heads)
    sparse = (
        costs["call_s"]
        + batches * costs["batch_s"]
        + scores * heads * (costs["score_s"] + share * costs["product_s"]) / threads
    )
    pairs = request.length**2 * heads
    masked = request.has_lengths or not _is_plain(head)
    rate = costs["masked_pair_s" if masked else "causal_pair_s" if request.causal else "pair_s"]
    return sparse, costs["dense_call_s"] + pairs * rate * share * per_thread


def forget_costs() -> None:
    """Read the table of costs again, after it was written anew."""
    _costs.cache_clear()
    _choose_on_cpu.cache_clear()


@lru_cache(maxsize=4096)
def work(pattern: Pattern, length: int, *, causal: bool, heads: int) -> tuple[int, int]:
    """Return the scores of one head that the CPU path computes, and its batches for all heads."""
    from speechkit.kernels.cpu import batches_of

    scores = batches = 0
    for part in parts(pattern):
        for tile in tiles(part, length, causal=causal):
            scores += tile.queries.groups * tile.queries.rows * tile.columns
            batches += batches_of(tile, heads)
    return scores, batches


def _is_plain(pattern: Pattern) -> bool:
    from speechkit.kernels.patterns import Dense

    return pattern == Dense()


def _triton_problem(request: Request) -> str | None:
    """Return why Triton cannot serve the request, or None."""
    if request.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return "the tensors are on the CPU (set TRITON_INTERPRET=1 to interpret the kernels)"
    if not _has_triton():
        return "triton is not installed (pip install triton; Linux only)"
    if request.dtype == torch.float64:
        return "float64 is not served; use float32 or backend='reference'"
    if request.head_size > 128:
        return f"the head size {request.head_size} is above 128; use more heads"
    return None


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def _costs() -> dict[str, dict[str, float]]:
    return json.loads(COSTS.read_text())["seconds"]


def _require(holds: bool, backend: str, problem: str) -> None:
    if not holds:
        raise KernelError(f"backend {backend!r} cannot serve this: {problem}")


def _check_name(name: str) -> None:
    if name not in BACKENDS:
        raise KernelError(f"unknown backend {name!r}; there are {', '.join(BACKENDS)}")
