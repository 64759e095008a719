"""The kernels of tree attention, in Triton's interpreter and on a GPU where there is one, against plain PyTorch."""

import math

import pytest
import torch

from hdraft.decoding.graphed import tree_attention as module
from hdraft.decoding.graphed.tree_attention import tree_attention, tree_attention_reference

pytest.importorskip("triton", reason="it comes with torch for GPUs")
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
def test_every_head_size_and_number_format(interpreted, size, dtype):
    check(step(heads=2, kv_heads=1, size=size, dtype=dtype))
