"""The likeliest tokens of logits, against torch's own."""

import numpy as np
import pytest
import torch

from hdraft.decoding.likeliest import likeliest
from hdraft.drafting.databases.candidates import WIDTH


@pytest.mark.parametrize("vocabulary", [3, 100, 1000, 1024, 2048, 50_257, 49_152])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_the_largest_with_their_log_probabilities(vocabulary: int, dtype: torch.dtype) -> None:
    logits = (torch.randn((5, vocabulary), generator=torch.Generator().manual_seed(vocabulary)) * 4).to(dtype)
    tokens, scores = (each.numpy() for each in likeliest(logits))
    values = logits.float().topk(min(WIDTH, vocabulary)).values
    assert tokens.shape == scores.shape == values.shape
    assert logits.float().gather(1, torch.from_numpy(tokens).long()).tolist() == values.tolist()
    assert all(len(set(row)) == len(row) for row in tokens.tolist())
    closeness = 1e-4 if dtype == torch.float32 else 0.1  # where blocks are level, any may count
    assert scores == pytest.approx((values - normaliser(logits.float())[:, None]).numpy(), abs=closeness)


def normaliser(logits: torch.Tensor) -> torch.Tensor:
    """The logarithm of the sum over the eight blocks of 128 tokens with the largest, or over all tokens."""
    rows = []
    for row in logits:
        blocks = sorted(row.split(128), key=lambda block: -float(block.max())) if len(row) % 128 == 0 else [row]
        rows.append(torch.cat(blocks[:WIDTH]).logsumexp(-1))
    return torch.stack(rows)


def test_a_row_that_rules_tokens_out_has_them_last_and_without_probability() -> None:
    logits = torch.full((1, 2048), -torch.inf)
    logits[0, 700], logits[0, 3] = 2.0, 1.0
    tokens, scores = (each.numpy() for each in likeliest(logits))
    assert tokens[0, :2].tolist() == [700, 3]
    assert np.all(np.isneginf(scores[0, 2:]))
