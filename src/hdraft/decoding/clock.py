"""The clock of `max_time`: what is prepared once, for a process, a model or a drafter, does not run on it.

`generate` starts that clock before it calls us. The time to measure the costs of steps, to probe the model or to
compile kernels is not the request's own: its clock is set back by as much.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from weakref import WeakSet

from transformers import MaxTimeCriteria

from hdraft.decoding.masks import Span, tree_mask
from hdraft.drafting.drafter import Drafter

_warm: "WeakSet[Any]" = WeakSet()


@contextmanager
def off_the_clock(criteria: Iterable[Any], drafter: Drafter | None) -> Iterator[None]:
    """Let the clocks among stopping criteria stand while a request is prepared and its drafter warmed up."""
    begin = time.time()
    yield
    if running := clocks(criteria):
        if drafter is not None:
            warm_up(drafter)
        set_back(running, time.time() - begin)


def clocks(criteria: Iterable[Any]) -> list[MaxTimeCriteria]:
    """The clocks among stopping criteria."""
    return [criterion for criterion in criteria if isinstance(criterion, MaxTimeCriteria)]


def set_back(clocks: Iterable[MaxTimeCriteria], seconds: float) -> None:
    """Leave so much time out of what the clocks count."""
    for clock in clocks:
        clock.initial_timestamp += seconds


def warm_up(drafter: Drafter) -> None:
    """Have a drafter's kernels compiled: once, by a session that is never closed, so that nothing of it is kept."""
    with suppress(TypeError):  # a drafter that cannot be noted is warmed up every time
        if drafter in _warm:
            return
        _warm.add(drafter)
    with suppress(Exception):  # what fails here fails in the request too, and is logged there
        session = drafter.session([0] * 16)
        for _ in range(2):
            tree = session.propose(4, 4)
            tree.check(drafter.vocab_size, 4, 4)
            tree.best_chain(4)
            tree_mask(1, 1, tree, Span(), 0)
            session.extend([0])
