"""The clock of `max_time`: what is prepared once, for a process, a model or a drafter, does not run on it.

`generate` starts that clock before it calls us. What the costs of steps take to measure, a probe of the model, or
kernels to compile, is not the request's: its clock is set back by as much.
"""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar
from weakref import WeakSet

from torch import Tensor
from transformers import MaxTimeCriteria, PreTrainedModel

from hdraft.decoding.masks import Span, tree_mask
from hdraft.drafting.drafter import Drafter

T = TypeVar("T")

_warm: "WeakSet[Any]" = WeakSet()


def off_the_clock(start: Callable[..., T], drafter: Drafter | None) -> Callable[..., T]:
    """`start`, which prepares a request, with the time that it takes, and the drafter to warm up, on no clock."""

    def started(model: PreTrainedModel, input_ids: Tensor, caller: Any = None, **prepared: Any) -> T:
        begin = time.time()
        steps = start(model, input_ids, caller, **prepared)
        if clocks := running(prepared["stopping_criteria"]):
            if drafter is not None:
                warm_up(drafter)
            set_back(clocks, time.time() - begin)
        return steps

    return started


def running(criteria: Iterable[Any]) -> list[MaxTimeCriteria]:
    """The clocks among stopping criteria."""
    return [criterion for criterion in criteria if isinstance(criterion, MaxTimeCriteria)]


def set_back(clocks: Iterable[MaxTimeCriteria], seconds: float) -> None:
    """Let so much time count for nothing."""
    for clock in clocks:
        clock.initial_timestamp += seconds


def warm_up(drafter: Drafter) -> None:
    """Have a drafter's kernels compiled: once, by a session that is never closed, so that nothing of it is kept."""
    with suppress(TypeError):  # a drafter that cannot be noted is warmed up every time
        if drafter in _warm:
            return
        _warm.add(drafter)
    with suppress(Exception):  # what fails here fails in the request too, where it is said
        session = drafter.session([0] * 16)
        for _ in range(2):
            tree = session.propose(4, 4)
            tree.check(drafter.vocab_size, 4, 4)
            tree.best_chain(4)
            tree_mask(1, 1, tree, Span(), 0)
            session.extend([0])
