# mypy: ignore-errors
# the functions here are Triton's language: its compiler reads them, Python never runs them
"""The Triton kernels of sparse attention: forward, gradients of queries, gradients of keys.

One family serves every kind of part (`KIND`): a program owns one tile of queries (or keys) and
walks over the tiles of keys (or queries) that it sees. Tiles whose pairs all count skip the mask.
No atomics: each result is written by one program, and two runs are bit-identical.

Queries and keys are counted in rows of a group; row n of group g is position
g * group_step + n * row_step:

band       groups are residue classes, blocks, or the whole sequence; a query sees keys at a
           distance of `least` to `most` rows
summaries  queries are counted by position, keys as summary positions: `count` in each block of
           `stride` from place `first` on
table      both by position; lists of blocks of 64, with a mask of 64 words of 64 bits for each
           block of which only a part counts

Each kernel merges its part into what earlier parts left in `PREVIOUS...` (`MERGE`).

Flash attention's algorithm (Dao et al. 2022; Dao 2023) with float32 statistics; log-sum-exps are
natural outside and base 2 inside.
Shapes: X = batch x heads, T positions, D head size, M queries and N keys in a tile.
"""

import triton
import triton.language as tl

_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)

# numbers that change with the length: a kernel serves all of them
_PLAIN = [
    *("length", "groups", "group_step", "row_step", "max_rows", "max_keys"),
    *("least", "most", "stride", "first", "count", "scale"),
]


@triton.jit
def _rows_before(limit, base, row_step, max_rows, stride, first, count, KIND: tl.constexpr):
    """Return how many keys of the group lie at positions below `limit`."""
    if KIND == "summaries":
        partial = tl.minimum(tl.maximum(limit % stride - first, 0), count)
        return (limit // stride) * count + partial
    else:
        return tl.minimum(max_rows, (tl.maximum(limit - base, 0) + row_step - 1) // row_step)


@triton.jit
def _key_position(c, base, row_step, stride, first, count, KIND: tl.constexpr):
    """Return the position of key row `c`."""
    if KIND == "summaries":
        return (c // count) * stride + first + c % count
    else:
        return base + c * row_step


@triton.jit
def _keys_of(n, rows, keys, least, most, stride, count, CAUSAL, M: tl.constexpr, KIND):
    """Return the range of key rows that the queries n .. n + M - 1 see."""
    last = tl.minimum(n + M, rows) - 1
    if KIND == "summaries":
        start = n * 0
        stop = (last // stride) * count if CAUSAL else keys
    else:
        start = tl.maximum(n - most, 0)
        stop = last - least + 1 if CAUSAL else last + most + 1
    return start, tl.minimum(stop, keys)


@triton.jit
def _queries_of(c, rows, keys, least, most, stride, count, CAUSAL, N: tl.constexpr, KIND):
    """Return the range of queries that see the key rows c .. c + N - 1."""
    last = tl.minimum(c + N, keys) - 1
    if KIND == "summaries":
        start = (c // count + 1) * stride if CAUSAL else c * 0
        stop = rows
    else:
        start = c + least if CAUSAL else tl.maximum(c - most, 0)
        stop = tl.minimum(rows, last + most + 1)
    return start, tl.where(c < keys, stop, start)


@triton.jit
def _all_seen(
    n, c, mask, keys, least, most, stride, count, CAUSAL, M: tl.constexpr, N: tl.constexpr, KIND
):
    """Return whether each query n .. n + M - 1 sees each key c .. c + N - 1."""
    if KIND == "table":
        seen = mask < 0
    elif KIND == "summaries":
        seen = c + N <= (n // stride) * count
        if not CAUSAL:
            seen = seen | (c >= ((n + M - 1) // stride + 1) * count)
    else:
        nearest = n - (c + N - 1)
        farthest = n + M - 1 - c
        if CAUSAL:
            seen = (nearest >= least) & (farthest <= most)
        else:
            beside = (nearest >= least) | (farthest <= -least) | (least == 0)
            seen = beside & (nearest >= -most) & (farthest <= most)
    return seen & (c + N <= keys)


@triton.jit
def _seen(n, c, mask, WORDS, keys, least, most, stride, count, CAUSAL, KIND):
    """Return which queries `n` see which keys `c`: one is a column, the other a row."""
    if KIND == "table":
        words = tl.load(WORDS + tl.maximum(mask, 0) * 64 + n % 64)
        seen = (((words >> (c % 64).to(tl.int64)) & 1) != 0) | (mask < 0)
    elif KIND == "summaries":
        before = (n // stride) * count
        seen = c < before
        if not CAUSAL:
            seen = seen | (c >= before + count)
    else:
        gap = n - c
        if not CAUSAL:
            gap = tl.abs(gap)
        seen = (gap >= least) & (gap <= most)
    return seen & (c < keys)


@triton.jit
def _walk(START, block, lower, upper, STEP: tl.constexpr, KIND):
    """Return the steps of a walk: entries of a table, or tiles between two rows."""
    if KIND == "table":
        RATIO: tl.constexpr = 64 // STEP
        begin, end = tl.load(START + block) * RATIO, tl.load(START + block + 1) * RATIO
    else:
        begin, end = 0, tl.maximum(upper - lower + STEP - 1, 0) // STEP
    return begin, end


@triton.jit
def _step(ENTRIES, t, lower, STEP: tl.constexpr, KIND):
    """Return the first row of step `t` of a walk and its block's mask (-1: all seen)."""
    if KIND == "table":
        RATIO: tl.constexpr = 64 // STEP
        entry = ENTRIES + 2 * (t // RATIO)
        return tl.load(entry) * 64 + (t % RATIO) * STEP, tl.load(entry + 1)
    else:
        return lower + t * STEP, -1


@triton.jit
def _offsets(position, D: tl.constexpr, WIDTH: tl.constexpr):
    return position[:, None] * D + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _inside(valid, D: tl.constexpr, WIDTH: tl.constexpr):
    inside = valid[:, None]
    if D != WIDTH:
        inside = inside & (tl.arange(0, WIDTH) < D)[None, :]
    return inside


@triton.jit
def _key_limit(LENGTHS, x, length):
    """Return how many positions of sequence `x` hold keys."""
    if LENGTHS is None:
        return length
    else:
        return tl.maximum(tl.minimum(tl.load(LENGTHS + x), length), 0)


@triton.jit(do_not_specialize=_PLAIN)
def _forward(
    Q, K, V, PREVIOUS, OUT, LSE, LENGTHS, START, ENTRIES, WORDS,
    length, groups, group_step, row_step, max_rows, max_keys, least, most,
    stride, first, count, scale,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, MERGE: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the output and the log-sum-exp of a tile of M queries."""
    tiles = (max_rows + M - 1) // M
    program = tl.program_id(0) % (tiles * groups)
    x = tl.program_id(0) // (tiles * groups)
    n0 = (tiles - 1 - program // groups) * M  # with causality the last tiles see the most
    base = (program % groups) * group_step
    rows = tl.minimum(max_rows, (tl.maximum(length - base, 0) + row_step - 1) // row_step)
    limit = _key_limit(LENGTHS, x, length)
    keys = _rows_before(limit, base, row_step, max_rows, stride, first, count, KIND)
    lower, upper = _keys_of(n0, rows, keys, least, most, stride, count, CAUSAL, M, KIND)
    begin, end = _walk(START, n0 // 64, lower, upper, N, KIND)

    # 64 bits to the sequence, 32 within it
    sequence = x.to(tl.int64) * length
    LSE += sequence
    Q, K, V = Q + sequence * D, K + sequence * D, V + sequence * D
    PREVIOUS, OUT = PREVIOUS + sequence * D, OUT + sequence * D
    n = n0 + tl.arange(0, M)
    position = base + n * row_step
    inside = _inside(n < rows, D, WIDTH)
    at = _offsets(position, D, WIDTH)
    q = tl.load(Q + at, mask=inside, other=0.0)
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mean = tl.zeros([M, WIDTH], tl.float32)
    for t in range(begin, end):
        c0, mask = _step(ENTRIES, t, lower, N, KIND)
        c = c0 + tl.arange(0, N)
        spot = _key_position(c, base, row_step, stride, first, count, KIND)
        there = _inside(c < keys, D, WIDTH)
        from_ = _offsets(spot, D, WIDTH)
        k = tl.load(K + from_, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
        if not _all_seen(n0, c0, mask, keys, least, most, stride, count, CAUSAL, M, N, KIND):
            seen = _seen(
                n[:, None], c[None, :], mask, WORDS, keys, least, most, stride, count, CAUSAL, KIND
            )
            s = tl.where(seen, s, float("-inf"))
        new = tl.maximum(top, tl.max(s, 1))
        safe = tl.where(new == float("-inf"), 0.0, new)
        p = tl.math.exp2(s - safe[:, None])
        shrink = tl.math.exp2(top - safe)
        total = total * shrink + tl.sum(p, 1)
        v = tl.load(V + from_, mask=there, other=0.0)
        mean = tl.dot(p.to(v.dtype), v, mean * shrink[:, None], input_precision=PRECISION)
        top = new

    # rows without keys: output 0, log-sum-exp -inf
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    mean = mean / total[:, None]
    lse = tl.where(empty, float("-inf"), top + tl.math.log2(total))
    if MERGE:
        old = tl.load(LSE + position, mask=n < rows, other=float("-inf")) * _LOG2_E
        high = tl.maximum(old, lse)
        high = tl.where(high == float("-inf"), 0.0, high)
        share, kept = tl.math.exp2(lse - high), tl.math.exp2(old - high)
        both = share + kept
        empty = both == 0.0
        both = tl.where(empty, 1.0, both)
        before = tl.load(PREVIOUS + at, mask=inside, other=0.0)
        mean = mean * (share / both)[:, None] + before * (kept / both)[:, None]
        lse = tl.where(empty, float("-inf"), high + tl.math.log2(both))
    tl.store(OUT + at, mean.to(OUT.dtype.element_ty), mask=inside)
    tl.store(LSE + position, lse * _LN_2, mask=n < rows)


@triton.jit(do_not_specialize=_PLAIN)
def _query_gradients(
    Q, K, V, GRADIENT, LSE, DELTA, PREVIOUS, OUT, LENGTHS, START, ENTRIES, WORDS,
    length, groups, group_step, row_step, max_rows, max_keys, least, most,
    stride, first, count, scale,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, MERGE: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the gradient of a tile of M queries."""
    tiles = (max_rows + M - 1) // M
    program = tl.program_id(0) % (tiles * groups)
    x = tl.program_id(0) // (tiles * groups)
    n0 = (tiles - 1 - program // groups) * M
    base = (program % groups) * group_step
    rows = tl.minimum(max_rows, (tl.maximum(length - base, 0) + row_step - 1) // row_step)
    limit = _key_limit(LENGTHS, x, length)
    keys = _rows_before(limit, base, row_step, max_rows, stride, first, count, KIND)
    lower, upper = _keys_of(n0, rows, keys, least, most, stride, count, CAUSAL, M, KIND)
    begin, end = _walk(START, n0 // 64, lower, upper, N, KIND)

    # 64 bits to the sequence, 32 within it
    sequence = x.to(tl.int64) * length
    LSE += sequence
    DELTA += sequence
    Q, K, V = Q + sequence * D, K + sequence * D, V + sequence * D
    GRADIENT, PREVIOUS, OUT = GRADIENT + sequence * D, PREVIOUS + sequence * D, OUT + sequence * D
    n = n0 + tl.arange(0, M)
    position = base + n * row_step
    inside = _inside(n < rows, D, WIDTH)
    at = _offsets(position, D, WIDTH)
    q = tl.load(Q + at, mask=inside, other=0.0)
    g = tl.load(GRADIENT + at, mask=inside, other=0.0)
    lse = tl.load(LSE + position, mask=n < rows, other=float("inf")) * _LOG2_E
    # without keys there are no weights: exp2(s - inf) = 0
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    delta = tl.load(DELTA + position, mask=n < rows, other=0.0)
    dq = tl.zeros([M, WIDTH], tl.float32)
    for t in range(begin, end):
        c0, mask = _step(ENTRIES, t, lower, N, KIND)
        c = c0 + tl.arange(0, N)
        spot = _key_position(c, base, row_step, stride, first, count, KIND)
        there = _inside(c < keys, D, WIDTH)
        from_ = _offsets(spot, D, WIDTH)
        k = tl.load(K + from_, mask=there, other=0.0)
        v = tl.load(V + from_, mask=there, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * _LOG2_E)
        if not _all_seen(n0, c0, mask, keys, least, most, stride, count, CAUSAL, M, N, KIND):
            seen = _seen(
                n[:, None], c[None, :], mask, WORDS, keys, least, most, stride, count, CAUSAL, KIND
            )
            s = tl.where(seen, s, float("-inf"))
        p = tl.math.exp2(s - lse[:, None])
        slope = p * (tl.dot(g, tl.trans(v), input_precision=PRECISION) - delta[:, None])
        dq = tl.dot(slope.to(k.dtype), k, dq, input_precision=PRECISION)
    dq = dq * scale
    if MERGE:
        dq += tl.load(PREVIOUS + at, mask=inside, other=0.0)
    tl.store(OUT + at, dq.to(OUT.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=_PLAIN)
def _key_gradients(
    Q, K, V, GRADIENT, LSE, DELTA, PREVIOUS_K, PREVIOUS_V, OUT_K, OUT_V, LENGTHS,
    START, ENTRIES, WORDS,
    length, groups, group_step, row_step, max_rows, max_keys, least, most,
    stride, first, count, scale,
    CAUSAL: tl.constexpr, KIND: tl.constexpr, MERGE: tl.constexpr, PRECISION: tl.constexpr,
    D: tl.constexpr, WIDTH: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Write the gradients of a tile of N keys and their values; scores are transposed (N, M)."""
    tiles = (max_keys + N - 1) // N
    program = tl.program_id(0) % (tiles * groups)
    x = tl.program_id(0) // (tiles * groups)
    c0 = (program // groups) * N  # with causality the first keys are seen by the most
    base = (program % groups) * group_step
    rows = tl.minimum(max_rows, (tl.maximum(length - base, 0) + row_step - 1) // row_step)
    limit = _key_limit(LENGTHS, x, length)
    keys = _rows_before(limit, base, row_step, max_rows, stride, first, count, KIND)
    stored = _rows_before(length, base, row_step, max_rows, stride, first, count, KIND)
    lower, upper = _queries_of(c0, rows, keys, least, most, stride, count, CAUSAL, N, KIND)
    begin, end = _walk(START, c0 // 64, lower, upper, M, KIND)

    sequence = x.to(tl.int64) * length
    LSE += sequence
    DELTA += sequence
    Q, K, V = Q + sequence * D, K + sequence * D, V + sequence * D
    GRADIENT += sequence * D
    PREVIOUS_K, PREVIOUS_V = PREVIOUS_K + sequence * D, PREVIOUS_V + sequence * D
    OUT_K, OUT_V = OUT_K + sequence * D, OUT_V + sequence * D
    c = c0 + tl.arange(0, N)
    spot = _key_position(c, base, row_step, stride, first, count, KIND)
    there = _inside(c < keys, D, WIDTH)
    at = _offsets(spot, D, WIDTH)
    k = tl.load(K + at, mask=there, other=0.0)
    v = tl.load(V + at, mask=there, other=0.0)
    dk = tl.zeros([N, WIDTH], tl.float32)
    dv = tl.zeros([N, WIDTH], tl.float32)
    for t in range(begin, end):
        n0, mask = _step(ENTRIES, t, lower, M, KIND)
        n = n0 + tl.arange(0, M)
        position = base + n * row_step
        valid = n < rows
        inside = _inside(valid, D, WIDTH)
        from_ = _offsets(position, D, WIDTH)
        q = tl.load(Q + from_, mask=inside, other=0.0)
        # queries beyond the end, as those without keys, have no weights: exp2(s - inf) = 0
        lse = tl.load(LSE + position, mask=valid, other=float("inf")) * _LOG2_E
        lse = tl.where(lse == float("-inf"), float("inf"), lse)
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * _LOG2_E)
        if not _all_seen(n0, c0, mask, keys, least, most, stride, count, CAUSAL, M, N, KIND):
            seen = _seen(
                n[None, :], c[:, None], mask, WORDS, keys, least, most, stride, count, CAUSAL, KIND
            )
            s = tl.where(seen, s, float("-inf"))
        p = tl.math.exp2(s - lse[None, :])
        g = tl.load(GRADIENT + from_, mask=inside, other=0.0)
        dv = tl.dot(p.to(g.dtype), g, dv, input_precision=PRECISION)
        delta = tl.load(DELTA + position, mask=valid, other=0.0)
        slope = p * (tl.dot(v, tl.trans(g), input_precision=PRECISION) - delta[None, :])
        dk = tl.dot(slope.to(q.dtype), q, dk, input_precision=PRECISION)
    dk = dk * scale
    written = _inside(c < stored, D, WIDTH)
    if MERGE:
        dk += tl.load(PREVIOUS_K + at, mask=written, other=0.0)
        dv += tl.load(PREVIOUS_V + at, mask=written, other=0.0)
    tl.store(OUT_K + at, dk.to(OUT_K.dtype.element_ty), mask=written)
    tl.store(OUT_V + at, dv.to(OUT_V.dtype.element_ty), mask=written)


forward = _forward
query_gradients = _query_gradients
key_gradients = _key_gradients
