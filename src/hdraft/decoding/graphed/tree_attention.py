"""Attention of one decoding step over a text of any length: the length is read on the device, so one graph serves all.

Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023) splits the columns of a single query over the processors of a GPU
and weighs the partial results by their sums of exponentials. Here the rows are those of a draft tree, as in SpecInfer
(Miao et al., 2024) and Medusa (Cai et al., 2024). Query heads that share keys are rows too: keys are read once.

    rows     | row 0: query heads of the group | row 1: … | …     cut into blocks, a program for each block and split
    columns  | text, slots 0 … start - 1 | the step's own rows, slots start … |     cut into blocks, divided over splits
"""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # it comes with torch for GPUs only
    triton = None


def tree_attention(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    earliest: Tensor,
    among: Tensor,
    scaling: float,
    splits: int | None = None,
    **settings: int,
) -> Tensor:
    """Attention of a step's rows to the text and to each other; `tree_attention_reference` where Triton cannot run.

    The tensors' device must be the current one, where Triton launches. Every row must see a column. Slots before the
    first that a row may look at, and behind the step's own, may hold anything, not a number included.

    Args:
        queries: float[heads, r, size], of unit stride.
        keys, values: float[kv_heads, capacity, size] and [kv_heads, capacity, size_v], of unit stride: buffers that the
            step's own keys and values were already written to, at slots start … start + r - 1.
        start: int64[], on the device: slots before the step's own.
        earliest: int64[r], the first of them that each row may look at; any number, see `padded_rows`.
        among: bool[r, r], contiguous: whether row i may look at the step's row j; or `as_bits` of it, which saves a
            launch.
        scaling: what scores are multiplied by.
        splits: how many parts columns are divided into, a power of two; None for what fills the device.
        settings: other fields of `Settings`.

    Returns:
        float[r, heads * size_v], contiguous, in the queries' number format.

    Raises:
        ValueError: a number format or a layout that it is not made for.
    """
    if not available(queries.device):
        return tree_attention_reference(queries, keys, values, start, earliest, among, scaling)
    heads, rows, size = queries.shape
    kv_heads, _, size_v = values.shape
    if queries.dtype not in _FORMATS or not queries.dtype == keys.dtype == values.dtype:
        raise ValueError(f"queries, keys and values must be alike float16, bfloat16 or float32, not {queries.dtype}")
    if not queries.stride(-1) == keys.stride(-1) == values.stride(-1) == 1 or not among.is_contiguous():
        raise ValueError("queries, keys and values must be contiguous in their last dimension, and `among` in both")
    bits = as_bits(among) if among.dtype == torch.bool else among
    group = heads // kv_heads
    chosen = default_settings(queries.device, queries.dtype, rows, group, kv_heads, max(size, size_v))
    chosen = chosen._replace(splits=splits or chosen.splits, **settings)
    parts = queries.new_empty((rows * heads, chosen.splits, size_v), dtype=torch.float32)
    sums = queries.new_empty((2, rows * heads, chosen.splits), dtype=torch.float32)
    result = queries.new_empty((rows, heads * size_v))
    _attend[(kv_heads, -(-rows * group // chosen.block_m), chosen.splits)](
        queries,
        keys,
        values,
        start,
        earliest,
        bits,
        parts,
        sums,
        scaling * LOG2_E,
        rows,
        *queries.stride()[:2],
        *keys.stride()[:2],
        *values.stride()[:2],
        GROUP=group,
        SIZE=size,
        SIZE_V=size_v,
        PADDED=padded_size(size),
        PADDED_V=padded_size(size_v),
        BLOCK_M=chosen.block_m,
        BLOCK_N=chosen.block_n,
        WORD=_WORD,
        num_warps=chosen.warps,
        num_stages=chosen.stages,
    )
    _combine[(rows * heads,)](
        parts,
        sums,
        result,
        SPLITS=chosen.splits,
        SIZE_V=size_v,
        PADDED_V=padded_size(size_v),
        num_warps=min(4, max(1, chosen.splits * padded_size(size_v) // 1024)),
    )
    return result


def as_bits(among: Tensor) -> Tensor:
    """int64[r, ceil(r / 64)] for bool[r, r], contiguous: bit j % 64 of word j // 64 is column j.

    Flags would be loaded by other threads than those that hold the scores, and Triton would rather compute every weight
    twice than hand them over. A row's bits are one number, which every thread can have.
    """
    rows = among.shape[0]
    words = -(-rows // _WORD)
    if available(among.device):
        bits = among.new_empty((rows, words), dtype=torch.int64)
        _pack[(rows, words)](among, bits, rows, WORD=_WORD, num_warps=1)
        return bits
    padded = torch.nn.functional.pad(among, (0, words * _WORD - rows)).view(rows, words, _WORD)
    return (padded.to(torch.int64) << torch.arange(_WORD, device=among.device)).sum(-1)


class Settings(NamedTuple):
    """How the work is cut.

    Attributes:
        block_m, block_n: rows and columns of a block; powers of two from 16 on, of columns at most 64.
        warps, stages: warps of a program, and blocks that are loaded ahead.
        splits: programs that share the columns.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    splits: int


def default_settings(
    device: torch.device, number_format: torch.dtype, rows: int, group: int, kv_heads: int, size: int
) -> Settings:
    """The settings for so many rows, query heads to a key's, heads of keys, and numbers to a head."""
    wide, packed = number_format == torch.float32, rows * group
    # float32 is multiplied by plain instructions, unrolled, on numbers in registers: of larger blocks they overflow
    block_m = 16 if wide or packed <= 16 else 32 if packed <= 32 else 64
    wanted = 2 * _processors(device) / (kv_heads * -(-packed // block_m))  # two programs fit on a processor
    # measured on an H100, heads of 128: 64 rows take 14 us behind 512 tokens and 36 behind 4,000, in blocks of 64
    # columns 17 and 56; of fewer rows, nothing else is faster by more than a tenth
    return Settings(
        block_m,
        block_n=16 if wide else 32 if size > 128 or block_m == 64 else 64,
        warps=8 if block_m == 64 and size > 128 else 4,
        stages=2 if wide or size > 128 else 3,
        splits=next((each for each in (1, 2, 4, 8, 16) if 0.75 * wanted <= each), 32),
    )


def available(device: torch.device) -> bool:
    """Whether the kernels run on a device: on a GPU where Triton is, and anywhere in its interpreter."""
    return triton is not None and (device.type == "cuda" or not isinstance(_attend, triton.JITFunction))


def tree_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, start: Tensor, earliest: Tensor, among: Tensor, scaling: float
) -> Tensor:
    """What `tree_attention` computes, in plain PyTorch and at least float32; it reads nothing from the device."""
    heads, rows, _ = queries.shape
    kv_heads, capacity, size_v = values.shape
    slots = torch.arange(capacity, device=queries.device)
    visible = (slots < start) & (slots >= earliest[:, None])
    if among.dtype != torch.bool:
        among = (among[:, slots[:rows] // _WORD] >> slots[:rows] % _WORD) & 1 != 0
    visible = visible.index_copy(1, slots[:rows] + start, among)
    hidden = ~visible.any(0)[:, None]  # what is there is multiplied by zero, which no stray NaN must survive
    wide = torch.promote_types(queries.dtype, torch.float32)
    # a head of keys, the query heads of its group, rows, columns
    grouped = queries.to(wide).reshape(kv_heads, heads // kv_heads, rows, -1)
    scores = grouped @ keys.to(wide).masked_fill(hidden, 0)[:, None].mT * scaling
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    result = weights @ values.to(wide).masked_fill(hidden, 0)[:, None]
    return result.reshape(heads, rows, size_v).transpose(0, 1).reshape(rows, heads * size_v).to(queries.dtype)


_FORMATS = (torch.float16, torch.bfloat16, torch.float32)

_WORD = 64  # bits

LOG2_E = 1.4426950408889634  # the device's own exponential is that of two


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def padded_size(size: int) -> int:
    """The size that a product's blocks have: a power of two, and no less than the least that it takes."""
    return max(16, 1 << (size - 1).bit_length())


if triton is not None:
    # Row counts and addresses differ from step to step: code for each kind of them would have to be compiled.
    @triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["start", "earliest", "bits"])
    def _attend(
        queries: tl.tensor,
        keys: tl.tensor,
        values: tl.tensor,
        start: tl.tensor,
        earliest: tl.tensor,
        bits: tl.tensor,
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
        BLOCK_M: tl.constexpr,
        BLOCK_N: tl.constexpr,
        WORD: tl.constexpr,
    ) -> None:
        """A block of rows over a share of the columns: `parts`, weighted sums of values, and `sums`, of exponentials.

        `sums` are the greatest score and the sum for each output row and split; of a split that saw nothing, only the
        greatest score is written, -inf.
        """
        kv_head, split, splits = tl.program_id(0), tl.program_id(2), tl.num_programs(2)
        packed = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
        row, head = packed // GROUP, kv_head * GROUP + packed % GROUP
        known = row < rows
        numbers, numbers_v = tl.arange(0, PADDED), tl.arange(0, PADDED_V)

        before = tl.load(start)
        first = tl.load(earliest + row, mask=known, other=2**62)
        first = tl.minimum(tl.maximum(first, 0), before).to(tl.int32)
        query = tl.load(
            queries + (head * query_head + row * query_row)[:, None] + numbers,
            mask=known[:, None] & (numbers < SIZE),
            other=0.0,
        )
        before = before.to(tl.int32)
        least = tl.min(first, 0)

        # blocks of text lie on multiples of BLOCK_N, those of the step's rows begin with it
        skipped = least // BLOCK_N
        text = tl.cdiv(before, BLOCK_N) - skipped
        blocks = text + tl.cdiv(rows, BLOCK_N)
        begin, end = blocks * split // splits, blocks * (split + 1) // splits

        greatest = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        result = tl.zeros((BLOCK_M, PADDED_V), tl.float32)
        offsets = tl.arange(0, BLOCK_N)
        words = tl.cdiv(rows, WORD)
        key_base = keys + kv_head.to(tl.int64) * key_head
        value_base = values + kv_head.to(tl.int64) * value_head
        for block in range(begin, end):
            if block < text:
                base, limit = (skipped + block) * BLOCK_N, before
                seen = tl.full((BLOCK_M,), -1, tl.int64)
            else:
                other = (block - text) * BLOCK_N
                base, limit = before + other, before + rows
                # the compiler loads ahead, for blocks before these and behind them too: nothing but its bounds
                # keeps such a load within the memory there is
                word = tl.minimum(tl.maximum(other // WORD, 0), words - 1)
                seen = tl.load(bits + row * words + word, mask=known, other=0) >> other % WORD
            column = base + offsets
            there = (column >= least) & (column < limit)
            key = tl.load(
                key_base + base.to(tl.int64) * key_slot + offsets[:, None] * key_slot + numbers,
                mask=there[:, None] & (numbers < SIZE),
                other=0.0,
            )
            scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scaling
            # bits of 32 are cheaper to shift, and which half a column is in is known when this is compiled
            half = tl.where(offsets < 32, seen.to(tl.int32)[:, None], (seen >> 32).to(tl.int32)[:, None])
            visible = there & (column >= first[:, None]) & ((half >> offsets % 32) & 1 != 0)
            scores = tl.where(visible, scores, float("-inf"))
            new = tl.maximum(greatest, tl.max(scores, 1))
            finite = tl.where(new == float("-inf"), 0.0, new)
            weights = tl.exp2(scores - finite[:, None])
            decay = tl.exp2(greatest - finite)
            value = tl.load(
                value_base + base.to(tl.int64) * value_slot + offsets[:, None] * value_slot + numbers_v,
                mask=there[:, None] & (numbers_v < SIZE_V),
                other=0.0,
            )
            total = total * decay + tl.sum(weights, 1)
            result = result * decay[:, None]
            result = tl.dot(weights.to(value.dtype), value, acc=result, input_precision="ieee")
            greatest = new

        output = row * tl.num_programs(0) * GROUP + head
        at = output * splits + split
        tl.store(sums + at, greatest, mask=known)
        any_seen = known & (greatest > float("-inf"))
        outputs = rows * tl.num_programs(0) * GROUP
        tl.store(sums + outputs * splits + at, total, mask=any_seen)
        tl.store(parts + (at * SIZE_V)[:, None] + numbers_v, result, mask=any_seen[:, None] & (numbers_v < SIZE_V))

    @triton.jit
    def _combine(
        parts: tl.tensor,
        sums: tl.tensor,
        result: tl.tensor,
        SPLITS: tl.constexpr,
        SIZE_V: tl.constexpr,
        PADDED_V: tl.constexpr,
    ) -> None:
        """The result of a row and head from that of each split."""
        output = tl.program_id(0)
        at = output * SPLITS + tl.arange(0, SPLITS)
        numbers = tl.arange(0, PADDED_V)
        greatest = tl.load(sums + at)
        seen = greatest > float("-inf")
        total = tl.load(sums + tl.num_programs(0) * SPLITS + at, mask=seen, other=0.0)
        weights = tl.exp2(greatest - tl.max(greatest, 0))
        part = tl.load(parts + (at * SIZE_V)[:, None] + numbers, mask=seen[:, None] & (numbers < SIZE_V), other=0.0)
        mean = tl.sum(part * weights[:, None], 0) / tl.sum(total * weights, 0)
        tl.store(result + output * SIZE_V + numbers, mean.to(result.dtype.element_ty), mask=numbers < SIZE_V)

    @triton.jit(do_not_specialize=["rows"], do_not_specialize_on_alignment=["among", "bits"])
    def _pack(among: tl.tensor, bits: tl.tensor, rows: tl.tensor, WORD: tl.constexpr) -> None:
        row, word = tl.program_id(0), tl.program_id(1)
        places = tl.arange(0, WORD)
        column = word * WORD + places
        flags = tl.load(among + row * rows + column, mask=column < rows, other=0)
        tl.store(bits + row * tl.num_programs(1) + word, tl.sum(flags.to(tl.int64) << places.to(tl.int64), 0))
