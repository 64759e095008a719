"""Small random models of every family that hdraft is tested on, sharp enough that their text is no accident."""

import functools
import inspect
import os
from unittest import SkipTest

import tokenizers
import torch
import transformers
from packaging.version import Version
from transformers import PreTrainedModel

DEVICE = os.environ.get("HDRAFT_DEVICE", "cpu")  # where the models and prompts of test_lossless.py are
VOCABULARY = 160
PROMPT, NEW = 24, 72
WINDOW = 17  # shorter than the prompt
SWITCH = 60  # a position in the middle of the text

DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 9.0],
    "original_max_position_embeddings": SWITCH,
}
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": None,
}
MOE = {"num_local_experts": 4, "num_experts_per_tok": 2}
GPT = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
}
FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": None,
}

# name: (class prefix, configuration)
FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("Llama", SMALL),
    "llama-dynamic-ntk": ("Llama", SMALL | {"max_position_embeddings": SWITCH, "rope_parameters": DYNAMIC}),
    "llama-longrope": ("Llama", SMALL | {"max_position_embeddings": 512, "rope_parameters": LONGROPE}),
    "mistral-sliding": ("Mistral", SMALL | {"sliding_window": WINDOW}),
    "mixtral": ("Mixtral", SMALL | MOE),
    "mixtral-sliding": ("Mixtral", SMALL | MOE | {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2", SMALL),
    "qwen2-sliding": (
        "Qwen2",
        SMALL | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", SMALL | {"head_dim": 16}),
    "gemma": ("Gemma", SMALL | {"head_dim": 16}),
    "gemma2": ("Gemma2", SMALL | {"head_dim": 16, "sliding_window": WINDOW, "query_pre_attn_scalar": 16}),
    "gemma3": (
        "Gemma3",
        SMALL
        | {"head_dim": 16, "sliding_window": WINDOW, "num_hidden_layers": 3, "query_pre_attn_scalar": 16}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi": ("Phi", SMALL),
    "phi3": ("Phi3", SMALL),
    "phi3-sliding": ("Phi3", SMALL | {"sliding_window": WINDOW}),
    "phi3-longrope": (
        "Phi3",
        SMALL
        | {"max_position_embeddings": 512, "original_max_position_embeddings": SWITCH, "rope_parameters": LONGROPE},
    ),
    "gpt2": ("GPT2", GPT),
    "gpt-neox": ("GPTNeoX", SMALL | {"rotary_pct": 0.5}),
    "gptj": ("GPTJ", GPT | {"rotary_dim": 8}),
    "opt": (
        "OPT",
        {key: value for key, value in SMALL.items() if key != "intermediate_size"}
        | {"ffn_dim": 96, "word_embed_proj_dim": 64, "max_position_embeddings": 128},
    ),
    "falcon-rotary": ("Falcon", FALCON | {"multi_query": True}),
    "falcon-rotary-new": ("Falcon", FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon-alibi": ("Falcon", FALCON | {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}),
    "stablelm": ("StableLm", SMALL),
    "starcoder2": ("Starcoder2", SMALL),
    "starcoder2-sliding": ("Starcoder2", SMALL | {"sliding_window": WINDOW}),
    "olmo2": ("Olmo2", SMALL),
    "cohere": ("Cohere", SMALL | {"logit_scale": 1.0}),
    "granite": ("Granite", SMALL | {"attention_multiplier": 0.25, "logits_scaling": 2.0, "residual_multiplier": 0.5}),
    "deepseek-v3": (
        "DeepseekV3",
        SMALL
        | {
            "num_key_value_heads": 4,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 16,
        }
        | {"v_head_dim": 12, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "first_k_dense_replace": 1},
    ),
    "gpt-oss": (
        "GptOss",
        SMALL
        | MOE
        | {"head_dim": 16, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "bloom": ("Bloom", GPT | {"hidden_size": 64}),
    "mpt": ("Mpt", {"vocab_size": VOCABULARY, "d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128}),
}
CHAINS = {"bloom", "mpt", "falcon-alibi", "gpt-neo"}
EAGER_ONLY = {"bloom", "gemma2", "gpt-neo", "gpt-oss", "gptj", "mamba2", "mpt"}  # transformers has no SDPA for them
TEXT: dict[str, tuple[str, dict]] = {
    "llama-text": ("Llama", SMALL | {"vocab_size": 320}),
    "mistral-text": ("Mistral", SMALL | {"vocab_size": 320, "sliding_window": WINDOW}),
    "gpt2-text": ("GPT2", GPT | {"vocab_size": 320}),
    "lfm2-text": ("Lfm2", SMALL | {"vocab_size": 320, "layer_types": ["conv", "full_attention"]}),
}
UNLISTED: dict[str, tuple[str, dict]] = {  # tried by the probe
    "cohere2": ("Cohere2", SMALL | {"sliding_window": WINDOW, "logit_scale": 1.0}),
    "olmo": ("Olmo", SMALL),
    "glm4": ("Glm4", SMALL | {"head_dim": 16}),
    "llama4": (
        "Llama4",
        SMALL
        | MOE
        | {"head_dim": 16, "intermediate_size_mlp": 96, "attention_chunk_size": WINDOW}
        | {
            "layer_types": ["chunked_attention", "full_attention"],
            "no_rope_layers": [1, 0],
            "interleave_moe_layer_step": 2,
        },
    ),
    "gpt-neo": (
        "GPTNeo",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 128}
        | {"attention_types": [[["global", "local"], 1]], "window_size": WINDOW}
        | {"tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": None},
    ),
}


ENDS = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": None}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_hidden_layers": 3,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 16,
}
SPARSE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
HYBRIDS: dict[str, tuple[str, dict]] = {  # states beside keys and values: chains, as a trial tells
    "qwen3-next": ("Qwen3Next", SMALL | LINEAR | SPARSE),
    "qwen3.5": ("Qwen3_5", SMALL | LINEAR),
    "qwen3.5-moe": ("Qwen3_5Moe", SMALL | LINEAR | SPARSE),
    "lara-mini": (
        "LaraMini",
        SMALL
        | LINEAR
        | SPARSE
        | {"sliding_window": WINDOW}
        | {"layer_types": ["linear_attention", "sliding_attention", "full_attention"]},
    ),
    "olmo-hybrid": ("OlmoHybrid", SMALL | LINEAR | {"num_key_value_heads": 4}),
    "kimi-linear": (
        "KimiLinear",
        SMALL
        | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
        | {"v_head_dim": 12}
        | {"linear_head_dim": 16, "linear_num_heads": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "lfm2": ("Lfm2", SMALL | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]}),
    "lfm2-moe": (
        "Lfm2Moe",
        SMALL
        | {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_experts": 4}
        | {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_dense_layers": 1},
    ),
    "lfm3": (
        "Lfm3",
        SMALL
        | {"num_hidden_layers": 3, "layer_types": ["conv", "sliding_attention", "full_attention"]}
        | {"sliding_window": WINDOW, "head_dim": 16},
    ),
    "mamba2": (
        "Mamba2",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 16}
        | {"state_size": 8, "n_groups": 2, "chunk_size": 8, "tie_word_embeddings": False}
        | ENDS,
    ),
    "bamba": (
        "Bamba",
        SMALL | MAMBA | {"num_hidden_layers": 3, "attn_layer_indices": [1], "num_key_value_heads": 2},
    ),
    "falcon-h1": ("FalconH1", SMALL | MAMBA | {"mamba_d_ssm": 128}),
    "granite-hybrid": (
        "GraniteMoeHybrid",
        SMALL
        | MAMBA
        | MOE
        | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"shared_intermediate_size": 32, "position_embedding_type": "rope"},
    ),
    "nemotron-h": (
        "NemotronH",
        SMALL
        | {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"], "num_hidden_layers": 4}
        | {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "chunk_size": 8}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16}
        | {"moe_shared_expert_intermediate_size": 32},
    ),
    "zamba2": (
        "Zamba2",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4}
        | {"layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"], "mamba_d_state": 8}
        | {"n_mamba_heads": 8, "mamba_ngroups": 2, "chunk_size": 8, "num_attention_heads": 4, "num_mem_blocks": 1}
        | {"adapter_rank": 8, "tie_word_embeddings": False}
        | ENDS,
    ),
    "inkling": (
        "Inkling",
        {key: value for key, value in SMALL.items() if key != "tie_word_embeddings"}
        | {"layer_types": ["hybrid_sliding", "hybrid"], "sliding_window_size": WINDOW, "head_dim": 16}
        | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16, "d_rel": 8, "rel_extent": 64}
        | {"mlp_layer_types": ["dense", "sparse"], "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "n_shared_experts": 1, "logits_mup_width_multiplier": 1.0},
    ),
    "bailing-hybrid": (
        "BailingHybrid",
        SMALL
        | {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"num_key_value_heads": 4, "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16}
        | {"v_head_dim": 12}
        | {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
        | {"moe_intermediate_size": 32, "mlp_layer_types": ["dense", "sparse", "sparse"]},
    ),
    "zaya": (
        "Zaya",
        SMALL | {"head_dim": 16, "num_experts": 4, "moe_intermediate_size": 32, "router_hidden_size": 16},
    ),
}


def attentions(name: str) -> tuple[str, ...]:
    return ("eager",) if name in EAGER_ONLY else ("eager", "sdpa")


def why_not(name: str) -> str | None:
    """Why `model.generate` is no yardstick for a family here; None where it is."""
    if name == "phi3-longrope" and Version(transformers.__version__) < Version("5.20"):
        return "before transformers 5.20, generate loses the text at the switch"
    return None


@functools.cache
def build(name: str, attention: str | None = None) -> PreTrainedModel:
    if (reason := why_not(name)) is not None:
        raise SkipTest(reason)  # pytest skips; benchmarks/lossless.py, which does without it, asks first
    prefix, options = (FAMILIES | UNLISTED | TEXT | HYBRIDS)[name]
    config_class = getattr(transformers, f"{prefix}TextConfig", None) or getattr(transformers, f"{prefix}Config")
    model_class = getattr(transformers, f"{prefix}ForCausalLM", None) or getattr(transformers, f"{prefix}LMHeadModel")
    config = config_class(**options)
    config._attn_implementation = attention or attentions(name)[-1]
    torch.manual_seed(sum(map(ord, name)))
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:  # projections that keep or raise the spread of their input
                parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.normal_(0, 1)
        model.get_output_embeddings().weight.normal_(0, 0.4)
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight or name in CHAINS
    return model.to(DEVICE)


@functools.cache
def build_tokenizer(kind: str = "text"):
    """320 entries of plain text; every byte ("bytes"); or words marked with ▁, with bytes to fall back to ("words")."""
    corpus = [inspect.getsource(inspect)] if kind == "text" else ["Zwölf Boxkämpfer jagen Viktor, und das oft.\n"] * 9
    if kind == "words":
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        steps = (tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse())
        tokenizer.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    else:
        tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
        tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = tokenizers.decoders.ByteLevel()
        alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else []
        trainer = tokenizers.trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
