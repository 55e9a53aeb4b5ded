"""Parts and tiles: each pair of a mask in one part, and in one tile of it, once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.kernels.bench import Case
from speechkit.kernels.parts import parts
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    Strided,
)
from speechkit.kernels.tiles import key_positions, tiles
from speechkit.kernels.triton_tables import visible

LAYOUT = ((0, 1, 0), (1, 0, 1), (1, 1, 1))
PATTERNS = [
    Dense(),
    Local(1),
    Local(20),
    Local(300),
    Strided(1),
    Strided(7),
    Strided(300),
    Dilated(4, 1),
    Dilated(5, 3),
    OwnBlock(1),
    OwnBlock(23),
    Columns(16, 3),
    Columns(16, 3, sub_block=2),
    Columns(7, 7),
    Fixed(16, 3),
    Merged(Local(20), Strided(16)),
    Merged(Local(5), Strided(16)),
    Merged(Local(9), Local(30), Strided(7), OwnBlock(13)),
    Merged(Strided(4), Strided(6)),
    Merged(Local(5), Columns(40, 2)),
    Merged(Dilated(4, 9), Columns(11, 11), Strided(11)),
    Merged(Merged(Local(3), OwnBlock(10)), Dense()),
    Blocks(LAYOUT, 70),
    Merged(Blocks(LAYOUT, 70), Strided(33), Local(4)),
]
numbers = st.integers(1, 40)
members = st.one_of(
    st.builds(Local, numbers),
    st.builds(Strided, numbers),
    st.builds(Dilated, numbers, numbers),
    st.builds(OwnBlock, numbers),
    st.tuples(numbers, numbers).map(lambda n: Columns(max(n), min(n))),
)
ways = pytest.mark.parametrize("causal", [True, False], ids=["causal", "bidirectional"])


def times_in_parts(pattern, length, causal):
    """Return in how many parts each pair is."""
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    return sum(visible(part, i, j, causal=causal).int() for part in parts(pattern))


def times_in_tiles(pattern, length, causal):
    """Return how often each pair is scored and seen, over the tiles of all parts."""
    times = torch.zeros(length, length, dtype=torch.int32)
    for part in parts(pattern):
        places = key_positions(part, length)
        for tile in tiles(part, length, causal=causal):
            queries = tile.queries.positions()
            keys = torch.cat([lattice.positions() for lattice in tile.keys], dim=1)
            keys = keys if places is None else places[keys]
            seen = torch.zeros(len(queries), queries.shape[1], keys.shape[1])
            for edge in tile.edges:
                seen[..., edge.first : edge.first + edge.bias.shape[-1]] += edge.bias
            i, j = torch.broadcast_tensors(queries[:, :, None], keys[:, None, :])
            kept = seen == 0
            times.index_put_((i[kept], j[kept]), torch.tensor(1).int(), accumulate=True)
    return times


@ways
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_pair_is_in_one_part(pattern, causal):
    expected = pattern.mask(190, causal=causal)[0].int()
    assert torch.equal(times_in_parts(pattern, 190, causal), expected)


@ways
@pytest.mark.parametrize("length", [1, 63, 65, 190])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_each_pair_is_in_one_tile(pattern, length, causal):
    expected = pattern.mask(length, causal=causal)[0].int()
    assert torch.equal(times_in_tiles(pattern, length, causal), expected)


@settings(max_examples=60, deadline=None)
@given(st.lists(members, min_size=1, max_size=3), st.integers(1, 200), st.booleans())
def test_any_union_is_cut_into_tiles(chosen, length, causal):
    pattern = Merged(*chosen)
    expected = pattern.mask(length, causal=causal)[0].int()
    assert torch.equal(times_in_parts(pattern, length, causal), expected)
    assert torch.equal(times_in_tiles(pattern, length, causal), expected)


@ways
@pytest.mark.parametrize(
    "pattern", [Merged(Local(64), Strided(64)), Fixed(64, 8), Strided(64), Local(128)], ids=str
)
def test_little_is_scored_that_is_not_seen(pattern, causal):
    case = Case(pattern=pattern, length=16_384, causal=causal, heads=1)
    scored = sum(
        tile.queries.groups * tile.queries.rows * tile.columns
        for part in parts(pattern)
        for tile in tiles(part, case.length, causal=causal)
    )
    assert scored < 1.8 * case.pairs
