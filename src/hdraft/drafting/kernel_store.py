"""Arguments of a kernel, stored once and read by every later call, and by one call for many.

A session is some sixty arrays. To unpack them from their Python objects at each call takes as long as a small tree, and
holds the interpreter's lock. So they are stored as a kernel has them, pointers and shapes, in memory of the session's
own; a kernel is told the addresses of as many sessions as it shall work on, and of which type they are:

    kind = kind_of(arguments)
    hand_over(arguments, memory)                 # whenever an array is replaced
    work(np.array([memory.ctypes.data]), kind)   # a kernel that calls `load(addresses[i], kind)`

Whoever stores them keeps the arrays alive, and stores them anew when one is replaced by another.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import typeof, types
from numba.extending import intrinsic

from hdraft.drafting.kernel import kernel


def kind_of(arguments: Any) -> Any:
    """Their type; of sixty arrays it takes as long to find out as a small tree."""
    return typeof(arguments)


@kernel
def hand_over(arguments: Any, memory: npt.NDArray[np.int64]) -> int:
    """Store them in `memory`, if it has room; returns how many int64s they take."""
    words = (_size_of(arguments) + 7) // 8
    if words <= len(memory):
        _store(memory.ctypes.data, arguments)
    return int(words)


@intrinsic  # type: ignore[untyped-decorator]
def load(_: Any, address: Any, kind: Any) -> Any:
    """What was stored at an address, of the type `kind`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = context.get_value_type(signature.return_type).as_pointer()
        return builder.load(builder.inttoptr(arguments[0], pointer))

    return kind.instance_type(types.int64, kind), generate


@intrinsic  # type: ignore[untyped-decorator]
def _store(_: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], builder.inttoptr(arguments[0], arguments[1].type.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, value), generate


@intrinsic  # type: ignore[untyped-decorator]
def _size_of(_: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.get_constant(types.int64, context.get_abi_sizeof(context.get_value_type(signature.args[0])))

    return types.int64(value), generate
