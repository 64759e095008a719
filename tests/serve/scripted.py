"""A model that writes what it is told to: its next token depends on the position alone."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def scripted(vocab_size: int, prompt_tokens: int, script: list[int], eos: int) -> GPT2LMHeadModel:
    """A GPT-2 that writes `script` behind a prompt of so many tokens, and then ends."""
    places = prompt_tokens + len(script) + 1
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=places,
        n_embd=places + places % 2,
        n_layer=1,
        n_head=1,
        tie_word_embeddings=False,
        bos_token_id=eos,
        eos_token_id=eos,
    )
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.transformer.wpe.weight[range(places), range(places)] = 1
        for place, token in enumerate([*script, eos], prompt_tokens - 1):
            model.lm_head.weight[token, place] = 10
    return model
