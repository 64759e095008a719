"""How kernels are compiled, those of drafting and all others."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from numba import njit, typeof
from numba.core.dispatcher import Dispatcher

from hdraft.drafting.kernel_cache import keep
from hdraft.drafting.kernel_calls import compile_into_callers

P = ParamSpec("P")
R = TypeVar("R")

_sources = [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
_VERSION = sha256(b"".join(source for source in _sources if b"@kernel" in source)).hexdigest()[:12]


def kernel(function: Callable[P, R]) -> Callable[P, R]:
    """Compile with Numba once, for good: kept on disk (`kernel_cache`), and run without the interpreter's lock.

    A kernel allocates nothing, so it needs none of Numba's reference counts (`_nrt`): counting every array of a tuple
    at every call takes twenty times as long as the drafting itself. Nor does a division look whether it is by zero
    (`error_model`). Do not write one that calls itself: Numba's cache does not survive recursion.

    Numba's cache looks only at the file that a kernel stands in, not at the kernels and types it uses from others; so
    the name that it caches a kernel by is made to tell all of them.
    """
    function.__qualname__ += f"_{_VERSION}"
    options: dict[str, Any] = {"nogil": True, "_nrt": False, "error_model": "numpy"}
    compiled: Callable[P, R] = njit(**options)(function)
    if isinstance(compiled, Dispatcher):  # not with NUMBA_DISABLE_JIT
        keep(compiled)
        compile_into_callers(compiled, function, options)
    return compiled


def specialised(function: Callable[..., R], arguments: tuple[Any, ...]) -> Callable[..., R]:
    """The machine code of a kernel for arguments of exactly these types, called without Numba's dispatch.

    To find out the types of some sixty arrays takes as long as a small tree. Types are not checked again: arguments
    that differ from these in type are read as if they did not.
    """
    types = tuple(map(typeof, arguments))
    dispatcher: Any = function
    dispatcher.compile(types)
    code: Callable[..., R] = dispatcher.overloads[types].entry_point
    return code
