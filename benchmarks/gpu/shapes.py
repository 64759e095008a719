"""Models of published shapes with random weights, and the bytes that a step of them cannot do without."""

from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    Lfm2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3_5TextConfig,
    Qwen3Config,
)

VOCABULARY = 32000
"""Ids of Llama 2's tokenizer, of which the recorded tokens are; a model may know more."""

_LLAMA_2: dict[str, Any] = {"vocab_size": VOCABULARY, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}

SHAPES: dict[str, PretrainedConfig] = {
    "llama-2-7b": LlamaConfig(
        **_LLAMA_2, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
    "llama-2-13b": LlamaConfig(
        **_LLAMA_2, hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40
    ),
    "llama-3-8b": LlamaConfig(
        vocab_size=128256,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    ),
    "qwen3-8b": Qwen3Config(
        vocab_size=151936,
        max_position_embeddings=40960,
        rms_norm_eps=1e-6,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ),
    "lfm2-350m": Lfm2Config(
        vocab_size=65536,
        hidden_size=1024,
        intermediate_size=6656,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        full_attn_idxs=[2, 5, 8, 10, 12, 14],
        conv_L_cache=3,
    ),
    "qwen3.5-0.8b": Qwen3_5TextConfig(
        vocab_size=248320,
        hidden_size=1024,
        intermediate_size=3584,
        num_hidden_layers=24,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=256,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        tie_word_embeddings=True,
    ),
    "tiny": LlamaConfig(
        **_LLAMA_2, hidden_size=64, intermediate_size=172, num_hidden_layers=2, num_attention_heads=4
    ),
    "tiny-grouped": Qwen3Config(
        vocab_size=40000,
        max_position_embeddings=8192,
        hidden_size=64,
        intermediate_size=172,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
    ),
    "lfm2-tiny": Lfm2Config(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        full_attn_idxs=[1],
    ),
}
"""As published; the tiny ones are no model's, and are there to try the scripts on a CPU."""


def random_model(shape: str, dtype: str, device: str) -> PreTrainedModel:
    """A model of that shape, its weights drawn on the device; its logits are finite.

    Raises:
        RuntimeError: they are not, or there is no memory for it.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = cast(Any, AutoModelForCausalLM).from_config(SHAPES[shape], dtype=getattr(torch, dtype))
    model.eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # it goes on for as long as it is asked to
    model.generation_config.pad_token_id = 0
    logits = model(torch.arange(64, device=device)[None]).logits
    if not bool(logits.isfinite().all()):
        raise RuntimeError("the random model's logits are not finite: its times would not be those of a real one")
    return cast(PreTrainedModel, model)


def bytes_read(model: PreTrainedModel, cached: int) -> tuple[int, int]:
    """The bytes that a step must read: of weights (all but the embeddings, of which a few rows do), and of cache."""
    config = model.config
    weights = sum(
        weight.numel() * weight.element_size()
        for name, weight in model.named_parameters()
        if "embed_tokens" not in name
    )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return weights, 2 * config.num_hidden_layers * config.num_key_value_heads * head * cached * model.dtype.itemsize
