"""The patterns: their definition, their counts, and what two steps of them reach."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechkit.kernels.encoding import decode, encode
from speechkit.kernels.errors import KernelError
from speechkit.kernels.patterns import (
    Blocks,
    Columns,
    Dense,
    Dilated,
    Fixed,
    Local,
    Merged,
    OwnBlock,
    Pattern,
    PerHead,
    Strided,
)

numbers = st.integers(1, 12)
lengths = st.integers(1, 60)
simple = st.one_of(
    st.just(Dense()),
    st.builds(Local, numbers),
    st.builds(Strided, numbers),
    st.builds(Dilated, numbers, numbers),
    st.builds(OwnBlock, numbers),
    st.tuples(numbers, st.integers(1, 12), st.booleans()).map(
        lambda n: Columns(n[0] * n[1], n[0], n[2])
    ),
)
patterns = st.one_of(simple, st.lists(simple, min_size=1, max_size=3).map(lambda p: Merged(*p)))


def reached(first, second):
    """Return which keys two steps reach: i sees a by the second pattern, a sees j by the first."""
    return (second.float() @ first.float()) > 0


def everything(length):
    return torch.ones(length, length).tril().bool()


@given(numbers, lengths)
def test_local_and_strided_reach_everything_in_either_order(side, length):
    local, strided = (p.mask(length)[0] for p in (Local(side), Strided(side)))
    assert torch.equal(reached(local, strided), everything(length))
    assert torch.equal(reached(strided, local), everything(length))


@given(st.integers(2, 12), st.integers(20, 60))
def test_a_window_one_shorter_leaves_holes(side, length):
    local, strided = Local(side - 1).mask(length)[0], Strided(side).mask(length)[0]
    assert not torch.equal(reached(local, strided), everything(length))


@given(st.integers(1, 12), st.integers(1, 12), lengths)
def test_own_block_then_columns_reaches_everything(side, summary, length):
    own, columns = OwnBlock(side), Columns(side, min(summary, side))
    assert torch.equal(reached(own.mask(length)[0], columns.mask(length)[0]), everything(length))


@pytest.mark.parametrize(("stride", "summary"), [(8, 1), (8, 3), (16, 8)])
def test_columns_then_own_block_does_not(stride, summary):
    own, columns = OwnBlock(stride).mask(48)[0], Columns(stride, summary).mask(48)[0]
    assert not torch.equal(reached(columns, own), everything(48))


@settings(deadline=None)
@given(patterns, lengths, st.booleans(), st.integers(1, 4))
def test_the_count_is_that_of_the_mask(pattern, length, causal, heads):
    mask = pattern.mask(length, causal=causal, heads=heads)
    assert pattern.count(length, causal=causal, heads=heads) == int(mask.sum())


@given(patterns, lengths, st.booleans())
def test_every_query_sees_itself_and_causality_hides_what_comes_later(pattern, length, causal):
    mask = pattern.mask(length, causal=causal, heads=2)
    assert mask.shape == (2, length, length)
    assert mask.diagonal(dim1=1, dim2=2).all()
    assert torch.equal(mask.tril(), pattern.mask(length, causal=True, heads=2))
    assert not (causal and mask.triu(1).any())


def rule(length, seen):
    """Return a mask pair by pair."""
    return torch.tensor([[bool(seen(i, j)) for j in range(length)] for i in range(length)])


@pytest.mark.parametrize(
    ("pattern", "seen"),
    [
        (Dense(), lambda i, j: True),
        (Local(5), lambda i, j: abs(i - j) < 5),
        (Strided(5), lambda i, j: (i - j) % 5 == 0),
        (Dilated(3, 4), lambda i, j: (i - j) % 4 == 0 and abs(i - j) / 4 < 3),
        (OwnBlock(8), lambda i, j: i // 8 == j // 8),
        (Columns(8, 3), lambda i, j: 5 <= j % 8 < 8 or i == j),
        (Columns(8, 2, sub_block=1), lambda i, j: 4 <= j % 8 < 6 or i == j),
        (Fixed(8, 3), lambda i, j: i // 8 == j // 8 or 5 <= j % 8 < 8),
        (Merged(Local(3), Strided(7)), lambda i, j: abs(i - j) < 3 or (i - j) % 7 == 0),
        (
            Blocks(((0, 1), (1, 1)), 15),
            lambda i, j: ((0, 1), (1, 1))[i // 15][j // 15] or i == j,
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, Pattern) else "",
)
def test_each_rule_pair_by_pair(pattern, seen):
    # 29 leaves a partial last block
    assert torch.equal(pattern.mask(29, causal=False)[0], rule(29, seen))
    assert torch.equal(pattern.mask(29)[0], rule(29, lambda i, j: seen(i, j) and j <= i))


def test_spread_heads_take_their_sub_blocks_in_turn_from_the_end():
    mask = Columns(8, 2, spread_heads=True).mask(16, causal=False, heads=6)
    columns = [set(mask[h, 15].nonzero().flatten().tolist()) - {15} for h in range(6)]
    assert columns[0] == {6, 7, 14}
    assert columns[1] == {4, 5, 12, 13}
    assert columns[3] == {0, 1, 8, 9}
    assert columns[4] == columns[0]


def test_per_head_gives_each_head_its_own():
    mixed = PerHead(Local(3), Columns(8, 2, spread_heads=True))
    mask = mixed.mask(20, heads=7)
    assert torch.equal(mask[0], Local(3).mask(20)[0])
    assert torch.equal(mask[1], Columns(8, 2, sub_block=1).mask(20)[0])
    assert mixed.count(20) == int(mask.sum())


def test_blocks_with_a_layout_for_each_head():
    layouts = (((1, 0), (0, 1)), ((1, 1), (1, 1)))
    mask = Blocks(layouts, 4).mask(8, heads=2, causal=False)
    assert torch.equal(mask[0], OwnBlock(4).mask(8, causal=False)[0])
    assert mask[1].all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Local(0), "Local: window is 0; give a whole number from 1"),
        (lambda: Strided(2.0), "stride is 2.0"),
        (lambda: OwnBlock(True), "stride is True"),
        (lambda: Columns(8, 9), "summary 9 does not fit in a block of stride 8"),
        (lambda: Columns(8, 3, sub_block=2), "sub_block 2 is not one of the 2"),
        (lambda: Merged(), "no patterns given"),
        (lambda: Merged(64), "Merged: 64 is no pattern"),
        (lambda: PerHead(Local(4), 3), "PerHead: 3 is no pattern"),
        (lambda: Merged(PerHead(Local(1))), r"give PerHead\(Merged"),
        (lambda: PerHead(PerHead(Local(1))), "PerHead inside"),
        (lambda: Blocks(((1, 0),), 4), "not square"),
        (lambda: Blocks((((1, 0), (1, 1)), ((1,),)), 4), "the heads' layouts differ in size"),
        (lambda: Blocks(3, 4), "not square"),
        (lambda: Blocks((1, 1), 4), "not square"),
        (lambda: Local(1 << 31), "a whole number from 1 to 2147483647"),
        (lambda: Blocks(((2,),), 4), "something else than 0 and 1"),
        (lambda: Blocks(((1,),), 4).mask(5), "covers 4 positions, but the length is 5"),
        (lambda: PerHead(Local(1)).per_head(2), "1 patterns, but there are 2 heads"),
        (lambda: decode("Local(0"), "not a pattern: 'Local\\(0'"),
        (lambda: decode("open('x')"), "open is not one of Dense, Local"),
        (lambda: decode("3"), "not a pattern: '3'"),
        (lambda: decode("Local(window=0)"), "window is 0"),
        (lambda: decode("Local(1, 2)"), "not a pattern"),
    ],
)
def test_what_is_not_a_pattern(build, message):
    with pytest.raises(KernelError, match=message):
        build()


@given(patterns)
def test_text_stands_for_its_pattern(pattern):
    assert decode(encode(pattern)) == pattern
    assert hash(decode(encode(pattern))) == hash(pattern)


def test_a_layout_may_be_written_as_lists():
    pattern = decode("Blocks([[1, 0], [1, 1]], 7)")
    assert pattern == Blocks(((1, 0), (1, 1)), 7)
    assert hash(pattern) == hash(decode(encode(pattern)))


@pytest.mark.parametrize(
    "pattern", [PerHead(Local(3), Fixed(8, 2)), Blocks(((1, 0), (1, 1)), 7)], ids=str
)
def test_text_of_nested_patterns(pattern):
    assert decode(encode(pattern)) == pattern


def test_counting_a_million_positions_needs_no_mask():
    length = 1 << 20
    assert Strided(1024).count(length) == 1024 * (1024 * 1025 // 2)
    assert Local(256).count(length) == 256 * length - 256 * 255 // 2
