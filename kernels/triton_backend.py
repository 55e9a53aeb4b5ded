"""Sparse attention by the Triton kernels: what runs, with which numbers, in which order.

A pattern's parts run one after the other; each merges into what the parts before it left, and the
last one writes in the inputs' type. Under `TRITON_INTERPRET=1` the same kernels run on the CPU,
slowly, for tests.

Triton itself is imported at the first call only.

Shapes: X = batch x heads, T positions, D head size.
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from speechkit.kernels.errors import KernelError
from speechkit.kernels.parts import Band, Part, Summaries
from speechkit.kernels.triton_tables import SIDE, Table, table
from speechkit.kernels.triton_tiles import TileSize, arithmetic_of, tile_size, width_of

MAX_HEAD_SIZE = 128
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# within one sequence the kernels count elements in 32 bits
_MAX_ELEMENTS = 1 << 31


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    parts: tuple[Part, ...],
    *,
    causal: bool,
    scale: float,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the output (X, T, D) and the log-sum-exp of the scores (X, T) in float32.

    `q`, `k`, `v` are contiguous (X, T, D), `key_lengths` (X,) int32, `parts` all those of one
    pattern. A query without keys has output 0 and log-sum-exp -inf. Products of float32 are exact
    unless `torch.set_float32_matmul_precision` allows tf32, as for products of torch's own.

    Raises
    ------
    KernelError
        If the device, type or size is none that the kernels take.
    """
    launch = _Launch.of(q, causal=causal, scale=scale, key_lengths=key_lengths)
    output = torch.empty_like(q)
    lse = q.new_empty(q.shape[:2], dtype=torch.float32)
    if not q.numel():
        return output, lse.fill_(-torch.inf)
    so_far = _RunningSum(output, len(parts))
    for part in parts:
        previous, target, merge = so_far.next()
        launch.run("forward", part, (q, k, v, previous, target, lse), merge=merge)
    return output, lse


def backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lse: Tensor,
    delta: Tensor,
    parts: tuple[Part, ...],
    *,
    causal: bool,
    scale: float,
    key_lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v, given the output's.

    `delta` (X, T) in float32 is the sum over D of output times gradient, less the log-sum-exp's
    gradient where it has one; the rest is as in `forward`, and as contiguous.
    """
    launch = _Launch.of(q, causal=causal, scale=scale, key_lengths=key_lengths)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    if not q.numel():
        return dq.zero_(), dk.zero_(), dv.zero_()
    given = (q, k, v, gradient, lse, delta)
    # summaries write the gradients of their own keys only, so they come first, onto zeros
    ordered = sorted(parts, key=lambda part: not isinstance(part, Summaries))
    onto_zeros = isinstance(ordered[0], Summaries)
    queries = _RunningSum(dq, len(parts))
    keys, values = (_RunningSum(x, len(parts), onto_zeros=onto_zeros) for x in (dk, dv))
    for part in ordered:
        previous, target, merge = queries.next()
        launch.run("query_gradients", part, (*given, previous, target), merge=merge)
        (old_k, new_k, merge), (old_v, new_v, _) = keys.next(), values.next()
        launch.run("key_gradients", part, (*given, old_k, old_v, new_k, new_v), merge=merge)
    return dq, dk, dv


class _RunningSum:
    """Where each part finds what the parts before it left, and where it writes.

    In float32, until the last part writes in the result's own type.
    """

    def __init__(self, result: Tensor, parts: int, *, onto_zeros: bool = False) -> None:
        self.result = result
        self.left = parts
        self.started = onto_zeros
        self.partial = result
        if onto_zeros:
            self.partial = torch.zeros_like(result, dtype=torch.float32)
        elif parts > 1:
            self.partial = torch.empty_like(result, dtype=torch.float32)

    def next(self) -> tuple[Tensor, Tensor, bool]:
        """Return what there is, where the next part writes, and whether there is anything."""
        self.left -= 1
        target = self.partial if self.left else self.result
        merge, self.started = self.started, True
        return self.partial, target, merge


@dataclass(frozen=True)
class Plan:
    """How the kernels see a part: its kind and its numbers, as the kernels' file names them."""

    kind: str
    max_rows: int
    max_keys: int
    groups: int = 1
    group_step: int = 0
    row_step: int = 1
    least: int = 0
    most: int = 0
    stride: int = 1
    first: int = 0
    count: int = 1

    @classmethod
    def of(cls, part: Part, length: int) -> "Plan":
        """Return the plan of a part over `length` positions; what no other kind fits: a table."""
        if isinstance(part, Band) and not (part.minus or part.columns):
            return cls._of_band(part, length)
        if isinstance(part, Summaries) and not part.minus:
            full, rest = divmod(length, part.stride)
            keys = full * part.keys + min(max(rest - part.first, 0), part.keys)
            numbers = {"stride": part.stride, "first": part.first, "count": part.keys}
            return cls("summaries", length, keys, **numbers)
        return cls("table", length, length)

    @classmethod
    def _of_band(cls, part: Band, length: int) -> "Plan":
        step = min(part.step, length)
        groups = -(-length // step) if part.blocks else step
        rows = step if part.blocks else -(-length // step)
        return cls(
            "band",
            rows,
            rows,
            groups=groups,
            group_step=step if part.blocks else 1,
            row_step=1 if part.blocks else step,
            least=min(part.least, length),
            most=min(part.most, length),
        )

    def numbers(self) -> tuple[int, ...]:
        """Return the numbers in the kernels' order, after the length."""
        grid = (self.groups, self.group_step, self.row_step, self.max_rows, self.max_keys)
        return (*grid, self.least, self.most, self.stride, self.first, self.count)


@dataclass(frozen=True, kw_only=True)
class _Launch:
    """What is the same for every kernel of a call."""

    device: torch.device
    sequences: int
    length: int
    head_size: int
    dtype_bytes: int
    causal: bool
    scale: float
    key_lengths: Tensor | None
    precision: str  # of products of float32, as Triton names it

    @classmethod
    def of(cls, q: Tensor, **settings: Any) -> "_Launch":
        """Check a call and return it."""
        _check(q)
        exact = torch.get_float32_matmul_precision() == "highest"
        return cls(
            device=q.device,
            sequences=q.shape[0],
            length=q.shape[1],
            head_size=q.shape[2],
            dtype_bytes=q.dtype.itemsize,
            precision="ieee" if exact else "tf32",
            **settings,
        )

    def run(self, name: str, part: Part, tensors: tuple[Tensor, ...], *, merge: bool) -> None:
        """Launch a kernel over a part."""
        plan = Plan.of(part, self.length)
        of_keys = name == "key_gradients"
        owned = plan.max_keys if of_keys else plan.max_rows
        if not owned:
            return
        tile = self._tile(name, plan)
        own_side = tile.keys if of_keys else tile.queries
        with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]
            getattr(_kernels(), name)[(-(-owned // own_side) * plan.groups * self.sequences,)](
                *tensors,
                self.key_lengths,
                *self._walks(part, plan, of_keys),
                self.length,
                *plan.numbers(),
                self.scale,
                CAUSAL=self.causal,
                KIND=plan.kind,
                MERGE=merge,
                PRECISION=self.precision,
                D=self.head_size,
                WIDTH=width_of(self.head_size),
                M=tile.queries,
                N=tile.keys,
                num_warps=tile.warps,
                num_stages=tile.stages,
            )

    def _tile(self, name: str, plan: Plan) -> TileSize:
        arithmetic = arithmetic_of(self.dtype_bytes, self.precision)
        device = _architecture(self.device)
        tile = tile_size(device, name, head_size=self.head_size, arithmetic=arithmetic)
        return tile.within(plan.max_rows, plan.max_keys, SIDE if plan.kind == "table" else None)

    def _walks(self, part: Part, plan: Plan, of_keys: bool) -> tuple[Tensor | None, ...]:
        """Return a table's three tensors; a kernel of another kind reads none."""
        if plan.kind != "table":
            return None, None, None
        found: Table = table(part, self.length, causal=self.causal, device=self.device)
        walks = found.keys if of_keys else found.queries
        return walks.start, walks.entries, found.words


def _check(q: Tensor) -> None:
    _, length, head_size = q.shape
    if q.dtype not in _DTYPES:
        raise KernelError(
            f"the Triton kernels take float32, float16 and bfloat16, not {q.dtype}; "
            'convert, or use backend="cpu" or "reference"'
        )
    if not 1 <= head_size <= MAX_HEAD_SIZE:
        raise KernelError(
            f"the Triton kernels take head sizes from 1 to {MAX_HEAD_SIZE}, not {head_size}; "
            'use more heads, or backend="reference"'
        )
    if length * head_size >= _MAX_ELEMENTS:
        raise KernelError(
            f"the Triton kernels take fewer than 2^31 elements a sequence, not {length} positions "
            f"of {head_size}; cut the sequence"
        )
    _check_device(q)


def _check_device(q: Tensor) -> None:
    if q.device.type == "cuda":
        _kernels()
        return
    if q.device.type != "cpu" or not interpreted():
        raise KernelError(
            f"the Triton kernels run on GPUs, not on {q.device}: move the tensors, use "
            'backend="cpu", or set TRITON_INTERPRET=1 before Python starts to try them slowly'
        )
    if q.dtype == torch.bfloat16:
        raise KernelError(
            "Triton's interpreter gets products of bfloat16 wrong: take float32 or float16 there"
        )


def interpreted() -> bool:
    """Return whether the kernels run under Triton's interpreter, on the CPU."""
    return type(_kernels().forward).__name__ == "InterpretedFunction"


@cache
def _kernels() -> ModuleType:
    """Return the kernels' module, which needs Triton."""
    try:
        from speechkit.kernels import triton_kernels
    except ImportError as error:
        raise KernelError(
            f'Triton cannot be imported ({error}): install triton, or use backend="cpu"'
        ) from error
    return triton_kernels


@lru_cache
def _architecture(device: torch.device) -> str:
    """Return the tile table's name of a device."""
    if device.type == "cpu":
        return "sm_80"
    if torch.version.hip:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"
