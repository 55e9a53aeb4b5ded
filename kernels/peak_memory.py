"""How much memory a process, or its accelerator, has held at the most."""

import re
from pathlib import Path

import torch


def start_counting(device: str = "cpu") -> int:
    """Forget the peak so far; return the bytes in use."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    peak_reset = Path("/proc/self/clear_refs")
    if peak_reset.exists():
        peak_reset.write_text("5")
    return memory_bytes("VmRSS")


def peak_bytes(device: str = "cpu") -> int:
    """Return the most bytes held since `start_counting`.

    Not getrusage's number, which begins with what the parent held when it started this process.
    """
    return memory_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def memory_bytes(name: str, process: int | None = None) -> int:
    """Return a number of bytes that Linux tells of this or another process, 0 elsewhere."""
    try:
        text = Path(f"/proc/{process or 'self'}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
