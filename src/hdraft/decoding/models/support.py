"""Which drafts a model can verify: families tested, states that cannot branch, positions that no draft may pass.

Whether a model can verify a tree, or a single chain only, is known for the families in `TREES` and `CHAINS`; any other
is tried once, on the model itself (`probe.py`).
"""

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from hdraft.decoding.cache import UnknownLayerError, keeps_states
from hdraft.decoding.models.names import takes
from hdraft.decoding.models.walking import modules_of

Shape = Literal["tree", "chain"]

TREES = frozenset(
    (
        *("cohere", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "gpt_oss", "gptj"),
        *("granite", "llama", "mistral", "mixtral", "olmo2", "opt", "phi", "phi3", "qwen2", "qwen3", "stablelm"),
        "starcoder2",
    )
)
"""Model types that take a mask for the tree and a position for each node; all are in the tests."""

CHAINS = frozenset({"bloom", "mpt"})
"""Model types, also in the tests, that place their bias by cache slot (ALiBi): there siblings would be misplaced."""

IN_MODULES = frozenset({"recurrent_gemma"})
"""Model types that keep states in their modules, whatever their cache looks like."""

MASKED_ATTENTION = frozenset({"eager", "sdpa"})
"""Attention implementations that take any mask."""


class UnsupportedError(ValueError):
    """A model or an option that hdraft refuses: the message names the reason and the way out."""


class PositionLimit(NamedTuple):
    """A position that no draft may reach from before it."""

    positions: int
    switch: bool
    """Whether it is the switch of a longrope, beyond which drafts are sound again."""


def check_model(model: PreTrainedModel) -> None:
    """Refuse a model that keeps what rejected draft tokens cannot be taken out of.

    Raises:
        UnsupportedError: its message names the reason and the way out.
    """
    config = model.config.get_text_config(decoder=True)
    way_out = "use model.generate for it"
    if model.config.is_encoder_decoder:
        raise UnsupportedError(f"{type(model).__name__} is an encoder-decoder, hdraft drafts for decoders: {way_out}")
    if not model.can_generate():
        raise UnsupportedError(f"{type(model).__name__} has no language modelling head: load AutoModelForCausalLM")
    own = config.model_type in IN_MODULES or not cast(Any, model)._supports_default_dynamic_cache()
    state = "a state of its own" if own else None
    if state is None:
        if not hasattr(config, "num_hidden_layers"):
            raise UnsupportedError(f"{type(model).__name__} does not say how many layers it caches: {way_out}")
        try:
            if not keeps_states(config) and model._is_stateful:
                state = "a state beside its cache"
        except UnknownLayerError as error:
            state = f"a {error}, more than keys and values or known states"
    if state is not None:
        raise UnsupportedError(
            f"{type(model).__name__} keeps {state}, from which rejected draft tokens cannot be dropped: {way_out}"
        )


_PLACEHOLDER = re.compile(r"(image|video|audio|vision|speech)(_soft|_pad)?_token_(id|index)")


def placeholders(config: PretrainedConfig) -> list[int]:
    """The ids in a prompt that stand for pictures and sound, and are never written."""
    return [value for name, value in vars(config).items() if _PLACEHOLDER.fullmatch(name) and isinstance(value, int)]


def known_shape(model: PreTrainedModel) -> Shape | None:
    """The drafts that the model is known to verify: trees, or chains only. None: not known."""
    config = model.config
    if config.model_type in TREES | CHAINS:
        by_slot = config.model_type in CHAINS or getattr(config, "alibi", False)
        takes_both = takes(model, "attention_mask") and takes(model, "position_ids")
        slots_only = by_slot or not takes_masks(config) or not takes_both
        return "chain" if slots_only else "tree"
    return None


def takes_masks(config: PretrainedConfig) -> bool:
    """Whether attention follows the mask it is given, and no window of its own (GPT-Neo's counts cache slots)."""
    names = [name for name, value in vars(config).items() if "window" in name and value]
    own_window = any("sliding_window" not in name and name != "max_window_layers" for name in names)
    return config._attn_implementation in MASKED_ATTENTION and not own_window


def apart(logits: Tensor, expected: Tensor) -> float:
    """How far float[rows, vocabulary] are from what they should be: the row that is furthest, see `tolerance`.

    That is the root of its mean square difference, as a part of the spread of all that is expected. In right passes,
    too, single logits out of a hundred thousand differ by five times as much.
    """
    logits, expected = logits.float(), expected.float()
    possible = expected > _IMPOSSIBLE
    if not torch.equal(possible, logits > _IMPOSSIBLE):
        return float("inf")
    squares = (logits - expected).masked_fill(~possible, 0).square().sum(-1) / possible.sum(-1)
    return float(squares.max().sqrt()) / max(float(expected[possible].std()), 1e-12)


_IMPOSSIBLE = -1e4
"""Logits below are those of tokens that the model rules out."""


def tolerance(dtype: torch.dtype) -> float:
    """How far `apart` rounding may take logits; what has nothing to do with them is about 1.4 apart.

    SmolLM2-135M's of random tokens, by passes over 31 rows of a tree and over one, are 0.19 apart in bfloat16, 0.016 in
    float16, and 0.45 or more where one row has another parent, the step other positions, or the text another token.
    """
    return {torch.float16: 0.1, torch.bfloat16: 0.4}.get(dtype, 1e-3)


def input_device(model: PreTrainedModel, prompt: torch.device | None = None) -> torch.device:
    """Where a model takes its inputs: on its own device, or on the prompt's if its weights are loaded as needed."""
    device: torch.device = model.device
    if device.type != "meta":
        return device
    return torch.device("cpu") if prompt is None else prompt


def embedding_weight(model: PreTrainedModel) -> Tensor:
    """[vocabulary, size], the input embeddings."""
    weight: Tensor = cast(Any, model.get_input_embeddings()).weight
    return weight


def rope_limits(config: PretrainedConfig) -> list[PositionLimit]:
    """The positions past which one forward pass computes all its positions anew.

    - Dynamic NTK scaling takes its base from the deepest position: past the trained length, another at every step.
    - Longrope changes to its long factors, for all positions, once one passes the original length.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = [rope] if "rope_type" in rope else [each for each in rope.values() if isinstance(each, dict)]
    limits = []
    for scaling in scalings:
        if "dynamic" in scaling["rope_type"]:
            # at that length itself the model does not return to its first frequencies
            limits.append(PositionLimit(config.max_position_embeddings - 1, switch=False))
        elif scaling["rope_type"] == "longrope":
            limits.append(PositionLimit(scaling["original_max_position_embeddings"], switch=True))
    return limits


def table_limits(model: PreTrainedModel) -> list[PositionLimit]:
    """The end of a table of positions: learned, sinusoidal or ALiBi. Rotary frequencies have none."""
    config = model.config.get_text_config(decoder=True)
    end = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    rotary = any(name.endswith("inv_freq") for module in modules_of(model) for name in module._buffers)
    return [PositionLimit(end, switch=False)] if end and not rotary else []


def places_left(model: PreTrainedModel, prompt_tokens: int) -> int | None:
    """How many tokens can follow a prompt, where the model has a table of positions; None: as many as there may be."""
    places = min((limit.positions for limit in table_limits(model)), default=None)
    if places is None:
        return None
    return places + 1 - prompt_tokens if prompt_tokens <= places else 0  # the last token is never read


def scaled_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that hold the frequencies of dynamic NTK scaling."""
    return [module for module in modules_of(model) if "dynamic" in str(vars(module).get("rope_type"))]


def restore_frequencies(modules: Iterable[nn.Module]) -> None:
    """Return dynamic NTK scaling to the trained length, from that of the longest text so far.

    `model.generate` leaves it there, so that there a text's tokens can depend on the requests before it.
    """
    for module in modules:
        kinds = getattr(module, "rope_type", None)
        by_layer_type = kinds if isinstance(kinds, dict) else {"": str(kinds)}
        for layer_type, kind in by_layer_type.items():
            prefix = f"{layer_type}_" if layer_type else ""
            frequencies = getattr(module, f"{prefix}original_inv_freq", None)
            if "dynamic" in kind and frequencies is not None:
                current = getattr(module, f"{prefix}inv_freq")
                module.register_buffer(f"{prefix}inv_freq", frequencies.to(current.device), persistent=False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
