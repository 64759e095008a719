"""The kernels of tree attention, in Triton's interpreter and on a GPU where there is one, against plain PyTorch."""

import math

import pytest
import torch

from hdraft.decoding.graphed import tree_attention as module
from hdraft.decoding.graphed.tree_attention import (
    as_bits,
    default_settings,
    tree_attention,
    tree_attention_reference,
)

pytest.importorskip("triton", reason="it comes with torch for GPUs")

import triton
from gpu_code import compiled
from interpreter import interpret

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Where results are about 1: half precision rounds the probabilities, and the result."""


@pytest.fixture
def interpreted(monkeypatch):
    interpret(monkeypatch, module)


def random_tree(rows, generator):
    """bool[rows, rows]: rows see themselves and their ancestors; the last fifth are padding, which sees row 0."""
    among = torch.zeros(rows, rows, dtype=torch.bool)
    among[0, 0] = True
    for row in range(1, rows):
        if row < rows - rows // 5:
            among[row] = among[int(torch.randint(row, (), generator=generator))]
            among[row, row] = True
        else:
            among[row, 0] = True
    return among


def step(heads=4, kv_heads=2, size=16, rows=13, start=70, capacity=256, dtype=torch.float32, seed=0, **others):
    """The arguments of a step; slots that no row may look at hold NaN."""
    generator = torch.Generator().manual_seed(seed)
    size_v = others.get("size_v", size)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    earliest = torch.full((rows,), others.get("padding", 0))
    if "window" in others:
        earliest = torch.arange(rows) % 7 + start - others["window"]  # as of nodes of such depths
    if rows > 4:
        earliest[rows - rows // 5 :] = 2**62  # padding
    keys, values = normal(kv_heads, capacity, size), normal(kv_heads, capacity, size_v)
    for states in (keys, values):
        states[:, start + rows :] = torch.nan
        states[:, : max(0, int(earliest.min()))] = torch.nan
    arguments = {
        "queries": normal(heads, rows, size),
        "keys": keys,
        "values": values,
        "start": torch.tensor(start),
        "earliest": earliest,
        "among": random_tree(rows, generator),
        "scaling": 1 / math.sqrt(size),
    }
    return arguments


def check(arguments, **settings):
    expected = tree_attention_reference(**arguments)
    result = tree_attention(**arguments, **settings)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype) and result.is_contiguous()
    assert not expected.isnan().any()
    close = CLOSE[result.dtype]
    torch.testing.assert_close(result, expected, atol=close, rtol=close)


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("size", [8, 16, 64, 80, 96, 128, 256])
def test_every_head_size_in_every_number_format(interpreted, size, dtype):
    check(step(heads=2, kv_heads=1, size=size, dtype=dtype))


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("group", [1, 2, 4, 7, 8])
def test_every_size_of_a_group_of_query_heads(interpreted, group, dtype):
    check(step(heads=2 * group, kv_heads=2, rows=5, dtype=dtype))


@pytest.mark.parametrize(("rows", "start"), [(1, 0), (1, 64), (1, 200), (4, 1), (13, 0), (13, 63), (13, 150)])
@pytest.mark.parametrize(("more", "later"), [(0, 0), (32, 1), (67, 7)])
def test_every_number_of_rows_behind_texts_of_every_length(interpreted, rows, start, more, later):
    rows, start = rows + more, start + later
    check(step(heads=2, kv_heads=1, rows=rows, start=start, capacity=336, dtype=torch.float16, seed=rows))


@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize("window", [1, 5, 64, 150])
def test_windows(interpreted, window, rows):
    check(step(heads=2, kv_heads=1, rows=rows, start=300, window=window, capacity=512))


@pytest.mark.parametrize("padding", [1, 63, 64, 69, 70])
def test_padding_before_the_text(interpreted, padding):
    check(step(padding=padding, start=70))


@pytest.mark.parametrize("splits", [1, 2, 8, 32])
@pytest.mark.parametrize("start", [3, 130, 1000])
def test_splits_with_and_without_columns(interpreted, start, splits):
    check(step(heads=2, kv_heads=1, start=start, capacity=1024, window=990, dtype=torch.float16), splits=splits)


@pytest.mark.parametrize(("block_m", "block_n"), [(16, 16), (32, 32), (64, 64), (128, 64)])
def test_blocks_of_every_size(interpreted, block_m, block_n):
    check(step(heads=4, kv_heads=1, rows=33, start=200), block_m=block_m, block_n=block_n)


def test_values_may_be_of_another_size(interpreted):
    check(step(size=24, size_v=40))
    check(step(size=40, size_v=16))


def test_no_column_that_a_row_may_not_look_at_counts(interpreted):
    arguments = step(heads=1, kv_heads=1, rows=8, start=100, window=50)
    expected = tree_attention(**arguments)
    visible = (torch.arange(100) >= arguments["earliest"][:, None]) & (torch.arange(100) < 100)
    visible = torch.cat([visible, arguments["among"]], dim=1)
    for row in range(8):
        changed = {name: arguments[name].clone() for name in ("keys", "values")}
        for states in changed.values():
            states[:, :108][:, ~visible[row]] = 1e4
        assert torch.equal(tree_attention(**arguments | changed)[row], expected[row])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
def test_rows_may_be_told_in_bits(interpreted, rows, monkeypatch):
    arguments = step(heads=1, kv_heads=1, rows=rows, start=9, size=8, dtype=torch.float16)
    bits = as_bits(arguments["among"])
    expected = tree_attention(**arguments)
    assert torch.equal(tree_attention(**arguments | {"among": bits}), expected)
    plain = tree_attention_reference(**arguments)
    assert torch.equal(tree_attention_reference(**arguments | {"among": bits}), plain)
    monkeypatch.setattr(module, "triton", None)
    assert torch.equal(as_bits(arguments["among"]), bits)


def test_strides_are_followed(interpreted):
    arguments = step(heads=6, kv_heads=2, size=16, rows=13)
    expected = tree_attention(**arguments)
    apart = dict(arguments)
    apart["queries"] = arguments["queries"].transpose(0, 1).reshape(13, 96).view(13, 6, 16).transpose(0, 1)
    for name in ("keys", "values"):  # as of a layer in a buffer of [slots, layers, heads, size]
        buffer = torch.full((256, 3, 2, 16), torch.nan)
        buffer[:, 1] = arguments[name].transpose(0, 1)
        apart[name] = buffer[:, 1].transpose(0, 1)
    assert not any(apart[name].is_contiguous() for name in ("queries", "keys", "values"))
    assert torch.equal(tree_attention(**apart), expected)


def test_the_capacity_does_not_matter(interpreted):
    short, long = step(start=100, capacity=113), step(start=100, capacity=500)
    for name in ("keys", "values"):
        long[name][:, :113] = short[name]
    long = short | {name: long[name] for name in ("keys", "values")}
    assert torch.equal(tree_attention(**short), tree_attention(**long))


def test_one_launch_serves_texts_of_every_length(interpreted, monkeypatch):
    """What is read from buffers changes; no argument of a launch does."""
    launched = []
    for name in ("_pack", "_attend", "_combine"):
        kernel = getattr(module, name)
        run = kernel.run
        monkeypatch.setattr(kernel, "run", lambda *a, run=run, **k: (launched.append(_fixed(a, k)), run(*a, **k)))
    steps = [step(start=start, capacity=512) for start in (0, 77, 400)]
    for each in steps:
        tree_attention(**each)
    assert len(launched) == 9 and launched[:3] == launched[3:6] == launched[6:]


def _fixed(positional, named):
    values = [*positional, *(value for name, value in sorted(named.items()) if name not in ("grid", "warmup"))]
    return [each.shape if isinstance(each, torch.Tensor) else each for each in values] + [named["grid"]]


def test_without_triton_the_reference_is_taken(monkeypatch):
    monkeypatch.setattr(module, "triton", None)
    arguments = step(dtype=torch.float16)
    assert torch.equal(tree_attention(**arguments), tree_attention_reference(**arguments))


@pytest.mark.parametrize("size_v", [16, 24])
def test_the_reference_is_attention_over_the_columns_that_a_row_sees(size_v):
    arguments = step(heads=4, kv_heads=2, size_v=size_v, rows=8, start=20, window=9)
    result = tree_attention_reference(**arguments).view(8, 4, size_v)
    for row in range(8):
        columns = [slot for slot in range(20) if slot >= arguments["earliest"][row]]
        columns += [20 + other for other in range(8) if arguments["among"][row, other]]
        for head in range(4):
            keys, values = (arguments[name][head // 2, columns] for name in ("keys", "values"))
            weights = (keys @ arguments["queries"][head, row] / math.sqrt(16)).softmax(0)
            torch.testing.assert_close(result[row, head], weights @ values)


def test_what_it_is_not_made_for_is_said(interpreted):
    arguments = step()
    with pytest.raises(ValueError, match="float64"):
        tree_attention(**arguments | {"queries": arguments["queries"].double()})
    with pytest.raises(ValueError, match="contiguous"):
        tree_attention(**arguments | {"among": arguments["among"].mT})


@pytest.mark.parametrize(
    ("dtype", "size", "rows"),
    [("fp16", 128, 1), ("bf16", 128, 32), ("fp16", 128, 64), ("bf16", 80, 64), ("fp16", 256, 64), ("fp32", 128, 64)],
)
def test_the_kernels_compile_for_an_h100(monkeypatch, tmp_path, dtype, size, rows):
    """That needs no GPU, and the interpreter takes what the compiler does not."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    number_format = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    chosen = default_settings(torch.device("cpu"), number_format, rows, 1, 32, size)
    padded = module.padded_size(size)
    types = dict.fromkeys(("queries", "keys", "values", "result"), f"*{dtype}")
    types |= {
        "scaling": "fp32",
        "parts": "*fp32",
        "sums": "*fp32",
        "start": "*i64",
        "earliest": "*i64",
        "among": "*i1",
        "bits": "*i64",
    }
    constants = {"GROUP": 1, "SIZE": size, "SIZE_V": size, "PADDED": padded, "PADDED_V": padded}
    constants |= {"BLOCK_M": chosen.block_m, "BLOCK_N": chosen.block_n, "SPLITS": 8, "WORD": 64}
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages}
    aligned = {
        "queries",
        "keys",
        "values",
        "query_head",
        "query_row",
        "key_head",
        "key_slot",
        "value_head",
        "value_slot",
    }
    for kernel in (module._attend, module._combine, module._pack):
        code = compiled(kernel, types, constants, aligned, **options)
        programs = 2 if size <= 128 else 1  # on a processor, which has 227 KB of shared memory
        assert code.metadata.shared <= 227 * 1024 // programs
        if kernel is module._attend:
            assert "cp.async" in code.asm["ptx"]  # blocks are loaded ahead …
            ahead = [branch.split("scf.yield")[0] for branch in code.asm["ttgir"].split("} else {")[1:]]
            assert len(ahead) > 1
            for branch in ahead:  # … and the bits for a tree's rows for blocks of text too, but from where bits are
                least, most, load = (branch.find(each) for each in ("arith.maxsi", "arith.minsi", "tt.load"))
                assert 0 < least < most < load


@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "size", "heads", "kv_heads"),  # each has kernels of its own, and each of these is compiled
    [
        (torch.float16, 128, 32, 32),
        (torch.float16, 128, 32, 8),
        (torch.float16, 256, 8, 1),
        (torch.bfloat16, 80, 14, 2),
        (torch.float32, 128, 8, 8),
        (torch.float32, 16, 4, 2),
    ],
)
@pytest.mark.parametrize("rows", [1, 16, 33, 80])
def test_on_a_gpu(rows, dtype, size, heads, kv_heads):
    for others in ({"start": 0}, {"start": 700}, {"start": 700, "window": 100}, {"start": 90, "padding": 30}):
        arguments = step(heads, kv_heads, size, rows, capacity=1024, dtype=dtype, **others)
        check({name: each.cuda() if isinstance(each, torch.Tensor) else each for name, each in arguments.items()})


@needs_gpu
def test_a_graph_serves_texts_of_every_length():
    steps = [step(rows=16, start=start, capacity=4096, dtype=torch.float16) for start in (0, 100, 3000)]
    there = {name: each.cuda() if isinstance(each, torch.Tensor) else each for name, each in steps[0].items()}
    tree_attention(**there)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = tree_attention(**there)
    for each in steps:
        for name, tensor in each.items():
            if isinstance(tensor, torch.Tensor):
                there[name].copy_(tensor)
        graph.replay()
        torch.testing.assert_close(result, tree_attention_reference(**there), atol=2e-3, rtol=2e-3)
