"""A measurement in a process of its own, so that its memory is its own, within limits."""

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch

from speechkit.errors import RequestError, is_out_of_memory
from speechkit.kernels.peak_memory import memory_bytes, peak_bytes

GIB = 1 << 30
_POLL_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where a measurement is stopped.

    Parameters
    ----------
    seconds, gib
        the longest time, and the most memory of the process.
    """

    seconds: float = 1800.0
    gib: float = 12.0

    def __post_init__(self) -> None:
        if not (self.seconds > 0 and self.gib > 0):
            raise RequestError(f"seconds {self.seconds}, gib {self.gib}: must be positive")


@dataclass(frozen=True)
class Outcome:
    """What a function returned, or why it was stopped; its peak memory, the imports included."""

    value: Any = None
    stopped: str | None = None
    peak_bytes: int = 0


def run_isolated(
    function: Callable[..., Any], *arguments: Any, limits: Limits = Limits()
) -> Outcome:
    """Call a function of a module in a fresh process, with as many threads as this one has.

    What the function raises, if it says that memory ran out, and what ends its process, is an
    outcome; other errors are raised here.
    """
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = context.Process(target=_serve, args=(sending, threads, function, arguments))
    begun = time.monotonic()
    process.start()
    sending.close()
    try:
        return _wait(process, receiving, begun, limits)
    finally:
        process.kill()
        process.join()


def _wait(process: SpawnProcess, receiving: Connection, begun: float, limits: Limits) -> Outcome:
    peak = 0
    while not receiving.poll(_POLL_S):
        peak = max(peak, memory_bytes("VmHWM", process.pid))
        if peak > limits.gib * GIB:
            return Outcome(stopped=f"over {limits.gib:g} GiB", peak_bytes=peak)
        if time.monotonic() - begun > limits.seconds:
            return Outcome(stopped=f"over {limits.seconds:g} s", peak_bytes=peak)
    try:
        outcome = receiving.recv()
    except EOFError:
        process.join()
        stopped = f"the process ended with status {process.exitcode}"
        if process.exitcode == -signal.SIGKILL:
            stopped += ": most likely out of memory"
        return Outcome(stopped=stopped, peak_bytes=peak)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, Outcome)
    return outcome


def _serve(
    sending: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    result: Outcome | Exception
    try:
        result = Outcome(function(*arguments), peak_bytes=own_peak_bytes())
    except (RuntimeError, MemoryError) as error:
        result = error
        if is_out_of_memory(error):
            result = Outcome(stopped="out of memory", peak_bytes=own_peak_bytes())
    except Exception as error:
        result = error  # raised by who asked
    sending.send(_portable(result))


def _portable(result: Outcome | Exception) -> Outcome | Exception:
    """Return a result as it can be sent: in words, where it cannot be pickled and read back."""
    try:
        pickle.loads(pickle.dumps(result))
    except Exception as error:
        told = result if isinstance(result, Exception) else error
        return RuntimeError(f"{type(told).__name__}: {told}")
    return result


def own_peak_bytes() -> int:
    """Return the most memory that this process has held: of the accelerator, where there is one."""
    return peak_bytes("cuda" if torch.cuda.is_available() else "cpu")
