"""The two ways in which a job can go wrong, and the exit status that each one means."""

from collections.abc import Iterator
from contextlib import contextmanager


class SpeechkitError(Exception):
    """Base of the errors that a user can act on; the message is one line."""

    exit_status = 1


class RequestError(SpeechkitError, ValueError):
    """The request was wrong: says what was given, what is allowed and what to do (exit 2)."""

    exit_status = 2


class JobError(SpeechkitError, RuntimeError):
    """The request was right, but the job failed (exit 1)."""


class AudioError(JobError):
    """A piece of audio cannot be used; the message names it and the reason."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the memory, of the machine or of a GPU, ran out."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"  # torch's, which this file does not load
        or "out of memory" in text
        or "can't allocate memory" in text
    )


@contextmanager
def out_of_memory_says(message: str) -> Iterator[None]:
    """Raise memory that runs out as a `JobError` that tells a user what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise JobError(message) from error
