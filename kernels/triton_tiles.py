"""Tile sizes of the Triton kernels: a fixed table, so that no call ever waits for a search.

By architecture, arithmetic, head size and kernel. Chosen so that nothing spills and shared
memory fits, as `speechkit.kernels.aot` measures; the smaller devices of a generation (sm_86,
sm_89) have room for what sm_80 gets here.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class TileSize:
    """Queries and keys of a tile, the warps that share it and the stages of its loads."""

    queries: int
    keys: int
    warps: int
    stages: int

    def within(self, rows: int, keys: int, side: int | None) -> "TileSize":
        """Return the tile cut to groups of so many rows and keys, and to blocks of `side`."""
        limits = (_power_of_two(rows), _power_of_two(keys))
        if side:
            limits = (side, side)
        return replace(self, queries=min(self.queries, limits[0]), keys=min(self.keys, limits[1]))


def width_of(head_size: int) -> int:
    """Return the head size padded to what the kernels compute with."""
    return _power_of_two(head_size)


def tile_size(architecture: str, kernel: str, *, head_size: int, arithmetic: str) -> TileSize:
    """Return the tile for an architecture such as "sm_90" and an arithmetic of `arithmetic_of`.

    Devices that the table does not know get what sm_80 gets, gfx ones what gfx942 gets.
    """
    known = ("sm_80", "sm_90", "sm_100", "gfx942")
    fallback = "gfx942" if architecture.startswith("gfx") else "sm_80"
    family = architecture if architecture in known else fallback
    tiles = _TILES[family, arithmetic, 64 if head_size <= 64 else 128]
    return TileSize(*tiles[_KERNELS.index(kernel)])


def arithmetic_of(dtype_bytes: int, precision: str) -> str:
    """Return how products are taken: "half", "ieee" (no tensor cores) or "tf32"."""
    if dtype_bytes == 2:
        return "half"
    return "ieee" if precision == "ieee" else "tf32"


def _power_of_two(number: int) -> int:
    """Return the next power of two from 16, the least that the tensor cores multiply."""
    return max(16, 1 << (number - 1).bit_length())


_KERNELS = ("forward", "query_gradients", "key_gradients")

# (architecture, arithmetic, padded head size) -> queries, keys, warps, stages for each kernel
_TILES = {
    ("sm_80", "half", 64): ((128, 64, 8, 3), (64, 32, 4, 3), (64, 32, 4, 2)),
    ("sm_80", "half", 128): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
    ("sm_80", "ieee", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 16, 4, 2)),
    ("sm_80", "ieee", 128): ((32, 32, 8, 1), (32, 16, 4, 2), (16, 16, 4, 2)),
    ("sm_80", "tf32", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 64, 8, 2)),
    ("sm_80", "tf32", 128): ((64, 32, 4, 2), (32, 16, 4, 2), (32, 32, 8, 2)),
    ("sm_90", "half", 64): ((128, 64, 8, 3), (128, 64, 8, 3), (64, 128, 8, 3)),
    ("sm_90", "half", 128): ((128, 64, 8, 3), (128, 64, 8, 2), (64, 64, 8, 2)),
    ("sm_90", "ieee", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 16, 4, 2)),
    ("sm_90", "ieee", 128): ((32, 32, 8, 1), (32, 16, 4, 2), (16, 16, 4, 2)),
    ("sm_90", "tf32", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 64, 8, 2)),
    ("sm_90", "tf32", 128): ((64, 32, 8, 2), (32, 16, 4, 2), (32, 32, 8, 2)),
    ("sm_100", "half", 64): ((128, 64, 8, 2), (128, 64, 8, 3), (64, 128, 8, 3)),
    ("sm_100", "half", 128): ((128, 64, 8, 3), (128, 64, 8, 2), (64, 128, 8, 2)),
    ("sm_100", "ieee", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 16, 4, 2)),
    ("sm_100", "ieee", 128): ((32, 32, 8, 1), (32, 16, 4, 2), (16, 16, 4, 2)),
    ("sm_100", "tf32", 64): ((64, 32, 8, 2), (64, 32, 8, 2), (32, 64, 4, 2)),
    ("sm_100", "tf32", 128): ((64, 32, 8, 2), (32, 16, 4, 2), (32, 32, 4, 2)),
    ("gfx942", "half", 64): ((64, 64, 4, 1), (64, 64, 4, 1), (64, 64, 4, 1)),
    ("gfx942", "half", 128): ((64, 64, 4, 1), (64, 64, 4, 1), (64, 64, 4, 1)),
    ("gfx942", "ieee", 64): ((64, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("gfx942", "ieee", 128): ((32, 32, 4, 1), (32, 16, 4, 1), (16, 32, 4, 1)),
    ("gfx942", "tf32", 64): ((64, 32, 4, 1), (32, 32, 4, 1), (32, 32, 4, 1)),
    ("gfx942", "tf32", 128): ((32, 32, 4, 1), (32, 16, 4, 1), (16, 32, 4, 1)),
}
