"""The growing cache holds what transformers' dynamic cache would hold for the accepted text."""

import pytest
import torch
import transformers
from architectures import build
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from hdraft.decoding.cache import GrowingCache, UnknownLayerError
from hdraft.decoding.growing_layer import GrowingLayer

HEADS, SIZE = 2, 3


def states(n, generator):
    return torch.randn(2, 1, HEADS, n, SIZE, generator=generator)


@pytest.mark.parametrize("window", [None, 2, 5, 40])
@pytest.mark.parametrize("prompt", [1, 4, 5, 60, 700])
def test_against_the_dynamic_layer(window, prompt):
    generator = torch.Generator().manual_seed(prompt)
    layer = GrowingLayer(window)
    reference = DynamicLayer() if window is None else DynamicSlidingWindowLayer(window)
    first = states(prompt, generator)
    for ours, theirs in zip(layer.update(*first), reference.update(*first), strict=True):
        assert torch.equal(ours, theirs)
    for _ in range(300):
        n = int(torch.randint(0, 12, (), generator=generator))
        new = states(1 + n, generator)
        kept = torch.randperm(n, generator=generator)[: n // 2].sort().values
        assert layer.get_seq_length() == reference.get_seq_length()
        assert layer.get_mask_sizes(1 + n) == reference.get_mask_sizes(1 + n)
        length = layer.length
        keys, values = layer.update(*new)
        before = reference.keys.shape[-2] if reference.is_initialized else 0
        assert torch.equal(keys[:, :, :before], reference.keys)
        assert torch.equal(keys[:, :, before:], new[0]) and torch.equal(values[:, :, before:], new[1])
        path = kept if len(kept) and kept[-1] != len(kept) - 1 else kept.tolist()
        layer.keep(length + 1, path, len(kept))
        reference.update(*new[..., [0, *(1 + kept).tolist()], :])
        assert torch.equal(layer.keys, reference.keys) and torch.equal(layer.values, reference.values)
    if window is not None:
        assert layer.key_buffer.shape[-2] < 2 * (window + 12) + 1400 + prompt // 4


def test_growth_is_amortised():
    layer, buffers = GrowingLayer(), set()
    for _ in range(3000):
        layer.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        buffers.add(layer.key_buffer.data_ptr())
        assert layer.key_buffer.shape[-2] <= 1.25 * layer.length + 256
    assert layer.length == 3000 and len(buffers) < 12


def test_a_long_prompt_leaves_a_sliding_layer():
    layer = GrowingLayer(window=16)
    layer.update(torch.zeros(1, 1, 5000, 1), torch.zeros(1, 1, 5000, 1))
    layer.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    assert layer.key_buffer.shape[-2] < 300


def test_dropping_and_resetting():
    layer = GrowingLayer(window=4)
    layer.update(torch.arange(9.0).view(1, 1, 9, 1), torch.zeros(1, 1, 9, 1))
    layer.crop(-2)
    assert layer.length == 7 and layer.keys.flatten().tolist() == [4, 5, 6]
    layer.update(torch.zeros(1, 1, 2000, 1), torch.zeros(1, 1, 2000, 1))
    layer.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
    with pytest.raises(ValueError, match="no longer cached"):
        layer.crop(-500)
    with pytest.raises(ValueError, match="crop\\(3\\)"):
        layer.crop(3)
    layer.reset()
    assert layer.length == 0 and layer.keys is None and layer.window == 4


def test_layers_of_a_model():
    cache = GrowingCache(build("gemma3").config)
    assert [layer.window for layer in cache.layers] == [17, None, 17]
    assert cache.is_sliding == [True, False, True] and cache.get_seq_length() == 0
    assert not cache.is_compileable


def test_unknown_layers_are_named():
    config = transformers.DeepseekV32Config(vocab_size=99, num_hidden_layers=2)
    with pytest.raises(UnknownLayerError, match="Indexed"):
        GrowingCache(config)


def test_cropping_more_than_there_is_leaves_nothing():
    layer = GrowingLayer()
    layer.update(torch.zeros(1, 1, 5, 1), torch.zeros(1, 1, 5, 1))
    layer.crop(-9)
    assert layer.length == 0 and layer.keys.shape[-2] == 0
