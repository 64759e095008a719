"""What a decoder layer does between its matrix products: a kernel each, where PyTorch has some thirty in a row.

Every intermediate result is rounded where transformers rounds it, so that in half precision too the results differ by
the order of a sum at most. `tests/decoding/graphed/test_kernels.py` holds them against transformers' own modules.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROUNDED = {"enable_fp_fusion": False}
"""Or the compiler makes one instruction of a product and a sum, which leaves out the rounding between them."""


def rms_norm(states: Tensor, weight: Tensor, epsilon: float, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Add the residual, and normalize by the root of the mean square.

    Args:
        states: float[rows, size], contiguous.
        weight: float[size].
        epsilon: added to the mean square.
        residual: float[rows, size], contiguous; None for none.

    Returns:
        float[rows, size] each: the normalized sum, and the sum itself, which is `states` without a residual.
    """
    rows, size = states.shape
    normed = torch.empty_like(states)
    total = states if residual is None else torch.empty_like(states)
    block = triton.next_power_of_2(size)
    _rms_norm[(rows,)](
        states,
        states if residual is None else residual,
        total,
        normed,
        weight,
        epsilon,
        size,
        adds=residual is not None,
        BLOCK=block,
        num_warps=min(16, max(1, block // 512)),
        **_ROUNDED,
    )
    return normed, total


def rotate_and_store(
    projected: tuple[Tensor, Tensor, Tensor],
    rotation: tuple[Tensor, Tensor],
    norms: tuple[Tensor, Tensor] | None,
    epsilon: float,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
) -> Tensor:
    """Rotate queries and keys to their positions, and write keys and values to the step's slots.

    Args:
        projected: queries float[rows, heads * size], keys and values float[rows, kv_heads * size]; of unit stride.
        rotation: cosines and sines, float[rows, size], contiguous.
        norms: weights float[size] of the norms of each head of queries and of keys, as Qwen3 has them; None for none.
        epsilon: theirs.
        keys, values: float[kv_heads, capacity, size], written at slots start … start + rows - 1.
        start: int64[], on the device.

    Returns:
        float[rows, heads, size], the rotated queries.
    """
    queries, new_keys, new_values = projected
    rows, (kv_heads, _, size) = queries.shape[0], keys.shape
    heads = queries.shape[1] // size
    rotated = queries.new_empty((rows, heads, size))
    cosines, sines = rotation
    query_norm, key_norm = norms or (cosines, cosines)
    _rotate_and_store[(rows, heads + kv_heads)](
        queries,
        new_keys,
        new_values,
        cosines,
        sines,
        query_norm,
        key_norm,
        epsilon,
        rotated,
        keys,
        values,
        start,
        queries.stride(0),
        new_keys.stride(0),
        new_values.stride(0),
        *keys.stride()[:2],
        *values.stride()[:2],
        heads=heads,
        HALF=size // 2,
        BLOCK=triton.next_power_of_2(size // 2),
        norms=norms is not None,
        num_warps=1,
        **_ROUNDED,
    )
    return rotated


def silu_times(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, float[rows, size] each, of unit stride."""
    rows, size = gate.shape
    result = gate.new_empty((rows, size))
    block = 1024
    _silu_times[(rows, triton.cdiv(size, block))](
        gate, up, result, gate.stride(0), up.stride(0), size, BLOCK=block, num_warps=4, **_ROUNDED
    )
    return result


@triton.jit
def _rms_norm(
    states: tl.tensor,
    residual: tl.tensor,
    total: tl.tensor,
    normed: tl.tensor,
    weight: tl.tensor,
    epsilon: tl.tensor,
    size: tl.tensor,
    adds: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    at = tl.program_id(0).to(tl.int64) * size + columns
    state = tl.load(states + at, mask=inside, other=0.0)
    if adds:
        state = (state.to(tl.float32) + tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)).to(state.dtype)
        tl.store(total + at, state, mask=inside)
    wide = state.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / size + epsilon)
    scaled = (wide * scale).to(state.dtype).to(tl.float32)
    result = scaled * tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + at, result.to(state.dtype), mask=inside)


@triton.jit
def _rotate_and_store(
    queries: tl.tensor,
    new_keys: tl.tensor,
    new_values: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    epsilon: tl.tensor,
    rotated: tl.tensor,
    keys: tl.tensor,
    values: tl.tensor,
    start: tl.tensor,
    query_stride: tl.tensor,
    key_stride: tl.tensor,
    value_stride: tl.tensor,
    key_head: tl.tensor,
    key_slot: tl.tensor,
    value_head: tl.tensor,
    value_slot: tl.tensor,
    heads: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    norms: tl.constexpr,
) -> None:
    """A head of a row in two halves, which rotate into each other."""
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    lower = tl.arange(0, BLOCK)
    inside = lower < HALF
    upper = lower + HALF
    is_query = head < heads
    kv_head = (head - heads).to(tl.int64)
    slot = tl.load(start) + row
    if is_query:
        source = queries + row * query_stride + head * 2 * HALF
        target = rotated + (row * heads + head) * 2 * HALF
        norm = query_norm
    else:
        source = new_keys + row * key_stride + kv_head * 2 * HALF
        target = keys + kv_head * key_head + slot * key_slot
        norm = key_norm
    first = tl.load(source + lower, mask=inside, other=0.0)
    second = tl.load(source + upper, mask=inside, other=0.0)
    kind = first.dtype
    if norms:
        wide, other = first.to(tl.float32), second.to(tl.float32)
        scale = tl.rsqrt((tl.sum(wide * wide, axis=0) + tl.sum(other * other, axis=0)) / (2 * HALF) + epsilon)
        wide, other = (wide * scale).to(kind).to(tl.float32), (other * scale).to(kind).to(tl.float32)
        first = (wide * tl.load(norm + lower, mask=inside, other=0.0).to(tl.float32)).to(kind)
        second = (other * tl.load(norm + upper, mask=inside, other=0.0).to(tl.float32)).to(kind)
    at = row * 2 * HALF
    cosine = tl.load(cosines + at + lower, mask=inside, other=0.0).to(tl.float32)
    cosine_above = tl.load(cosines + at + upper, mask=inside, other=0.0).to(tl.float32)
    sine = tl.load(sines + at + lower, mask=inside, other=0.0).to(tl.float32)
    sine_above = tl.load(sines + at + upper, mask=inside, other=0.0).to(tl.float32)
    wide, other = first.to(tl.float32), second.to(tl.float32)
    below = (wide * cosine).to(kind).to(tl.float32) + (-other * sine).to(kind).to(tl.float32)
    above = (other * cosine_above).to(kind).to(tl.float32) + (wide * sine_above).to(kind).to(tl.float32)
    tl.store(target + lower, below.to(kind), mask=inside)
    tl.store(target + upper, above.to(kind), mask=inside)
    if not is_query:
        source = new_values + row * value_stride + kv_head * 2 * HALF
        target = values + kv_head * value_head + slot * value_slot
        tl.store(target + lower, tl.load(source + lower, mask=inside), mask=inside)
        tl.store(target + upper, tl.load(source + upper, mask=inside), mask=inside)


@triton.jit
def _silu_times(
    gate: tl.tensor,
    up: tl.tensor,
    result: tl.tensor,
    gate_stride: tl.tensor,
    up_stride: tl.tensor,
    size: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    value = tl.load(gate + row * gate_stride + columns, mask=inside, other=0.0)
    wide = value.to(tl.float32)
    activated = (wide / (1.0 + tl.exp(-wide))).to(value.dtype).to(tl.float32)
    product = activated * tl.load(up + row * up_stride + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(result + row * size + columns, product.to(value.dtype), mask=inside)
