"""What each argument and option of `model.generate` comes to here: honoured, without effect, or refused by name.

`docs/generate.md` shows the same as a table; a test fails when transformers adds an option that is not classified.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.support import Shape, UnsupportedError, embedding_weight, rope_limits
from hdraft.drafting.drafter import Drafter


def _names(*lines: str) -> frozenset[str]:
    return frozenset(" ".join(lines).split())


HONOURED = _names(
    "max_length max_new_tokens min_length min_new_tokens max_time stop_strings do_sample temperature top_k top_p min_p",
    "top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty encoder_repetition_penalty no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size bad_words_ids renormalize_logits forced_bos_token_id forced_eos_token_id",
    "remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sequence_bias",
    "guidance_scale watermarking_config output_scores output_logits return_dict_in_generate pad_token_id bos_token_id",
    "eos_token_id prefill_chunk_size",
)
"""Options of `GenerationConfig` that do what they do in `generate`."""

WITHOUT_EFFECT = _names(
    "early_stopping length_penalty cache_config max_cache_len decoder_start_token_id num_assistant_tokens",
    "num_assistant_tokens_schedule assistant_confidence_threshold max_matching_ngram_size assistant_lookbehind",
    "target_lookbehind assistant_ensemble_weight speculation_type compile_config disable_compile",
    "continuous_batching_config low_memory use_cache",
)
"""Options of `GenerationConfig` that change no token: of methods that are refused, of compilation, of memory."""

_BEAMS = "it keeps several sequences, and hdraft decodes one: leave it out, or use model.generate"
_OTHER_METHOD = "it is another decoding method: leave it out, or use model.generate"
_OTHER_DRAFTS = "hdraft drafts already: leave it out"

REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "num_beams": ((None, 1), _BEAMS),
    "num_beam_groups": ((None, 1), _BEAMS),
    "diversity_penalty": ((None, 0), _BEAMS),
    "num_return_sequences": ((None, 1), "it asks for several sequences: call generate once for each"),
    "constraints": ((None,), _BEAMS),
    "force_words_ids": ((None,), _BEAMS),
    "penalty_alpha": ((None, 0), _OTHER_METHOD),
    "dola_layers": ((None,), _OTHER_METHOD),
    "prompt_lookup_num_tokens": ((None,), _OTHER_DRAFTS),
    "assistant_early_exit": ((None,), _OTHER_DRAFTS),
    "use_mtp": ((None, False), _OTHER_DRAFTS),
    "is_assistant": ((None, False), "hdraft is no assistant of another model: leave it out"),
    "cache_implementation": (
        (None, "dynamic", "hybrid"),  # "hybrid" is an old default that generate ignores
        "rejected drafts are dropped from hdraft's own cache: leave it out, or use model.generate",
    ),
    "token_healing": ((None, False), "call model.heal_tokens(input_ids, tokenizer) first and pass what it returns"),
    "output_attentions": ((None, False), "a step attends to draft tokens too: use model.generate for attentions"),
    "output_hidden_states": ((None, False), "a step holds draft tokens too: use model.generate for hidden states"),
}
"""Options of `GenerationConfig` that are refused: the values that leave them unset, and the reason and way out."""

FOR_MODEL = _names("attention_mask position_ids past_key_values logits_to_keep use_cache")
"""Arguments of a model's forward that `generate` may hand on here; any other is refused."""

REFUSED_ARGUMENTS: Mapping[str, str] = {
    "assistant_model": _OTHER_DRAFTS,
    "assistant_tokenizer": _OTHER_DRAFTS,
    "custom_generate": "hdraft.generate is one itself: leave it out",
    "synced_gpus": "the ranks would take different numbers of steps: leave it out, or use model.generate",
}
"""Arguments of `generate` that are refused unless they are None or False."""

BATCH = "hdraft decodes one sequence, not a batch of {}: call it once for each"


def check_arguments(input_ids: Tensor | None, arguments: Mapping[str, Any]) -> tuple[Tensor | None, dict[str, Any]]:
    """The prompt, and the arguments that `generate` is to see.

    Raises:
        UnsupportedError: an argument that cannot be honoured, or a batch.
        ValueError: two prompts, an empty one, or one of another shape.
    """
    arguments = dict(arguments)
    inputs = arguments.pop("inputs", None)
    if inputs is not None and input_ids is not None:
        raise ValueError("both inputs and input_ids are given, and both are the prompt: pass one")
    prompt = inputs if input_ids is None else input_ids
    if prompt is not None:
        if not isinstance(prompt, Tensor) or prompt.ndim != 2:
            raise ValueError("input_ids must be a tensor of shape [1, length]: torch.tensor([ids])")
        if len(prompt) != 1:
            raise UnsupportedError(BATCH.format(len(prompt)))
        if prompt.shape[1] == 0:
            raise ValueError("the prompt is empty: pass at least one token, or no input_ids, to start from bos")
    for name, why in REFUSED_ARGUMENTS.items():
        if arguments.pop(name, None):
            raise UnsupportedError(f"{name} is not supported: {why}")
    if (cache := arguments.get("past_key_values")) is not None:
        _check_cache(cache)
    return prompt, arguments


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that cannot be honoured.

    Raises:
        UnsupportedError: its message names the option, the reason and the way out.
    """
    for name, (unset, why) in REFUSED.items():
        if options.get(name) not in unset:
            raise UnsupportedError(f"{name}={options[name]!r} is not supported: {why}")


def check_model_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what would have to go to the model beside the token ids.

    Raises:
        UnsupportedError: its message names the argument, the reason and the way out.
    """
    for name, value in arguments.items():
        empty = value is None or (isinstance(value, dict) and not value)  # as `generate` gives models for images too
        if name not in FOR_MODEL and not empty:
            raise UnsupportedError(
                f"{name} is not supported: hdraft passes token ids to the model and nothing else; leave it out,"
                " or use model.generate"
            )


def check_prepared(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Any,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    options: GenerationConfig,
) -> None:
    """Refuse what shows only after `generate` has prepared it.

    Raises:
        UnsupportedError: a batch, positions of several dimensions, or no cache where that changes tokens.
        ValueError: a cache or a mask for another sequence, or a cache of another model.
    """
    if len(input_ids) != 1:
        raise UnsupportedError(BATCH.format(len(input_ids)))
    if position_ids is not None and position_ids.ndim != 2:
        raise UnsupportedError(f"{type(model).__name__} gives a token several positions: use model.generate for it")
    if options.use_cache is False and rope_limits(model.config.get_text_config(decoder=True)):
        raise UnsupportedError(
            "use_cache=False is not supported with dynamic or longrope scaling, as it changes tokens: leave it out"
        )
    length = input_ids.shape[1]
    covered = getattr(options, "_mask_length", length) if attention_mask is None else attention_mask.shape[1]
    if covered != length:
        raise ValueError(f"attention_mask covers {covered} tokens and input_ids {length}: pass the whole sequence")
    if cache is not None:
        _check_cache(cache)
        config = model.config.get_text_config(decoder=True)
        if options.prefill_chunk_size is not None and any(limit.switch for limit in rope_limits(config)):
            raise UnsupportedError(
                "prefill_chunk_size with past_key_values is not supported with longrope scaling, as generate may lose"
                " the text at its switch: leave it out"
            )
        if _windows(cache) != _windows(GrowingCache(config)):
            raise ValueError("past_key_values is of a model with other layers: pass one that this model filled")
        if (cached := cache.get_seq_length()) >= length:
            raise ValueError(f"past_key_values holds {cached} tokens and input_ids {length}: pass the whole sequence")


def check_vocabulary(model: PreTrainedModel, drafter: Drafter | None) -> None:
    """Refuse a drafter that may draft ids that the model does not know, or be given ids that it does not know itself.

    Raises:
        ValueError: its vocabulary is not of the model's size.
    """
    known = len(embedding_weight(model))
    if drafter is not None and drafter.vocab_size != known:
        raise ValueError(
            f"the drafter's vocabulary is of {drafter.vocab_size} ids and the model's of {known}:"
            f" make the drafter with vocab_size={known}"
        )


def check_lookahead(model: PreTrainedModel, shape: Shape, drafter: Drafter | None) -> None:
    """Refuse a drafter with a lookahead branch, which is a tree, where drafts can be chains only.

    Raises:
        UnsupportedError: its message names the reason and the way out.
    """
    if shape == "chain" and getattr(drafter, "window", 0) > 0:
        raise UnsupportedError(
            f"{type(model).__name__} verifies single chains of draft tokens, and a lookahead branch is a tree:"
            " make the drafter with window=0, or use another"
        )


def _windows(cache: GrowingCache) -> list[tuple[type, int | None]]:
    return [(type(layer), getattr(layer, "window", None)) for layer in cache.layers]


def _check_cache(cache: Any) -> None:
    if not isinstance(cache, GrowingCache):
        raise UnsupportedError(
            f"past_key_values of type {type(cache).__name__} is not supported: rejected drafts are dropped from"
            " hdraft's own cache; pass one that hdraft.generate returned, or none"
        )
