"""How the drafting kernels are compiled."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from numba import njit

P = ParamSpec("P")
R = TypeVar("R")


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with Numba once, for good: cached on disk, and run without the interpreter's lock.

    A kernel allocates nothing, so it needs none of Numba's reference counts (`_nrt`): counting every array of a tuple
    at every call takes twenty times as long as the drafting itself. Do not write one that calls itself: Numba's cache
    does not survive recursion.
    """
    options: dict[str, Any] = {"cache": True, "nogil": True, "_nrt": False}
    compiled: Callable[P, R] = njit(**options)(function)
    return compiled
