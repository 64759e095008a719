"""How far logits may be from what they should be."""

import math

import pytest
import torch

from hdraft.decoding.models.support import apart, tolerance


def test_the_row_that_is_furthest_counts():
    expected = torch.randn(5, 4000, generator=torch.Generator().manual_seed(0))
    logits = expected.clone()
    logits[3] += 0.5
    assert apart(logits, expected) == pytest.approx(0.5, rel=0.05)
    assert apart(expected, expected) == 0


def test_rounding_in_a_large_vocabulary_is_told_from_other_logits():
    """Of 8 million logits one is five times as far as they are on average: for that, none is wrong."""
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(16, 128256, generator=generator)
    rounded = expected + 0.1 * torch.randn(expected.shape, generator=generator)
    assert (rounded - expected).abs().max() > tolerance(torch.bfloat16)
    assert apart(rounded, expected) < tolerance(torch.bfloat16)
    assert apart(rounded, expected) > tolerance(torch.float32)
    others = torch.randn(expected.shape, generator=generator)
    assert apart(others, expected) == pytest.approx(math.sqrt(2), rel=0.05)


def test_tokens_that_are_ruled_out_must_be_the_same():
    expected = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    expected[:, 7] = float("-inf")
    assert apart(expected + 1e-4, expected) < 1e-3
    assert apart(expected.masked_fill(expected == float("-inf"), 0.0), expected) == math.inf


def test_what_is_no_number_is_not_close():
    expected = torch.randn(2, 50)
    assert not apart(torch.full_like(expected, torch.nan), expected) < tolerance(torch.bfloat16)
