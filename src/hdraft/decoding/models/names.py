"""Names that differ between versions of transformers and between models: looked up in signatures, in this one place.

From 5.24 on the cache is `cache`; before, it was `past_key_values`. A model that brings its own code may still use the
older name.
"""

from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, signature
from typing import Any

from transformers import GenerationMixin, PreTrainedModel
from transformers import __version__ as transformers_version
from transformers.generation.utils import GenerateDecoderOnlyOutput

from hdraft.decoding.logs import say_once

OLDEST, NEWEST = "5.17.0", "5.24.0"
"""The versions of transformers that the tests run with."""

CACHE = ("cache", "past_key_values", "cache_params")
"""The names of a cache in all versions, the newest first."""


def note_version() -> None:
    """Log once that transformers is newer than any version tested."""
    if _minor(transformers_version) > _minor(NEWEST):
        say_once(f"transformers {transformers_version} is newer than those tested, {OLDEST} to {NEWEST}")


def takes(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes `argument`; a wrapper around it that takes anything hands it on."""
    accepted = signature(model.forward).parameters
    return argument in accepted or (_takes_anything(accepted) and argument in signature(type(model).forward).parameters)


def may_take(model: PreTrainedModel, argument: str) -> bool:
    """Whether the model's forward takes `argument`, or anything."""
    accepted = signature(model.forward).parameters
    return argument in accepted or _takes_anything(accepted)


def cache_argument(model: PreTrainedModel) -> str:
    """The name of the cache among the arguments of the model's forward."""
    return _cache_name(model.forward, type(model).forward, GenerationMixin.prepare_inputs_for_generation)


def prepared_cache_argument(model: PreTrainedModel) -> str:
    """The name of the cache among the arguments of `prepare_inputs_for_generation`, and in what it returns."""
    anything: Any = model
    own, of_class = anything.prepare_inputs_for_generation, type(anything).prepare_inputs_for_generation
    return _cache_name(own, of_class, GenerationMixin.prepare_inputs_for_generation)


def output_cache_field() -> str:
    """The name of the cache in the output of this version's `generate`."""
    names = {field.name for field in fields(GenerateDecoderOnlyOutput)}
    return next(name for name in CACHE if name in names)


def generate_arguments() -> frozenset[str]:
    """The arguments that `generate` itself may hand to a decoding method, by this version's signatures."""
    functions: tuple[Callable[..., Any], ...] = (
        GenerationMixin.prepare_inputs_for_generation,
        GenerationMixin._sample,
    )
    return frozenset(name for function in functions for name in signature(function).parameters)


def _minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def _cache_name(*functions: Callable[..., Any]) -> str:
    """The name of the cache in the first of `functions` that names one."""
    for function in functions:
        parameters = signature(function).parameters
        for name in CACHE:
            if name in parameters:
                return name
        for name, parameter in parameters.items():  # a name that is newer than this list
            if "Cache" in str(parameter.annotation):
                return name
    raise LookupError("no function of this version of transformers takes a cache")


def _takes_anything(parameters: Any) -> bool:
    return any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
