"""Evaluation windows over a stream: every byte is scored once, with a stated least context.

A model of n steps is evaluated on windows of n bytes with step n - m: the first window scores all
its bytes, each later one the bytes that are new, which all have at least m bytes before them
(arXiv 1904.10509, section 7.2, the protocol behind its table 3). Figures at different m do not
compare, so m belongs beside every figure.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from speechkit.errors import RequestError


@dataclass(frozen=True, slots=True)
class Window:
    """Bytes [start, start + length) of a stream, scored from place ``scored_from`` on.

    Place p of a window has p bytes of context, so that ``scored_from`` is also the least context of
    the bytes that are scored.
    """

    start: int
    length: int
    scored_from: int

    @property
    def scored(self) -> range:
        """The places in the stream that are scored."""
        return range(self.start + self.scored_from, self.start + self.length)


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """The evaluation windows of a stream, all of one length, by index.

    The last window is moved back to end with the stream, so it may score fewer bytes, with more
    context.

    Parameters
    ----------
    total
        bytes in the stream.
    length
        bytes in a window, n.
    min_context
        m in [0, n): bytes before each scored byte that is not in the first window.

    Raises
    ------
    RequestError
        if the stream is shorter than a window, or m is not in [0, n).
    """

    total: int
    length: int
    min_context: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.min_context < self.length:
            raise RequestError(
                f"minimum context {self.min_context}: give 0 to {self.length - 1}, less than the "
                f"window of {self.length} bytes"
            )
        if self.total < self.length:
            raise RequestError(
                f"{self.total} bytes are fewer than a window of {self.length}: give more data or a "
                "shorter context"
            )

    @property
    def step(self) -> int:
        """Bytes from one window's start to the next one's."""
        return self.length - self.min_context

    def __len__(self) -> int:
        return 1 + -(-(self.total - self.length) // self.step)

    def __getitem__(self, index: int) -> Window:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        start = min(index * self.step, self.total - self.length)
        scored_before = 0 if index == 0 else (index - 1) * self.step + self.length
        return Window(start, self.length, scored_before - start)

    def __iter__(self) -> Iterator[Window]:
        return (self[index] for index in range(len(self)))
