"""Every argument and option of `model.generate` is honoured, without effect, or refused by name: which is which.

`docs/generate.md` shows the same as a table; a test fails when transformers adds an option that is not classified.
"""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.logs import say_once
from hdraft.decoding.models.names import CACHE, generate_arguments, may_take, prepared_cache_argument, takes
from hdraft.decoding.models.support import Shape, UnsupportedError, rope_limits
from hdraft.drafting.drafter import Drafter, check_ids, lookahead_nodes, takes_references, vocabulary_size


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

ONLY_HOW = _names(
    "prompt_lookup_num_tokens assistant_early_exit use_mtp is_assistant cache_implementation output_attentions",
    "output_hidden_states",
)
"""Refused options that change no token: ignored where they come with the model and the user did not ask for them."""

FOR_MODEL = _names("attention_mask position_ids logits_to_keep use_cache token_type_ids mm_token_type_ids", *CACHE)
"""Arguments of a model's forward that the user may give; any other is refused."""

REFUSED_INPUTS = re.compile(r"encoder_|decoder|cross|labels")
"""Arguments beside the token ids that a model's answer depends on and that are refused, also where `generate` has made
them: of encoder-decoders, and of layers that attend to something else in every pass."""

OF_PROMPT = re.compile(r"pixel|image|video|audio|grid|features|feature_|input_values|inputs_embeds|per_layer_inputs")
"""Arguments that the prompt's pass takes, and no later one: what a processor makes of pictures and sound. What comes
beside them goes with them."""

_SIZES = re.compile(r"grid|sizes|second_per|image_position_ids|feature_attention_mask")
"""Of those, what says nothing without the pictures themselves."""

_DECIDED = _names("use_cache logits_to_keep output_attentions output_hidden_states")  # by `check_options`, or by hdraft

TOKEN_TYPES = _names("token_type_ids mm_token_type_ids moe_mm_token_type_ids")

REFUSED_ARGUMENTS: Mapping[str, str] = {
    "assistant_model": _OTHER_DRAFTS,
    "assistant_tokenizer": _OTHER_DRAFTS,
    "custom_generate": "hdraft.generate is one itself: leave it out",
    "synced_gpus": "the ranks would take different numbers of steps: leave it out, or use model.generate",
}
"""Arguments of `generate` that are refused unless they are None or False."""

BATCH = "hdraft decodes one sequence, not a batch of {}: call it once for each"


class UserArguments(NamedTuple):
    """The arguments that the user gave to `hdraft.generate`: `model.generate` does not tell them from its own."""

    names: Set[str]
    cache: GrowingCache | None


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
    return prompt, arguments


def pop_cache(arguments: dict[str, Any]) -> GrowingCache | None:
    """Take the cache to go on from out of the user's arguments, by its name in any version of transformers.

    Raises:
        UnsupportedError: it is not hdraft's own.
        ValueError: two caches.
    """
    caches = [(name, arguments.pop(name)) for name in CACHE if arguments.get(name) is not None]
    if len(caches) > 1:
        raise ValueError(f"both {caches[0][0]} and {caches[1][0]} are given, and both are the cache: pass one")
    for name, cache in caches:
        if not isinstance(cache, GrowingCache):
            raise UnsupportedError(
                f"{name} of type {type(cache).__name__} is not supported: rejected drafts are dropped from"
                " hdraft's own cache; pass one that hdraft.generate returned, or none"
            )
        return cache
    return None


def check_options(options: Mapping[str, Any], of_model: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse options that cannot be honoured.

    Args:
        options: all options, whether or not they are set.
        of_model: the options that come with the model, which the user did not ask for.

    Returns:
        The options to leave unset, as they come with the model, are not for hdraft and change no token.

    Raises:
        UnsupportedError: its message names the option, the reason and the way out.
    """
    ignored = {}
    for name, (unset, why) in REFUSED.items():
        value = options.get(name)
        if value in unset:
            continue
        if name not in ONLY_HOW or of_model.get(name) != value:
            raise UnsupportedError(f"{name}={value!r} is not supported: {why}")
        say_once(f"{name}={value!r} of the model's generation_config is ignored: {why.partition(':')[0]}")
        ignored[name] = unset[0]
    return ignored


def check_model_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that the user wants to go to the model beside the token ids.

    Raises:
        UnsupportedError: its message names the argument, the reason and the way out.
    """
    given = {name for name, value in arguments.items() if not _is_empty(value)}
    refused = given - FOR_MODEL if not any(map(is_of_prompt, given)) else set(filter(REFUSED_INPUTS.search, given))
    if refused:
        raise _not_token_ids(min(refused))


class Prepared(NamedTuple):
    """The arguments that `generate` hands on for the model's forward, sorted.

    Attributes:
        cache: to go on from, the user's if that is known.
        extras: what every forward pass is to be given; an integer stands for a tensor of one for each token.
        of_prompt: all arguments, where some are for the prompt's pass alone: what it is given, by
            `prepare_inputs_for_generation`. None for a prompt of token ids.
    """

    cache: Cache | None
    extras: dict[str, Any]
    of_prompt: dict[str, Any] | None


def sort_prepared(model: PreTrainedModel, arguments: Mapping[str, Any], user: UserArguments | None) -> Prepared:
    """Sort the arguments that `generate` hands on for the model's forward.

    Args:
        model: the target.
        arguments: by name.
        user: what the user gave. None if that is not known: then an argument that this version's signatures do not
            have is the user's.

    Raises:
        UnsupportedError: an argument that cannot be honoured; its message names it, the reason and the way out.
    """
    asked = arguments.keys() - generate_arguments() if user is None else user.names
    cache: Cache | None = None if user is None else user.cache
    extras = dict[str, Any]()
    given = {name: value for name, value in arguments.items() if not (isinstance(value, Cache) or _is_empty(value))}
    sees = any(is_of_prompt(name) for name in given)
    for name, value in arguments.items():
        if isinstance(value, Cache):
            cache = value if user is None else cache  # `generate` may have made one
        elif _is_empty(value) or name in _DECIDED:
            pass
        elif is_of_prompt(name):
            if not takes(model, name):
                raise _not_token_ids(name)
        elif REFUSED_INPUTS.search(name) or (name in asked and name not in FOR_MODEL and not sees):
            raise _not_token_ids(name)
        elif name in TOKEN_TYPES:
            if _has_types(name, value) and not sees:
                raise _not_token_ids(name)
            if name == "token_type_ids" and takes(model, name) and not sees:
                extras[name] = 0
        elif sees and name in asked:
            pass
        elif isinstance(value, Tensor) and value.ndim:
            say_once(f"{name} of this version's generate is left to the model: hdraft does not know how it goes on")
        elif takes(model, name):
            extras[name] = value
        else:
            say_once(f"{name} of this version's generate is left out: {type(model).__name__} does not take it")
    return Prepared(cache, extras, given if sees else None)


def is_of_prompt(name: str) -> bool:
    """Whether an argument is for the prompt's pass alone."""
    return name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL or OF_PROMPT.search(name) is not None


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and not value)  # as `generate` gives models for images too


def _has_types(name: str, value: Any) -> bool:
    """Whether it tells tokens of several types apart: such as those of an image."""
    return name in TOKEN_TYPES and bool(torch.as_tensor(value).any())


def _not_token_ids(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} is not supported: a step of hdraft passes token ids to the model and nothing else; leave it out,"
        " or use model.generate"
    )


def check_prepared(
    model: PreTrainedModel,
    input_ids: Tensor,
    cache: Cache | None,
    attention_mask: Tensor | None,
    options: GenerationConfig,
    of_prompt: Mapping[str, Any] | None = None,
) -> GrowingCache | None:
    """Refuse batches, masks and caches that cannot be honoured, once `generate` has prepared them.

    Returns:
        The cache to go on from; an empty one too, if it is hdraft's own, to hold the sequence afterwards.

    Raises:
        UnsupportedError: a batch, a cache that is not hdraft's own, or no cache where that changes tokens.
        ValueError: a mask for another sequence, or a cache of another model.
    """
    if len(input_ids) != 1:
        raise UnsupportedError(BATCH.format(len(input_ids)))
    config = model.config.get_text_config(decoder=True)
    if options.use_cache is False and rope_limits(config):
        raise UnsupportedError(
            "use_cache=False is not supported with dynamic or longrope scaling, as it changes tokens: leave it out"
        )
    length = prompt_length(input_ids, of_prompt)
    covered = getattr(options, "_mask_length", length) if attention_mask is None else attention_mask.shape[1]
    if covered != length:
        raise ValueError(f"attention_mask covers {covered} tokens and input_ids {length}: pass the whole sequence")
    if attention_mask is not None and not may_take(model, "attention_mask"):
        raise UnsupportedError(f"{type(model).__name__} takes no attention_mask: leave it out, or use model.generate")
    if cache is None or not (isinstance(cache, GrowingCache) or _holds_text(cache)):  # `generate`'s own
        return None
    own = pop_cache({"past_key_values": cache})
    if options.prefill_chunk_size is not None and any(limit.switch for limit in rope_limits(config)):
        raise UnsupportedError(
            "prefill_chunk_size with a cache to go on from is not supported with longrope scaling, as generate may"
            " lose the text at its switch: leave it out"
        )
    if own is not None and _windows(own) != _windows(GrowingCache(config)):
        raise ValueError("the cache is of a model with other layers: pass one that this model filled")
    return own


def later_passes(model: PreTrainedModel, input_ids: Tensor, of_prompt: Mapping[str, Any]) -> dict[str, Any]:
    """What every pass behind a prompt that sees is to be given: the `extras` of `Prepared`.

    Raises:
        UnsupportedError: `generate` shows the model pictures or sound in every pass, as where layers attend to them
            each time; its message names the argument, the reason and the way out.
    """
    config = model.config.get_text_config(decoder=True)
    if any(limit.switch for limit in rope_limits(config)):
        raise UnsupportedError(
            f"{type(model).__name__} reads its prompt again at the switch of its longrope, without what it saw:"
            " use model.generate for it"
        )
    cache = {prepared_cache_argument(model): GrowingCache(config)}
    inputs = cast(Any, model).prepare_inputs_for_generation(
        input_ids, next_sequence_length=1, is_first_iteration=False, **of_prompt, **cache
    )
    for name, value in inputs.items():
        if is_of_prompt(name) and not _is_empty(value) and not _SIZES.search(name):
            raise UnsupportedError(f"{type(model).__name__} takes {name} in every pass: use model.generate for it")
    return {} if inputs.get("token_type_ids") is None else {"token_type_ids": 0}


def prompt_length(input_ids: Tensor, of_prompt: Mapping[str, Any] | None) -> int:
    """Tokens that the prompt's pass reads: those of `input_ids`, int[1, m], or of embeddings in their place."""
    embeddings = None if of_prompt is None else of_prompt.get("inputs_embeds")
    return int((input_ids if embeddings is None else embeddings).shape[1])


def text_positions(model: PreTrainedModel, position_ids: Tensor | None, sees: bool = False) -> Tensor | None:
    """The positions of text, int[1, m], also where the model counts in several dimensions: for text they are equal.

    Where the prompt `sees`, they are so for its last token, and behind it. (Before those of pictures, of which there
    are three, there may be one more row, which numbers the tokens.)

    Raises:
        UnsupportedError: they are not.
    """
    if position_ids is None or position_ids.ndim == 2:
        return position_ids
    rows = position_ids[1:] if sees and len(position_ids) == 4 else position_ids
    compared = rows[..., -1:] if sees else rows
    if position_ids.ndim != 3 or not bool((compared == compared[:1]).all()):
        where = "the prompt's last token" if sees else "a token"
        raise UnsupportedError(f"{type(model).__name__} gives {where} several positions: use model.generate for it")
    return rows[0]


def check_vocabulary(model: PreTrainedModel, drafter: Drafter | None) -> None:
    """Refuse a drafter that may draft ids that the model does not know, or be given ids that it does not know itself.

    Raises:
        ValueError: its vocabulary is not of the model's size.
    """
    known = vocabulary_size(model)
    if drafter is not None and drafter.vocab_size != known:
        raise ValueError(
            f"the drafter's vocabulary is of {drafter.vocab_size} ids and the model's of {known}:"
            f" make the drafter with vocab_size={known}"
        )


def check_references(drafter: Drafter | None, references: Sequence[Any]) -> None:
    """Refuse references that cannot be drafted from: the drafter itself would find out within the request.

    Raises:
        ValueError: the drafter takes none, or one is no sequence of ids that it knows.
    """
    if drafter is None or not len(references):
        return
    if not takes_references(drafter):
        raise ValueError(f"a {type(drafter).__name__} takes no references: leave them out, or use a HierarchyDrafter")
    for ids in references:
        check_ids(ids, drafter.vocab_size)


def check_lookahead(model: PreTrainedModel, shape: Shape, step: StepKind, drafter: Drafter | None) -> None:
    """Refuse a drafter with a lookahead branch, which is a tree, where drafts can be chains only, or rows are counted.

    Raises:
        UnsupportedError: its message names the reason and the way out.
    """
    if shape == "chain" and lookahead_nodes(drafter):
        raise UnsupportedError(
            f"{type(model).__name__} verifies single chains of draft tokens, and a lookahead branch is a tree:"
            " make the drafter with window=0, or use another"
        )
    if step == "exact" and lookahead_nodes(drafter):
        raise UnsupportedError(
            "exact steps have as many rows whatever is drafted, and none for a lookahead branch: make the drafter with"
            " window=0, or use another"
        )


def _holds_text(cache: Cache) -> bool:
    if any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return bool(cache.get_seq_length())
    return any(any(getattr(layer, "has_previous_state", {}).values()) for layer in cache.layers)


def _windows(cache: GrowingCache) -> list[tuple[type, int | None]]:
    return [(type(layer), getattr(layer, "window", None)) for layer in cache.layers]
