"""Attention in the order of the text, in Triton's interpreter or on a GPU: the same bits however tokens are drafted."""

import math
import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="it comes with torch for GPUs")

import triton
from gpu_code import compiled
from interpreter import interpret

from hdraft.decoding.graphed import ordered_attention as module
from hdraft.decoding.graphed.fused import MOST_SHARING
from hdraft.decoding.graphed.ordered_attention import BLOCK, CHUNK, as_paths, ordered_attention
from hdraft.decoding.graphed.tree_attention import tree_attention_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

CLOSE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture
def interpreted(monkeypatch):
    if DEVICE == "cpu":
        interpret(monkeypatch, module)
        monkeypatch.setattr(np, "matmul", in_order)


def in_order(left, right, dtype):
    """A product whose rows are added up alike, as a GPU's are; those of a processor's libraries need not be."""
    total = np.zeros((left.shape[0], right.shape[1]), dtype)
    for place in range(left.shape[1]):
        total += left[:, place : place + 1].astype(dtype) * right[place : place + 1].astype(dtype)
    return total


class Text:
    """The keys, values and queries of a text, by position; a token's row must come to the same wherever it stands."""

    def __init__(self, length, heads=4, kv_heads=2, size=16, size_v=None, dtype=torch.float16, seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(shape, generator=generator).to(dtype).to(DEVICE)

        self.queries = normal(heads, length, size)
        self.keys = normal(kv_heads, length, size)
        self.values = normal(kv_heads, length, size_v or size)
        self.scaling = 1 / math.sqrt(size)
        self.generator = generator

    def arguments(self, start, nodes, capacity=None, padding=0):
        """A step behind `start` tokens of text; for each of its rows its parent, and the position it stands for.

        A row that stands for no position, -1, is another token, which the text does not have.
        """
        rows, capacity = len(nodes), capacity or start + len(nodes) + 3
        length = self.keys.shape[1]
        among = torch.zeros(rows, rows, dtype=torch.bool)
        queries = torch.empty_like(self.queries[:, :1]).repeat(1, rows, 1)
        buffers = []
        for states in (self.keys, self.values):
            buffer = torch.full((states.shape[0], capacity, states.shape[2]), torch.nan, dtype=states.dtype)
            buffer = buffer.to(DEVICE)
            buffer[:, padding:start] = states[:, padding:start]
            buffers.append(buffer)
        for row, (parent, position) in enumerate(nodes):
            if parent >= 0:
                among[row] = among[parent]
            among[row, row] = True
            source = position if position >= 0 else int(torch.randint(length, (), generator=self.generator))
            sign = 1 if position >= 0 else -1
            queries[:, row] = sign * self.queries[:, source]
            for buffer, states in zip(buffers, (self.keys, self.values), strict=True):
                buffer[:, start + row] = sign * states[:, source]
        earliest = torch.full((rows,), padding)
        there = [each.to(DEVICE) for each in (torch.tensor(start), earliest, among)]
        return [queries, *buffers, *there, self.scaling]

    def attend(self, start, nodes, **others):
        queries, keys, values, before, earliest, among, scaling = self.arguments(start, nodes, **others)
        return ordered_attention(queries, keys, values, before, earliest, as_paths(among), scaling)

    def token(self, position, rows=4, **others):
        """What the token at a position comes to behind text alone; other rows are padding, or others' drafts."""
        return self.attend(position, [(-1, position), *[(0, -1)] * (rows - 1)], **others)[0]


def chain(start, length):
    return [(row - 1, start + row) for row in range(length)]


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 8), (torch.float16, 128), (torch.bfloat16, 80)])
@pytest.mark.parametrize("group", [1, 4, 7])
def test_it_is_attention(interpreted, dtype, size, group):
    text = Text(120, heads=2 * group, kv_heads=2, size=size, dtype=dtype)
    arguments = text.arguments(70, [(-1, 70), (0, 71), (0, -1), (1, 72), (2, -1), (0, -1)], padding=5)
    queries, keys, values, start, earliest, among, scaling = arguments
    result = ordered_attention(queries, keys, values, start, earliest, as_paths(among), scaling)
    expected = tree_attention_reference(*arguments)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype) and result.is_contiguous()
    torch.testing.assert_close(result, expected, atol=CLOSE[dtype], rtol=CLOSE[dtype])


@pytest.mark.parametrize("start", [0, 1, BLOCK - 1, BLOCK, CHUNK - 3, CHUNK, CHUNK + 1, 2 * CHUNK + 40])
def test_it_is_attention_behind_texts_of_every_length(interpreted, start):
    text = Text(start + 12, size_v=24)
    arguments = text.arguments(start, [*chain(start, 5), (1, -1), (5, -1), (0, -1)])
    queries, keys, values, before, earliest, among, scaling = arguments
    result = ordered_attention(queries, keys, values, before, earliest, as_paths(among), scaling)
    torch.testing.assert_close(result, tree_attention_reference(*arguments), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("start", "dtype"),
    [
        *((start, torch.float16) for start in (0, 3, BLOCK - 2, BLOCK, CHUNK - 4, CHUNK - BLOCK, CHUNK)),
        *((2 * CHUNK + 30, dtype) for dtype in CLOSE),
    ],
)
def test_a_draft_token_comes_to_the_same_as_behind_text(interpreted, start, dtype):
    text = Text(start + 9, dtype=dtype)
    # the text's own tokens behind each other, at slots that are not in order, among others
    nodes = [(-1, start), (0, -1), (0, start + 1), (1, -1), (2, start + 2), (2, -1), (4, start + 3), (6, start + 4)]
    drafted = text.attend(start, nodes, padding=min(start, 2))
    for row, (_, position) in enumerate(nodes):
        if position >= 0:
            alone = text.token(position, padding=min(start, 2))
            assert torch.equal(alone, drafted[row]), position - start


def test_a_long_draft_comes_to_the_same_across_blocks_and_chunks(interpreted):
    text = Text(CHUNK + 60)
    start = CHUNK - 20
    drafted = text.attend(start, chain(start, 64), capacity=2 * CHUNK)
    for row in (0, 19, 20, 52, 63):
        assert torch.equal(text.token(start + row, capacity=4 * CHUNK + 7), drafted[row])


def test_what_a_row_comes_to_depends_on_no_other_row(interpreted):
    text = Text(CHUNK + 70)
    many = text.attend(CHUNK + 9, [(-1, CHUNK + 9), *[(0, -1)] * 40])
    assert torch.equal(many[0], text.attend(CHUNK + 9, [(-1, CHUNK + 9)])[0])


def test_paths_are_a_rows_ancestors_in_order(interpreted):
    among = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]], dtype=torch.bool, device=DEVICE)
    assert as_paths(among).tolist() == [[1, 0, 0, 0, 0], [2, 0, 1, 0, 0], [2, 0, 2, 0, 0], [3, 0, 2, 3, 0]]


@pytest.mark.parametrize("capability", [80, 89, 90, 120])
@pytest.mark.parametrize(("dtype", "size", "group"), [("fp16", 128, 1), ("bf16", 80, 4), ("fp16", 64, 8)])
def test_both_kernels_are_compiled_to_the_same_sums(monkeypatch, tmp_path, dtype, size, group, capability):
    """That needs no GPU. Of other instructions, or with columns shared otherwise, sums would have another order."""
    monkeypatch.setattr(triton.knobs.cache, "dir", str(tmp_path))
    products, sums = [], []
    text_rows, options = module.settings(torch.device("cpu"), torch.float16, group)
    for kernel, rows, stages in ((module._attend_text, text_rows, 3), (module._attend_path, MOST_SHARING, 1)):
        types = dict.fromkeys(("queries", "keys", "values"), f"*{dtype}") | {"scaling": "fp32", "paths": "*i32"}
        types |= {"parts": "*fp32", "sums": "*fp32", "start": "*i64", "earliest": "*i64"}
        padded = module.padded_size(size)
        constants = {"GROUP": group, "SIZE": size, "SIZE_V": size, "PADDED": padded, "PADDED_V": padded}
        constants |= {"ROWS": rows, "BLOCK": BLOCK, "CHUNK": CHUNK}
        aligned = {
            "queries",
            "keys",
            "values",
            "parts",
            "sums",
            *(name for name in kernel.arg_names if "_" in name and name.islower()),
        }
        asm = compiled(kernel, types, constants, aligned, capability, num_stages=stages, **options).asm
        assert "fma.rn" not in asm["ptx"]
        code = asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (#ttg.*)$", code, re.MULTILINE))
        products.append([layouts[each] for each in re.findall(r"tt.dot .*-> tensor<\w+, (#\w+)>", code)])
        sums.append([layouts[each] for each in re.findall(rf"\(tensor<\d+x{BLOCK}xf32, (#\w+)>\) -> tensor", code)])
    assert products[0] == products[1] and len(products[0]) == 2 and "versionMajor = 2" in products[0][0]
    assert sums[0] == sums[1] and len(sums[0]) == 2
