"""How a kernel is compiled for the kernels that call it: into its callers, and optimised there, once.

Numba compiles a function that others call as if it were called from Python too: with wrappers that unpack Python's
objects, optimised, and turned into machine code, all of which happens again, with everything that it calls, in each of
its callers. And it compiles it for each type of integer, and for the constants of a loop's first look at its variables.
Here what is called is kept as it comes from Numba's front end, and for one type of integer. That takes a third of the
time, and the machine code of the kernels that Python calls is the same.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler


def compile_into_callers(kernel: Any, function: Callable[..., Any], options: dict[str, Any]) -> None:
    """Let the kernels that call `kernel` take `function` in; Python calls `kernel` as ever."""
    called: Any = njit(**options, no_cpython_wrapper=True, no_cfunc_wrapper=True, pipeline_class=_Called)(function)

    def get_call_template(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        return called.get_call_template(tuple(map(_widest, arguments)), keywords)

    kernel.get_call_template = get_call_template
    kernel.get_overload = called.get_overload


def _widest(argument: Any) -> Any:
    """The type that stands for all that convert to it: the caller converts."""
    argument = types.unliteral(argument)
    return types.int64 if isinstance(argument, types.Integer) and argument.bitwidth < 64 else argument


class _Library(JITCodeLibrary):  # type: ignore[misc]
    """Code that is linked into others', and never run by itself."""

    def finalize(self) -> None:
        for library in dict.fromkeys(self._linking_libraries):
            self._final_module.link_in(library._get_module_for_linking(), preserve=True)
        self._finalize_dynamic_globals()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        self._ensure_finalized()
        return 0

    @property
    def codegen(self) -> Any:
        return _NoEnvironment


class _NoEnvironment:
    """What nothing needs to set that is not run by itself."""

    @staticmethod
    def set_env(name: str, environment: Any) -> None:
        pass


class _Called(Compiler):  # type: ignore[misc]
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.state.library = _Library(self.state.targetctx.codegen(), "called")
