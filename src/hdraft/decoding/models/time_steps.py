"""The time steps of Mamba 2: transformers keeps them within limits in a pass over several tokens, and not over one.

So `generate` reads a prompt with limits, and writes without them. A step of hdraft reads several tokens that `generate`
would read one by one: it runs without limits too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from hdraft.decoding.models.walking import modules_of

_ALL = (0.0, float("inf"))


def limited_modules(model: PreTrainedModel) -> list[nn.Module]:
    """The modules that limit their time steps."""
    return [module for module in modules_of(model) if tuple(vars(module).get("time_step_limit") or _ALL) != _ALL]


@contextmanager
def unlimited(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Within it, none of them does."""
    limits = [module.time_step_limit for module in modules]
    try:
        for module in modules:
            module.time_step_limit = _ALL  # type: ignore[assignment]
        yield
    finally:
        for module, limit in zip(modules, limits, strict=True):
            module.time_step_limit = limit
