"""Raw 16-bit mono PCM on standard input, as a microphone or another program gives it."""

import logging
import sys
from collections.abc import Iterator

import numpy as np

from speechkit.audio import Audio, as_float
from speechkit.errors import AudioError

# of files that are no raw PCM, and would be heard as noise
_HEADERS = (b"RIFF", b"fLaC", b"OggS", b"ID3", b"FORM")

logger = logging.getLogger(__name__)


def standard_input(chunk_samples: int) -> Iterator[Audio]:
    """Yield what comes on standard input in chunks, the last of which may be shorter.

    Half a sample at the end is left out with a warning: a recorder that was stopped leaves it.

    Raises
    ------
    AudioError
        if it is closed or empty, or starts as a file with a header does.
    """
    if sys.stdin is None:  # as Python has it where a shell closed it
        raise AudioError("standard input: is closed; give raw 16-bit mono PCM")
    heard = False
    while data := sys.stdin.buffer.read(2 * chunk_samples):
        if not heard and data.startswith(_HEADERS):
            raise AudioError(
                "standard input: is a file with a header; give raw 16-bit PCM, or the file by its "
                "name"
            )
        whole = len(data) // 2 * 2
        if whole:
            heard = True
            yield as_float(np.frombuffer(data[:whole], dtype="<i2").astype(np.int16))
        if whole < len(data):
            logger.warning("standard input: ends in half a sample, left out; is it 16-bit PCM?")
    if not heard:
        raise AudioError("standard input: is empty; give raw 16-bit mono PCM")
