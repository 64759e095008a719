"""The forward pass of a Llama-shaped model over a static step, in nine kernels a layer besides its matrix products.

transformers' modules take some thirty a layer, each of which waits for the one before: at a batch of one they cost a
third of a step. The weights and the rotary frequencies are the model's own, and each result is rounded where it rounds:

    norm | q k v | rotate, write to the cache | tree attention | o | residual, norm | gate up | silu, times | down
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hdraft.decoding.graphed.static_cache import StaticCache, StaticLayer
from hdraft.decoding.models.walking import modules_of, parameters_of

Views = Mapping[str, tuple[Tensor, Tensor]]
"""For each layer type, or "" where there is one: `earliest`, int64[rows], and `among`, bool[rows, rows], what rows may
look at, see `padded_rows`."""

FAMILIES = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"})
"""Models whose layers are norm, attention, norm, gated SiLU; the last norms each head's queries and keys too."""

MOST_SHARING = 16
"""The most query heads that may share keys where attention is `ordered`."""

DEVICES = {"cuda"}
"""Devices that Triton's kernels run on."""


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether the pass can be run here: a family, weights and a device that it is written for, and nobody's hooks."""
    if type(model).__name__ not in FAMILIES or model.device.type not in DEVICES or find_spec("triton") is None:
        return False
    modules = modules_of(model)
    if not all(type(module).__module__.startswith(("transformers.", "torch.")) for module in modules):
        return False  # a part of its own, under a name that is known
    if any(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module) for module in modules):
        return False
    products = [module for name, module in model.named_modules() if name.endswith("_proj") or name == "lm_head"]
    plain = all(type(product) is nn.Linear for product in products)  # neither quantized nor adapted
    dtypes = {parameter.dtype for parameter in parameters_of(model)}
    one_format = len(dtypes) == 1 and dtypes <= {torch.float16, torch.bfloat16, torch.float32}
    return plain and one_format and not model.training and model.config.hidden_act in ("silu", "swish")


def fused_forward(
    model: PreTrainedModel,
    cache: StaticCache,
    ids: Tensor,
    positions: Tensor,
    views: Views,
    asked: Tensor | None = None,
    ordered: bool = False,
) -> Tensor:
    """The logits of a step's rows; their keys and values are written to the slots from each layout's `start` on.

    Args:
        model: one that `can_fuse`.
        cache: holds the text before the step.
        ids, positions: int64[rows].
        views: what rows may look at.
        asked: int64[n], the rows whose logits are asked for; None for all.
        ordered: whether attention is summed in the order of the text, see `ordered_attention`.

    Returns:
        float[n, vocabulary].
    """
    from hdraft.decoding.graphed.kernels import rms_norm, rotate_and_store, silu_times
    from hdraft.decoding.graphed.ordered_attention import as_paths, ordered_attention
    from hdraft.decoding.graphed.tree_attention import as_bits, tree_attention

    decoder: Any = model.model
    attend, seen_by = (ordered_attention, as_paths) if ordered else (tree_attention, as_bits)
    views = {name: (earliest, seen_by(among)) for name, (earliest, among) in views.items()}
    states: Tensor = decoder.embed_tokens(ids)
    cosines, sines = decoder.rotary_emb(states[None], positions[None])
    rotation = cosines[0].contiguous(), sines[0].contiguous()
    normed, total = rms_norm(states, *_norm(decoder.layers[0].input_layernorm))
    following = [layer.input_layernorm for layer in decoder.layers[1:]] + [decoder.norm]
    for index, (layer, after) in enumerate(zip(decoder.layers, following, strict=True)):
        attention, mlp, slots = layer.self_attn, layer.mlp, cache.layers[index]
        assert isinstance(slots, StaticLayer)
        earliest, among = views[""] if "" in views else views[model.config.layer_types[index]]
        projected = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
        norms, epsilon = None, 0.0
        if hasattr(attention, "q_norm"):
            norms, epsilon = (attention.q_norm.weight, attention.k_norm.weight), attention.q_norm.variance_epsilon
        keys, values, start = slots.keys[0], slots.values[0], slots.layout.start
        queries = rotate_and_store(projected, rotation, norms, epsilon, keys, values, start).transpose(0, 1)
        looked_up = attend(queries, keys, values, start, earliest, among, attention.scaling)
        normed, total = rms_norm(attention.o_proj(looked_up), *_norm(layer.post_attention_layernorm), total)
        activated = silu_times(mlp.gate_proj(normed), mlp.up_proj(normed))
        normed, total = rms_norm(mlp.down_proj(activated), *_norm(after), total)
    logits: Tensor = model.lm_head(normed if asked is None else normed[asked])
    return logits


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon
