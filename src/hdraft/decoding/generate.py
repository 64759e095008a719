"""`generate`: what `model.generate` gives for one sequence, in fewer forward passes.

transformers prepares every argument itself: the loop runs as `generate`'s callable `custom_generate`.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    PreTrainedModel,
    StoppingCriteriaList,
    StopStringCriteria,
)
from transformers.generation.streamers import BaseStreamer
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hdraft.decoding.clock import off_the_clock
from hdraft.decoding.costs import step_costs
from hdraft.decoding.graphed.static_step import StepKind, default_step
from hdraft.decoding.loop import Emitted, draft_and_verify
from hdraft.decoding.models.adapters import base_model, check_adapters
from hdraft.decoding.models.names import note_version, output_cache_field
from hdraft.decoding.models.probe import draft_shape
from hdraft.decoding.models.ranks import check_processes
from hdraft.decoding.models.support import check_model, input_device
from hdraft.decoding.models.wrappers import unwrapped
from hdraft.decoding.options import (
    UserArguments,
    check_arguments,
    check_lookahead,
    check_model_arguments,
    check_options,
    check_prepared,
    check_references,
    check_vocabulary,
    later_passes,
    pop_cache,
    prompt_length,
    sort_prepared,
    text_positions,
)
from hdraft.decoding.request import AnyDrafter, DecodingRequest
from hdraft.decoding.stats import GenerationStats
from hdraft.decoding.target import Target
from hdraft.decoding.verification import Argmax, Processed
from hdraft.drafting.drafter import UNLIMITED, TokenIds, lookahead_nodes, weighs_costs

Output = Tensor | GenerateDecoderOnlyOutput
Steps = Generator[Emitted, None, Output]
"""The steps of a request, and at the end what `generate` returns."""

T = TypeVar("T")


def generate(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    drafter: AnyDrafter = "auto",
    *,
    budget: int = 64,
    statistics: GenerationStats | None = None,
    costs: npt.NDArray[np.float64] | None = None,
    step: StepKind | None = None,
    references: Sequence[str | TokenIds] = (),
    **options: Any,
) -> Output:
    """Generate as `model.generate(input_ids, **options)` does, token for token, in fewer forward passes.

    Args:
        model: a decoder with a key-value cache, of transformers, or in PEFT's wrapper.
        input_ids: int[1, length], the prompt; None starts from the model's bos token.
        drafter: proposes the tokens to verify. "auto" is the model's own, with D_c alone: made at its first request,
            kept with it, and used for later ones; None is ordinary decoding.
        budget: the most draft tokens in one step; 0 switches drafting off.
        statistics: filled in while it runs.
        costs: float[m], the time of a step over 0, 1, 2, … draft tokens, for a drafter that weighs it. If it is not
            given, it is learnt from the steps of all requests of the model; given, it stays as it is, so that a run can
            be repeated: `measure_costs` measures it.
        step: how a step behind the prompt is run, see `StepKind`; None for "captured" on a GPU and "dynamic" elsewhere.
            "exact" gives in half precision, too, the tokens that it gives without a drafter, bit for bit.
        references: what the output will probably resemble, as texts (with `tokenizer`) or token ids: a file that is to
            be edited, documents that an answer quotes, its last version. They are drafted from, for this request alone;
            the model does not see them, and nothing is learnt of them.
        options: everything else that `model.generate` takes; `docs/generate.md` lists what is refused.

    Returns:
        What `model.generate` returns: int[1, length + new], or a `GenerateDecoderOnlyOutput` if
        `return_dict_in_generate` asks for it. A later `hdraft.generate` can go on from the output's `cache`
        (`past_key_values` before transformers 5.24), as far as its prompt begins with the same tokens.

    Raises:
        UnsupportedError: before any work, for a model or an option that cannot be honoured.
        ValueError: an empty prompt, one of another shape, no drafter or one for another vocabulary, costs that are no
            times, an unknown kind of step, or references that cannot be drafted from.
        RuntimeError: steps are to be exact, and this device's are not.
        torch.OutOfMemoryError: steps are to be exact, and there is no memory for them.
    """
    request = DecodingRequest(drafter, budget, costs, step, statistics, options.get("streamer"), references)
    return call_generate(model, input_ids, request, _take_all, options)


def custom_generate(
    drafter: AnyDrafter = "auto",
    *,
    budget: int = 64,
    statistics: GenerationStats | None = None,
    costs: npt.NDArray[np.float64] | None = None,
    step: StepKind | None = None,
    streamer: BaseStreamer | None = None,
    references: Sequence[TokenIds] = (),
) -> Callable[..., Output]:
    """The loop as `model.generate(…, custom_generate=…)` takes it; the arguments are those of `generate`.

    Used bare it lacks what `generate` does around it: `model.generate` hands it neither `streamer` (give it here) nor
    `tokenizer` (so `stop_strings` fails), drops `assistant_model` in silence, and runs an encoder before it refuses.
    """
    request = DecodingRequest(drafter, budget, costs, step, statistics, streamer, references).with_ids(None)

    def run(model: PreTrainedModel, input_ids: Tensor, **prepared: Any) -> Output:
        steps = _prepare(request, None, model, input_ids, **prepared)
        if streamer is not None:  # which `model.generate` does not know of
            streamer.put(input_ids.cpu())  # type: ignore[no-untyped-call]
        return _take_all(steps)

    return run


def call_generate(
    model: Any,
    input_ids: Tensor | None,
    request: DecodingRequest,
    finish: Callable[[Steps], T],
    options: Mapping[str, Any],
) -> T:
    """Call `model.generate` with the loop in it, after every check that can be made before it.

    Returns:
        What `finish` makes of the steps, within the call.

    Raises:
        UnsupportedError, ValueError: as `generate` does.
    """
    check_processes(model)
    model = unwrapped(model)
    target = base_model(model)
    check_model(target)
    check_adapters(model)
    prompt, options = check_arguments(input_ids, options)
    cache = pop_cache(options)
    of_model = options.keys() & signature(target.forward).parameters.keys()
    check_model_arguments({name: options[name] for name in of_model})
    user = UserArguments(frozenset(options), cache)
    request = request.with_ids(options.get("tokenizer"))
    _prepare_options(target, options)

    def method(model: PreTrainedModel, input_ids: Tensor, **prepared: Any) -> T:
        # any other argument that it named, `generate` would keep from the model
        return finish(_prepare(request, user, model, input_ids, **prepared))

    output: T = model.generate(prompt, custom_generate=method, **options)
    return output


def _take_all(steps: Steps) -> Output:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def _prepare(
    request: DecodingRequest,
    user: UserArguments | None,
    model: PreTrainedModel,
    input_ids: Tensor,
    *,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    **arguments: Any,
) -> Steps:
    """The steps of a request, none of them taken yet, from what `model.generate` has prepared."""
    with off_the_clock(stopping_criteria):
        note_version()
        check_processes(model)
        check_model(model)
        check_adapters(model)
        drafter = request.drafter_for(model)
        request = replace(request, drafter=drafter)
        check_options(vars(generation_config), vars(model.generation_config))
        cache, extras, of_prompt = sort_prepared(model, arguments, user)
        continued = check_prepared(model, input_ids, cache, attention_mask, generation_config, of_prompt)
        positions = text_positions(model, position_ids, sees=of_prompt is not None)
        check_vocabulary(model, drafter)
        check_references(drafter, request.references)
        if of_prompt is not None:
            of_prompt |= {"attention_mask": attention_mask, "position_ids": position_ids}
            extras |= later_passes(model, input_ids, of_prompt)
        if attention_mask is not None and bool(attention_mask.all()):
            attention_mask = None  # no padding: as later versions of `generate` say it themselves
        shape = draft_shape(model)
        step = default_step(model) if request.step is None else request.step
        check_lookahead(model, shape, step, request.active_drafter)
        learnt = step_costs(model, step)
        costs = learnt if request.costs is None and weighs_costs(drafter) else request.costs
        request = replace(request, costs=costs, learnt=learnt)
        limits = [criterion.max_length for criterion in stopping_criteria if isinstance(criterion, MaxLengthCriteria)]
        ahead = prompt_length(input_ids, of_prompt) - input_ids.shape[1]
        chunk = generation_config.prefill_chunk_size if of_prompt is None else None
        target = Target(
            model,
            shape,
            continued,
            attention_mask,
            positions,
            prefills_in_chunks=chunk is not None,
            step=step,
            budget=request.budget + lookahead_nodes(drafter) if request.active_drafter is not None else 0,
            max_length=int(min(limits, default=UNLIMITED)) + ahead,
            device=input_device(model, input_ids.device),
            extras=extras,
            of_prompt=of_prompt,
            ahead=ahead,
        )
        choice = _choice(target, input_ids.long(), logits_processor, stopping_criteria, generation_config)
    keep_cache = continued is not None or bool(generation_config.return_dict_in_generate)
    steps = draft_and_verify(target, choice, request, chunk, keep_cache)
    return _with_output(steps, target, choice, request.streamer, generation_config)


def _prepare_options(model: PreTrainedModel, options: dict[str, Any]) -> None:
    """Refuse early, and make the criterion for stop strings: `generate` withholds the tokenizer from custom methods."""
    known = vars(model.generation_config)
    chosen = vars(options["generation_config"]) if options.get("generation_config") is not None else {}
    asked = {name: value for name, value in chosen.items() if value is not None} | options
    complete = known | asked
    options |= check_options(complete, {name: value for name, value in known.items() if name not in asked})
    tokenizer = options.pop("tokenizer", None)
    if complete["stop_strings"] is not None and tokenizer is not None:
        others = options.get("stopping_criteria") or ()
        stop = StopStringCriteria(tokenizer=tokenizer, stop_strings=complete["stop_strings"])
        options["stopping_criteria"] = StoppingCriteriaList([stop, *others])
        options["stop_strings"] = None


def _choice(
    target: Target,
    input_ids: Tensor,
    processors: LogitsProcessorList,
    criteria: StoppingCriteriaList,
    options: GenerationConfig,
) -> Argmax | Processed:
    recorded = options.return_dict_in_generate and (options.output_scores or options.output_logits)
    plain = all(type(criterion) in (MaxLengthCriteria, EosTokenCriteria) for criterion in criteria)
    if plain and not (options.do_sample or len(processors) or recorded):
        ends = [criterion.eos_token_id.tolist() for criterion in criteria if isinstance(criterion, EosTokenCriteria)]
        return Argmax(input_ids, frozenset(chain.from_iterable(ends)), target.max_length - target.ahead, target.ranks)
    return Processed(
        input_ids,
        processors,
        criteria,
        bool(options.do_sample),
        output_scores=bool(recorded and options.output_scores),
        output_logits=bool(recorded and options.output_logits),
        ranks=target.ranks,
    )


def _with_output(
    steps: Generator[Emitted, None, None],
    target: Target,
    choice: Argmax | Processed,
    streamer: BaseStreamer | None,
    options: GenerationConfig,
) -> Steps:
    yield from steps
    if streamer is not None:
        streamer.end()  # type: ignore[no-untyped-call]
    sequence = choice.sequence()
    if not options.return_dict_in_generate:
        return sequence
    return GenerateDecoderOnlyOutput(
        sequences=sequence,  # type: ignore[arg-type]
        scores=choice.scores,  # type: ignore[arg-type]
        logits=choice.logits,  # type: ignore[arg-type]
        **{output_cache_field(): target.cache},  # type: ignore[arg-type]
    )
