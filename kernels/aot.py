"""Ahead-of-time compiles of the Triton kernels, and the budget of what they may take.

No GPU is needed: Triton's wheel brings the compilers. Each kernel is compiled for each device of
the budget with the tile that the table gives it, and held against `budget.json`: registers spilled
to memory where there were none, or more shared memory than the device has, is a failure that no
numerical test would notice.

    python -m speechkit.kernels.aot            compile all and compare
    python -m speechkit.kernels.aot --rewrite  compile all and write the budget
"""

import argparse
import itertools
import json
import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speechkit.kernels.errors import KernelError
from speechkit.kernels.triton_tiles import arithmetic_of, tile_size, width_of

BUDGET = Path(__file__).with_name("budget.json")

# bytes of shared memory that one program may have
SHARED_MEMORY = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}
KERNELS = ("forward", "query_gradients", "key_gradients")
KINDS = ("band", "summaries", "table")
# how numbers are stored and multiplied -> Triton's type and precision
NUMBERS = {
    "float16": ("fp16", "ieee"),
    "bfloat16": ("bf16", "ieee"),
    "float32": ("fp32", "ieee"),
    "float32-tf32": ("fp32", "tf32"),
}
HEAD_SIZES = (64, 128)
# what another release of Triton than the budget's may spill beyond it, in bytes a thread: the
# same kernel then takes a few registers more or less
SLACK = 64

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Case:
    """One compile: a kernel over one kind of part, for a device, a type and a head size."""

    device: str
    kernel: str
    kind: str
    numbers: str
    head_size: int

    @property
    def name(self) -> str:
        """The key in the budget."""
        return f"{self.device} {self.kernel} {self.kind} {self.numbers} {self.head_size}"


@dataclass(frozen=True)
class Usage:
    """What a compiled kernel takes: registers a thread, bytes spilled a thread, shared bytes."""

    registers: int
    spilled: int
    shared: int


def cases() -> tuple[Case, ...]:
    """Return all compiles of the budget."""
    grid = itertools.product(SHARED_MEMORY, KERNELS, KINDS, NUMBERS, HEAD_SIZES)
    return tuple(itertools.starmap(Case, grid))


def measure(case: Case) -> Usage:
    """Compile one case, with merging and key lengths, and return what it takes.

    Raises
    ------
    KernelError
        If Triton is not installed.
    """
    try:
        import triton
        from triton.backends.compiler import GPUTarget
        from triton.compiler import ASTSource

        from speechkit.kernels import triton_kernels
    except ImportError as error:
        raise KernelError(f"Triton cannot be imported ({error}): install triton") from error
    kernel = getattr(triton_kernels, case.kernel)
    width, arithmetic = case.head_size, _arithmetic(case)
    tile = tile_size(case.device, case.kernel, head_size=width, arithmetic=arithmetic)
    tile = tile.within(1 << 30, 1 << 30, 64 if case.kind == "table" else None)
    fixed = _constants(case, tile.queries, tile.keys)
    types = {name: _type(name, case) for name in kernel.arg_names if name not in fixed}
    source = ASTSource(
        fn=kernel,
        signature={name: types.get(name, "constexpr") for name in kernel.arg_names},
        constexprs=fixed,
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(kernel.arg_names)
            if types.get(name, "").startswith("*")
        },
    )
    cuda = case.device.startswith("sm_")
    target = GPUTarget("cuda", int(case.device[3:]), 32) if cuda else GPUTarget("hip", "gfx942", 64)
    options = {"num_warps": tile.warps, "num_stages": tile.stages}
    compiled = triton.compile(source, target=target, options=options)
    registers, spilled = _of_cubin(compiled) if cuda else _of_amdgcn(compiled)
    return Usage(registers, spilled, compiled.metadata.shared)


@dataclass(frozen=True)
class Budget:
    """What the kernels took when the budget was written, by `Case.name`, and with which Triton."""

    triton: str
    kernels: dict[str, Usage]

    @classmethod
    def read(cls) -> "Budget":
        """Return the committed budget."""
        found = json.loads(BUDGET.read_text(encoding="utf-8"))
        kernels = {name: Usage(**usage) for name, usage in found["kernels"].items()}
        return cls(found["triton"], kernels)

    def problems(self, case: Case, found: Usage, *, triton: str) -> list[str]:
        """Return what is wrong with a case, a sentence each: empty when it keeps to the budget.

        `triton` is the version that compiled it; another one than the budget's has some slack.
        """
        wrong = []
        limit = SHARED_MEMORY[case.device]
        if found.shared > limit:
            wrong.append(
                f"{case.name}: {found.shared} bytes of shared memory, the device has {limit}"
            )
        if case.name not in self.kernels:
            return [*wrong, f"{case.name}: not in the budget; run speechkit.kernels.aot --rewrite"]
        allowed = self.kernels[case.name].spilled + (SLACK if triton != self.triton else 0)
        if found.spilled > allowed:
            wrong.append(f"{case.name}: {found.spilled} bytes spilled, the budget allows {allowed}")
        return wrong


def triton_version() -> str:
    """Return the version of Triton that compiles."""
    import triton

    return str(triton.__version__)


def rewrite(measured: Iterable[tuple[Case, Usage]]) -> None:
    """Write the budget."""
    lines = [f'    "{case.name}": {json.dumps(asdict(usage))}' for case, usage in measured]
    head = f'{{\n  "triton": "{triton_version()}",\n  "kernels": {{\n'
    BUDGET.write_text(head + ",\n".join(lines) + "\n  }\n}\n", encoding="utf-8")


def measure_all(some: Iterable[Case], processes: int) -> Iterator[tuple[Case, Usage]]:
    """Compile cases in parallel and return each with what it takes, in order."""
    some = tuple(some)
    with ProcessPoolExecutor(processes) as pool:
        yield from zip(some, pool.map(measure, some), strict=True)


def _constants(case: Case, queries: int, keys: int) -> dict[str, Any]:
    """Return the values that a kernel is compiled with."""
    unread = {} if case.kind == "table" else dict.fromkeys(("START", "ENTRIES", "WORDS"))
    return {
        **unread,
        "CAUSAL": True,
        "KIND": case.kind,
        "MERGE": True,
        "PRECISION": NUMBERS[case.numbers][1],
        "D": case.head_size,
        "WIDTH": width_of(case.head_size),
        "M": queries,
        "N": keys,
    }


def _type(name: str, case: Case) -> str:
    """Return the type of a kernel's argument as the backend passes it."""
    if name == "scale":
        return "fp32"
    if name.islower():
        return "i32"
    if name in ("LENGTHS", "START", "ENTRIES"):
        return "*i32"
    if name == "WORDS":
        return "*i64"
    single = name in ("LSE", "DELTA") or name.startswith("PREVIOUS")
    return "*fp32" if single else f"*{NUMBERS[case.numbers][0]}"


def _arithmetic(case: Case) -> str:
    type_, precision = NUMBERS[case.numbers]
    return arithmetic_of(4 if type_ == "fp32" else 2, precision)


def _of_cubin(compiled: Any) -> tuple[int, int]:
    """Return registers and spilled bytes of a CUDA binary: the stack holds nothing else here."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return _number(r"REG:(\d+)", text), _number(r"STACK:(\d+)", text)


def _of_amdgcn(compiled: Any) -> tuple[int, int]:
    """Return vector registers and spilled bytes from the notes of AMD's assembly."""
    text = compiled.asm["amdgcn"]
    return _number(r"\.vgpr_count:\s+(\d+)", text), 4 * _number(
        r"\.vgpr_spill_count:\s+(\d+)", text
    )


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if not found:
        raise KernelError(f"the compiler's report has no {pattern!r}: {text[:200]!r}")
    return int(found[1])


def main() -> int:
    """Compile all, write or compare; return the exit status."""
    parser = argparse.ArgumentParser(description="Hold the Triton kernels against their budget.")
    parser.add_argument("--rewrite", action="store_true", help="write the budget instead")
    parser.add_argument("--processes", type=int, default=2, help="compiles at a time")
    given = parser.parse_args()
    measured = []
    for case, usage in measure_all(cases(), given.processes):
        _log.info("%s: %s", case.name, usage)
        measured.append((case, usage))
    if given.rewrite:
        rewrite(measured)
    budget, triton = Budget.read(), triton_version()
    wrong = [
        line for case, usage in measured for line in budget.problems(case, usage, triton=triton)
    ]
    for line in wrong:
        _log.error("%s", line)
    return int(bool(wrong))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
