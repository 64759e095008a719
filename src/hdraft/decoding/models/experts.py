"""The kernels that a mixture of experts decodes with: those of `generate`, as far as rows and memory allow.

Off the CPU, `generate` reads a prompt with one kernel and decodes with another ("grouped_mm" and "batched_mm"), and the
two round differently. The second copies the weights of each row's experts. That is cheap for the one row that
`generate` decodes at a time, and for a few; a tree of many rows would copy more than the layer has.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hdraft.decoding.models.walking import modules_of
from hdraft.drafting.drafter import UNLIMITED

_CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_k")  # of a configuration


def decoding_kernels(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Within it, the model runs its experts with the kernels that `generate` decodes with."""
    context: AbstractContextManager[None] = getattr(model, "_optimize_model_for_decode", nullcontext)()
    return context


def most_rows(model: PreTrainedModel) -> int:
    """The most rows of a step that is to run within `decoding_kernels`; without a limit where that changes no kernel.

    For more rows than one, the copies must be no more than all experts of a layer, and take no more than half of the
    memory that is free.
    """
    kernels: Any = getattr(model, "get_experts_implementation", dict)
    usual = kernels()
    with decoding_kernels(model):
        if kernels() == usual:
            return UNLIMITED
    config = model.config.get_text_config(decoder=True)
    chosen = next((value for name in _CHOSEN if (value := getattr(config, name, None))), UNLIMITED)
    most = UNLIMITED
    for module in modules_of(model):
        weights = [weight for weight in module.parameters(recurse=False) if weight.ndim == 3]
        if weights and hasattr(module, "num_experts"):
            experts = len(weights[0])
            copied = chosen * sum(weight.nbytes for weight in weights) // experts
            most = min(most, experts // chosen, _free(weights[0]) // 2 // copied)
    return max(1, most)


def _free(weight: nn.Parameter) -> int:
    """Bytes that can still be taken on the weight's device, as far as torch can tell."""
    if weight.device.type != "cuda":
        return 1 << 62
    free, _ = torch.cuda.mem_get_info(weight.device)
    return free + torch.cuda.memory_reserved(weight.device) - torch.cuda.memory_allocated(weight.device)
