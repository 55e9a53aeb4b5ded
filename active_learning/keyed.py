"""Random numbers that depend on (seed, clip id) alone: not on order, sharding or other clips."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]

_BITS = 53  # of a float64's fraction
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def hash_of(id_: str, *, seed: int | None = None) -> int:
    """Return 64 bits of blake2 over an id, and over a seed if one is given."""
    text = id_ if seed is None else f"{seed}\n{id_}"
    data = text.encode("utf-8", "surrogatepass")  # names of files may be no UTF-8
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def keys_of(ids: Iterable[str], *, seed: int) -> Keys:
    """Return one key for each id, from which `uniforms` draws."""
    return np.array([hash_of(id_, seed=seed) for id_ in ids], dtype=np.uint64)


def uniforms(keys: Keys, *, step: int = 0) -> NDArray[np.float64]:
    """Return one number in (0, 1) for each key; another step gives independent ones.

    The mixing function is that of SplitMix64 (Steele, Lea, Flood 2014).
    """
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is what is meant
        mixed = keys + _GOLDEN * np.uint64(step + 1)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX[0]
        mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX[1]
        mixed ^= mixed >> np.uint64(31)
    return ((mixed >> np.uint64(64 - _BITS)).astype(np.float64) + 0.5) * 2.0**-_BITS
