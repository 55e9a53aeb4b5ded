"""Seeds made of names and numbers, so that what is drawn depends on them and on nothing else."""

import hashlib
import json


def seed_of(*parts: int | str) -> int:
    """Return a seed (63 bits) for a generator: another one for any other parts.

    Examples
    --------
    ``seed_of(run_seed, epoch, cut.id)``: draws of an utterance that do not depend on the batch or
    the worker it comes in, nor on how often a run was interrupted.
    """
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
