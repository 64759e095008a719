"""OpenAI's adjustments of logits that `generate` has no option for."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Adjustments(LogitsProcessor):
    """Lowers tokens that the answer holds already, and adds a number to some.

    Args:
        prompt_tokens: where the answer begins.
        frequency, presence: what a token is lowered by, for each time it is in the answer, and for being there at all.
        biases: what is added to single tokens.
    """

    def __init__(self, prompt_tokens: int, frequency: float, presence: float, biases: Mapping[int, float]) -> None:
        self.prompt_tokens = prompt_tokens
        self.frequency = frequency
        self.presence = presence
        self.ids = torch.tensor(list(biases), dtype=torch.int64)
        self.values = torch.tensor(list(biases.values()), dtype=torch.float32)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores are float[1, vocabulary]."""
        scores = scores.clone()
        if self.frequency or self.presence:
            tokens, counts = torch.unique(input_ids[0, self.prompt_tokens :], return_counts=True)
            scores[0, tokens] -= self.frequency * counts + self.presence
        if len(self.ids):
            scores[0, self.ids.to(scores.device)] += self.values.to(scores)
        return scores
