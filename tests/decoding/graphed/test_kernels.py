"""The kernels between a layer's matrix products, in Triton's interpreter or on a GPU, against transformers' modules."""

import pytest
import torch
from architectures import DEVICE
from interpreter import interpret

pytest.importorskip("triton")

import triton
from gpu_code import compiled
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from hdraft.decoding.graphed import kernels
from hdraft.decoding.graphed.kernels import rms_norm, rotate_and_store, silu_times

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    if DEVICE == "cpu":
        interpret(monkeypatch, kernels)


def random(*shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def close(ours, theirs):
    """Up to the order of a sum: of numbers in half precision, few are rounded otherwise."""
    if DEVICE == "cpu" and theirs.dtype == torch.bfloat16:  # the interpreter cuts bfloat16 off, and does not round it
        torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0.02)
        return
    half = theirs.element_size() == 2
    torch.testing.assert_close(ours, theirs, atol=2e-2 if half else 1e-6, rtol=2**-7 if half else 1e-5)
    if half:
        assert (ours != theirs).float().mean() <= 0.005


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "size"), [(1, 64), (13, 576), (4, 1000)])
def test_a_norm_adds_its_residual_and_rounds_as_the_module_does(dtype, rows, size):
    module = LlamaRMSNorm(size, eps=1e-5).to(DEVICE, dtype)
    module.weight.data = random(size, dtype=dtype, seed=1)
    states, residual = random(rows, size, dtype=dtype), random(rows, size, dtype=dtype, seed=2)
    normed, total = rms_norm(states, module.weight, 1e-5)
    assert total is states
    close(normed, module(states))
    normed, total = rms_norm(states, module.weight, 1e-5, residual)
    close(total, residual + states)
    close(normed, module(residual + states))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_is_activated_and_multiplied(dtype):
    both = random(5, 2 * 1500, dtype=dtype)
    gate, up = both.split(1500, dim=1)  # as one product for both gives them
    close(silu_times(gate, up), torch.nn.functional.silu(gate) * up)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads", "size"), [(4, 4, 16), (6, 2, 80), (8, 1, 128)])
@pytest.mark.parametrize("normed", [False, True])
def test_queries_and_keys_are_rotated_and_keys_and_values_stored(dtype, heads, kv_heads, size, normed):
    rows, start = 5, torch.tensor(7, device=DEVICE)
    all_heads = random(rows, (heads + 2 * kv_heads) * size, dtype=dtype)
    queries, keys, values = all_heads.split([heads * size, kv_heads * size, kv_heads * size], dim=1)
    cosines, sines = random(rows, size, dtype=dtype, seed=1), random(rows, size, dtype=dtype, seed=2)
    modules = [Qwen3RMSNorm(size, eps=1e-6).to(DEVICE, dtype) for _ in range(2)] if normed else []
    for seed, module in enumerate(modules):
        module.weight.data = random(size, dtype=dtype, seed=3 + seed)
    caches = [random(kv_heads, 20, size, dtype=dtype, seed=5 + i) for i in range(2)]
    before = [cache.clone() for cache in caches]
    norms = tuple(module.weight for module in modules) if normed else None
    rotated = rotate_and_store((queries, keys, values), (cosines, sines), norms, 1e-6, *caches, start)

    split = [each.reshape(1, rows, -1, size) for each in (queries, keys, values)]
    for i, module in enumerate(modules):
        split[i] = module(split[i])
    expected = apply_rotary_pos_emb(split[0].transpose(1, 2), split[1].transpose(1, 2), cosines[None], sines[None])
    if normed:  # a key that a sum's order rounds otherwise goes into two numbers
        for ours, theirs in ((rotated.transpose(0, 1), expected[0][0]), (caches[0][:, 7:12], expected[1][0])):
            bound = {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.15}[dtype]
            torch.testing.assert_close(ours, theirs, atol=bound, rtol=bound)
    else:
        close(rotated.transpose(0, 1), expected[0][0])
        close(caches[0][:, 7:12], expected[1][0])
    assert torch.equal(caches[1][:, 7:12], split[2][0].transpose(0, 1))
    for cache, old in zip(caches, before, strict=True):  # no slot but the step's is touched
        assert torch.equal(cache[:, :7], old[:, :7]) and torch.equal(cache[:, 12:], old[:, 12:])


def test_compiled_for_an_h100_each_product_is_rounded_before_it_is_added(monkeypatch, tmp_path):
    monkeypatch.undo()  # the kernels as they are compiled, and not interpreted
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    half = (
        "queries",
        "new_keys",
        "new_values",
        "cosines",
        "sines",
        "query_norm",
        "key_norm",
        "rotated",
        "keys",
        "values",
    )
    types = dict.fromkeys(half, "*fp16") | {"start": "*i64", "epsilon": "fp32"}
    constants = {"heads": 4, "HALF": 64, "BLOCK": 64, "norms": True}
    kernel = kernels._rotate_and_store
    assert "fma.rn.f16" in compiled(kernel, types, constants, num_warps=1, enable_fp_fusion=True).asm["ptx"]
    assert "fma.rn" not in compiled(kernel, types, constants, num_warps=1, **kernels._ROUNDED).asm["ptx"]
