"""The target's most likely next tokens in each row of a step: its choice, and what a drafter may recycle."""

import torch
from torch import Tensor

from hdraft.drafting.databases.candidates import WIDTH

_BLOCK = 128


def most_likely(logits: Tensor) -> list[int]:
    """The most likely token of each row of float[n, vocabulary]; waits for the device."""
    # NumPy's argmax is some twenty times as fast as torch's on a CPU
    best = logits.float().numpy().argmax(-1) if logits.device.type == "cpu" else logits.argmax(-1)
    tokens: list[int] = best.tolist()
    return tokens


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest tokens of each row of float[n, vocabulary], on its device.

    torch looks for the largest of a row one by one. So the blocks of 128 tokens come first, by their largest, and then
    the tokens of the best blocks; a row's probabilities are normalised over these 1,024, which hold nearly all of them.

    Returns:
        int32[n, k], the likeliest first, and the logarithms of their probabilities, float32[n, k].
    """
    rows, vocabulary = logits.shape
    if vocabulary % _BLOCK or vocabulary < WIDTH * _BLOCK:
        values, tokens = logits.float().topk(min(WIDTH, vocabulary))
        return tokens.to(torch.int32), values - logits.float().logsumexp(-1, keepdim=True)
    blocks = logits.reshape(rows, -1, _BLOCK)
    best = blocks.amax(-1).topk(WIDTH).indices
    likely = blocks.gather(1, best[..., None].expand(-1, -1, _BLOCK)).flatten(1).float()
    values, places = likely.topk(WIDTH)
    tokens = best.gather(1, places // _BLOCK) * _BLOCK + places % _BLOCK
    return tokens.to(torch.int32), values - likely.logsumexp(-1, keepdim=True)
