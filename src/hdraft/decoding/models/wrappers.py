"""Modules around a model, of which some hand `generate` on to the model in them, and some do not generate."""

from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from hdraft.decoding.logs import say_once
from hdraft.decoding.models.support import UnsupportedError


def unwrapped(model: nn.Module) -> PreTrainedModel:
    """The model that `model.generate` runs.

    Raises:
        UnsupportedError: there is none; the message says what to pass.
    """
    name = type(model).__name__
    generate: Any = getattr(model, "generate", None)
    if generate is None and not isinstance(model, PreTrainedModel):  # for which there is a better reason
        if isinstance(getattr(model, "module", None), nn.Module):
            raise UnsupportedError(f"{name} wraps the model and does not generate itself: pass model.module")
        raise UnsupportedError(f"{name} does not generate: load AutoModelForCausalLM")
    inner = cast(PreTrainedModel, getattr(generate, "__self__", model))
    if hasattr(model, "_orig_mod"):
        name = type(inner).__name__
        say_once(f"{name}: torch.compile(model) generates uncompiled, here and in generate; see model.compile()")
    return inner
