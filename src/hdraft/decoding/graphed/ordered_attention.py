"""Attention of one decoding step, summed in the order of the text: a row's result does not tell how it was drafted.

Sums of numbers of few bits depend on their order. `tree_attention` adds up a row's ancestors by their slots, so that in
half precision a token may get other logits behind a draft than behind text. Here what a row adds up, and with what,
depends on its position alone, whether a token before it is text already or the row's ancestor in the tree:

    positions   | 0 … 255 | 256 … 287 | 288 … 319 | 320 … 330, 331, 332 |     a row at 332: 331 may be text, or a node
    blocks      | eight   | one       | one       | one                 |     of 32 positions, one after the other
    chunks      | one     | another                                     |     of 256, added up to the result in order

Two kernels do the same arithmetic on blocks: `_attend_text` on those that are text for every row, and `_attend_path` on
those behind them, each row for itself. `_join` adds up the chunks.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hdraft.decoding.graphed.fused import MOST_SHARING
from hdraft.decoding.graphed.tree_attention import LOG2_E, padded_size

BLOCK = 32
"""Columns of a block: what is behind the last whole block of text, each row reads by itself."""

CHUNK = 256
"""Columns that one program adds up; a multiple of `BLOCK`."""


def ordered_attention(
    queries: Tensor, keys: Tensor, values: Tensor, start: Tensor, earliest: Tensor, paths: Tensor, scaling: float
) -> Tensor:
    """What `tree_attention` computes, bit for bit the same for a token behind a draft and behind text.

    Args:
        queries: float[heads, r, size], of unit stride; at most `MOST_SHARING` heads to a head of keys.
        keys, values: float[kv_heads, capacity, size] and [kv_heads, capacity, size_v], of unit stride: buffers that the
            step's own keys and values were already written to, at slots start … start + r - 1.
        start: int64[], on the device: slots before the step's own.
        earliest: int64[r], the first of them that each row may look at.
        paths: int32[r, 1 + r], see `as_paths`.
        scaling: what scores are multiplied by.

    Returns:
        float[r, heads * size_v], contiguous, in the queries' number format.
    """
    heads, rows, size = queries.shape
    kv_heads, capacity, size_v = values.shape
    group = heads // kv_heads
    chunks = -(-capacity // CHUNK)
    parts = queries.new_empty((rows * heads, chunks, size_v), dtype=torch.float32)
    sums = queries.new_empty((2, rows * heads, chunks), dtype=torch.float32)
    result = queries.new_empty((rows, heads * size_v))
    inputs = (queries, keys, values, start, earliest)
    strides = (*queries.stride()[:2], *keys.stride()[:2], *values.stride()[:2])
    values_are = {"SIZE_V": size_v, "PADDED_V": padded_size(size_v), "CHUNK": CHUNK}
    shape = {"GROUP": group, "SIZE": size, "PADDED": padded_size(size), "BLOCK": BLOCK} | values_are
    together, alike = settings(queries.device, queries.dtype, group)
    scale = scaling * LOG2_E
    _attend_text[(-(-rows * group // together), kv_heads, chunks)](
        *inputs, parts, sums, scale, rows, *strides, **shape, ROWS=together, num_stages=3, **alike
    )
    _attend_path[(rows, kv_heads)](
        *inputs, parts, sums, paths, scale, rows, chunks, *strides, **shape, ROWS=MOST_SHARING, num_stages=1, **alike
    )
    _join[(rows, heads)](
        parts, sums, start, paths, result, rows, chunks, **values_are, AHEAD=4, num_warps=1, enable_fp_fusion=False
    )
    return result


def settings(device: torch.device, number_format: torch.dtype, group: int) -> tuple[int, dict[str, Any]]:
    """The rows of a block of text, query heads that share keys among them, and what both kernels are compiled with.

    That is as many warps, which share the columns of a sum, and no product and sum in one instruction, which the
    compiler might choose for one kernel and not for the other. Where products are not NVIDIA's matrix instructions for
    16 rows, the order of a sum depends on the rows of a block too: there they are as many as a path's.
    """
    plain = number_format == torch.float32 or (
        device.type == "cuda" and (torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0))
    )
    # measured on an H100, 64 rows, 32 heads of 128: without shared keys one warp takes 24 us behind 512 tokens and 61
    # behind 4,000, two with twice the rows 28 and 58; with keys for four heads each 22 and 54, and 22 and 45
    warps, rows = (1, MOST_SHARING) if group == 1 or plain else (2, 2 * MOST_SHARING)
    return rows, {"num_warps": warps, "enable_fp_fusion": False}


def as_paths(among: Tensor) -> Tensor:
    """int32[r, 1 + r] for bool[r, r], contiguous: how many of the step's rows each row looks at, and which, in order.

    Of a step of three rows, two of them below the first: [[1, 0, 0, 0], [2, 0, 1, 0], [2, 0, 2, 0]].
    """
    rows = len(among)
    paths = among.new_zeros((rows, 1 + rows), dtype=torch.int32)
    _follow[(rows,)](among, paths, rows, BLOCK=triton.next_power_of_2(rows), num_warps=1)
    return paths


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["among", "paths"])
def _follow(among: tl.tensor, paths: tl.tensor, rows: tl.tensor, BLOCK: tl.constexpr) -> None:
    row, column = tl.program_id(0), tl.arange(0, BLOCK)
    flags = tl.load(among + row * rows + column, mask=column < rows, other=0).to(tl.int32)
    path = paths + row * (1 + rows)
    tl.store(path, tl.sum(flags, 0))
    tl.store(path + tl.cumsum(flags, 0), column, mask=flags != 0)


@triton.jit
def _states(
    buffer: tl.tensor,
    kv_head: tl.tensor,
    head_stride: tl.tensor,
    slot: tl.tensor,
    slot_stride: tl.tensor,
    there: tl.tensor,
    numbers: tl.tensor,
    SIZE: tl.constexpr,
) -> tl.tensor:
    """The keys, or the values, in some slots; zeros in place of those that are not to be looked at."""
    at = buffer + kv_head.to(tl.int64) * head_stride + (slot * slot_stride)[:, None] + numbers
    return tl.load(at, mask=there[:, None] & (numbers < SIZE), other=0.0)


@triton.jit
def _add(
    query: tl.tensor,
    key: tl.tensor,
    value: tl.tensor,
    visible: tl.tensor,
    scaling: tl.tensor,
    greatest: tl.tensor,
    total: tl.tensor,
    result: tl.tensor,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Add a block of columns to what came before: the greatest score, the sum of exponentials, and that of values."""
    scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
    scores = tl.where(visible, scores, float("-inf"))
    new = tl.maximum(greatest, tl.max(scores, 1))
    finite = tl.where(new == float("-inf"), 0.0, new)
    weights = tl.exp2(scores - finite[:, None])
    decay = tl.exp2(greatest - finite)
    total = total * decay + tl.sum(weights, 1)
    result = tl.dot(weights.to(value.dtype), value, acc=result * decay[:, None], input_precision="ieee")
    return new, total, result


@triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["start", "earliest"])
def _attend_text(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    earliest: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    scaling: tl.tensor,
    rows: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    key_head: tl.tensor,
    key_slot: tl.tensor,
    value_head: tl.tensor,
    value_slot: tl.tensor,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_V: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_V: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """A block of rows over the whole blocks of text of one chunk, if it has any: see `_attend` in `tree_attention`."""
    kv_head, chunk = tl.program_id(1), tl.program_id(2)
    before = tl.load(start).to(tl.int32)
    begin, end = chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, before // BLOCK * BLOCK)
    if begin < end:
        packed = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        row, head = packed // GROUP, kv_head * GROUP + packed % GROUP
        known = row < rows
        numbers, numbers_v, offsets = tl.arange(0, PADDED), tl.arange(0, PADDED_V), tl.arange(0, BLOCK)
        first = tl.load(earliest + row, mask=known, other=2**62)
        first = tl.minimum(tl.maximum(first, 0), before).to(tl.int32)
        least = tl.min(first, 0)
        query = tl.load(
            queries + (head * query_head + row * query_row)[:, None] + numbers,
            mask=known[:, None] & (numbers < SIZE),
            other=0.0,
        )
        greatest = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        result = tl.zeros((ROWS, PADDED_V), tl.float32)
        for base in range(begin, end, BLOCK):
            slot = (base + offsets).to(tl.int64)
            there = slot >= least
            key = _states(keys, kv_head, key_head, slot, key_slot, there, numbers, SIZE)
            value = _states(values, kv_head, value_head, slot, value_slot, there, numbers_v, SIZE_V)
            visible = (base + offsets)[None, :] >= first[:, None]
            greatest, total, result = _add(query, key, value, visible, scaling, greatest, total, result)
        heads = tl.num_programs(1) * GROUP
        at = (row * heads + head) * tl.num_programs(2) + chunk
        tl.store(sums + at, greatest, mask=known)
        tl.store(sums + rows * heads * tl.num_programs(2) + at, total, mask=known)
        inside = known[:, None] & (numbers_v < SIZE_V)
        tl.store(parts + (at.to(tl.int64) * SIZE_V)[:, None] + numbers_v, result, mask=inside)


@triton.jit(do_not_specialize=["rows", "chunks"], do_not_specialize_on_alignment=["start", "earliest", "paths"])
def _attend_path(
    queries: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    earliest: tl.tensor,
    parts: tl.tensor,
    sums: tl.tensor,
    paths: tl.tensor,
    scaling: tl.tensor,
    rows: tl.tensor,
    chunks: tl.tensor,
    query_head: tl.tensor,
    query_row: tl.tensor,
    key_head: tl.tensor,
    key_slot: tl.tensor,
    value_head: tl.tensor,
    value_slot: tl.tensor,
    GROUP: tl.constexpr,
    SIZE: tl.constexpr,
    SIZE_V: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_V: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
) -> None:
    """One row, those of its query heads that share keys, over the blocks behind the whole ones of text."""
    row, kv_head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1) * GROUP
    members = tl.arange(0, ROWS)
    known, head = members < GROUP, kv_head * GROUP + members
    numbers, numbers_v, offsets = tl.arange(0, PADDED), tl.arange(0, PADDED_V), tl.arange(0, BLOCK)
    before = tl.load(start).to(tl.int32)
    first = tl.minimum(tl.maximum(tl.load(earliest + row), 0), before).to(tl.int32)
    path = paths + row * (1 + rows)
    behind = before + tl.load(path)  # the columns that the row sees end here: itself is the last
    query = tl.load(
        queries + (head * query_head + row * query_row)[:, None] + numbers,
        mask=known[:, None] & (numbers < SIZE),
        other=0.0,
    )

    # the chunk that the text ends in, as far as its blocks are whole
    begin = before // BLOCK * BLOCK
    at = (row * heads + head) * chunks + begin // CHUNK
    totals = sums + rows * heads * chunks
    inside = known[:, None] & (numbers_v < SIZE_V)
    begun = members < tl.where(begin % CHUNK > 0, GROUP, 0)
    greatest = tl.load(sums + at, mask=begun, other=float("-inf"))
    total = tl.load(totals + at, mask=begun, other=0.0)
    result = tl.load(parts + (at.to(tl.int64) * SIZE_V)[:, None] + numbers_v, mask=inside & begun[:, None], other=0.0)
    for base in range(begin, behind, BLOCK):
        column = base + offsets
        seen = (column >= first) & (column < behind)
        node = tl.load(path + 1 + column - before, mask=seen & (column >= before), other=0)
        slot = tl.where(column < before, column, before + node).to(tl.int64)
        key = _states(keys, kv_head, key_head, slot, key_slot, seen, numbers, SIZE)
        value = _states(values, kv_head, value_head, slot, value_slot, seen, numbers_v, SIZE_V)
        greatest, total, result = _add(query, key, value, seen[None, :], scaling, greatest, total, result)
        if ((base + BLOCK) % CHUNK == 0) | (base + BLOCK >= behind):
            tl.store(sums + at, greatest, mask=known)
            tl.store(totals + at, total, mask=known)
            tl.store(parts + (at.to(tl.int64) * SIZE_V)[:, None] + numbers_v, result, mask=inside)
            at += 1
            greatest = tl.full((ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            result = tl.zeros((ROWS, PADDED_V), tl.float32)


@triton.jit(do_not_specialize=["rows", "chunks"], do_not_specialize_on_alignment=["start", "paths"])
def _join(
    parts: tl.tensor,
    sums: tl.tensor,
    start: tl.tensor,
    paths: tl.tensor,
    output: tl.tensor,
    rows: tl.tensor,
    chunks: tl.tensor,
    SIZE_V: tl.constexpr,
    PADDED_V: tl.constexpr,
    CHUNK: tl.constexpr,
    AHEAD: tl.constexpr,
) -> None:
    """The result of a row and a head from what its chunks came to, in order."""
    row, head, heads = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    numbers = tl.arange(0, PADDED_V)
    last = (tl.load(start).to(tl.int32) + tl.load(paths + row * (1 + rows)) - 1) // CHUNK
    at = (row * heads + head) * chunks
    totals, part = sums + rows * heads * chunks + at, parts + at.to(tl.int64) * SIZE_V
    greatest, total, result = float("-inf"), 0.0, tl.zeros((PADDED_V,), tl.float32)
    for begin in range(0, last + 1, AHEAD):
        for chunk in tl.static_range(AHEAD):  # loads of several are under way together
            there = begin + chunk <= last
            later = tl.load(sums + at + begin + chunk, mask=there, other=float("-inf"))
            later_total = tl.load(totals + begin + chunk, mask=there, other=0.0)
            inside = numbers < tl.where(there, SIZE_V, 0)
            later_result = tl.load(part + (begin + chunk) * SIZE_V + numbers, mask=inside, other=0.0)
            new = tl.maximum(greatest, later)
            finite = tl.where(new == float("-inf"), 0.0, new)
            old, young = tl.exp2(greatest - finite), tl.exp2(later - finite)
            total = total * old + later_total * young
            result = result * old + later_result * young
            greatest = new
    place = output + (row * heads + head) * SIZE_V + numbers
    tl.store(place, (result / total).to(output.dtype.element_ty), mask=numbers < SIZE_V)
