"""The clock of `max_time`: what is prepared once, for a process or a model, does not run on it.

`generate` starts that clock before it calls us. The time to probe the model is not the request's own: its clock is set
back by as much.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import MaxTimeCriteria


@contextmanager
def off_the_clock(criteria: Iterable[Any]) -> Iterator[None]:
    """Let the clocks among stopping criteria stand while a request is prepared."""
    begin = time.time()
    yield
    set_back(clocks(criteria), time.time() - begin)


def clocks(criteria: Iterable[Any]) -> list[MaxTimeCriteria]:
    """The clocks among stopping criteria."""
    return [criterion for criterion in criteria if isinstance(criterion, MaxTimeCriteria)]


def set_back(clocks: Iterable[MaxTimeCriteria], seconds: float) -> None:
    """Leave so much time out of what the clocks count."""
    for clock in clocks:
        clock.initial_timestamp += seconds

