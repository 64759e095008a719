"""PEFT's adapters: those that change weights decode as the model does; those that stand in the text are refused.

`model.generate` of a `PeftModel` calls that of the model inside, with its adapters switched on, and that is the model
that decodes. A soft prompt or a prefix, though, is put before the text by `prepare_inputs_for_generation`, for one call
of `forward` after another; and an activated LoRA counts back from the end of each call's tokens.
"""

from typing import Any, cast

from transformers import PreTrainedModel

from hdraft.decoding.models.support import UnsupportedError
from hdraft.decoding.models.walking import modules_of

PER_REQUEST = ("adapter_names", "alora_offsets")
"""Arguments of a `PeftModel`'s `generate`, which holds them only while it runs."""

_WEIGHTS = frozenset(("lora", "adalora", "loha", "lokr", "oft", "boft", "vera", "ia3", "hra", "ln_tuning"))
"""PEFT's tuners that compute each token by itself."""


def base_model(model: Any) -> PreTrainedModel:
    """The model inside of a `PeftModel`, or the model itself."""
    inside = model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model
    return cast(PreTrainedModel, inside)


def check_adapters(model: Any) -> None:
    """Refuse adapters that stand in the text.

    Args:
        model: a `PeftModel`, the model inside of one while its `generate` runs, or one without adapters.

    Raises:
        UnsupportedError: its message names the adapter and the way out.
    """
    prepare = vars(model).get("prepare_inputs_for_generation")  # a PeftModel's own, while it generates
    wrapper = model if hasattr(model, "active_peft_config") else getattr(prepare, "__self__", None)
    config = getattr(wrapper, "active_peft_config", None)
    if config is not None and config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise UnsupportedError(f"{kind} puts a learnt prompt before the text, which hdraft cannot: use model.generate")
    if any("alora" in type(variant).__name__.lower() for variant in _variants(model)):
        raise UnsupportedError("an activated LoRA works on the last tokens of a pass only: use model.generate for it")


def only_weights(model: PreTrainedModel) -> bool:
    """Whether all adapters compute each token by itself, so that drafts are verified as without them."""
    return all(
        name[2] in _WEIGHTS
        for module in modules_of(model)
        if (name := type(module).__module__.split("."))[:2] == ["peft", "tuners"] and len(name) > 3
    )


def _variants(model: PreTrainedModel) -> list[Any]:
    variants = (vars(module).get("lora_variant") or {} for module in modules_of(model))
    return [variant for own in variants for variant in own.values()]
