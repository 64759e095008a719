"""A CUDA graph for the CPU: the operations of one run, with the tensors and numbers that they had then, done again.

What a graph holds is just that: kernels, addresses, and the numbers that were true at capture. So a step that replays
right here reads all that changes from its buffers, and one that would wait for the device, or be given something by the
host, is refused, as at capture.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from hdraft.decoding.graphed.capture import capture

aten = torch.ops.aten
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.unique_dim.default,
    aten._unique2.default,
}
"""Operations whose result the host has to know, on a GPU."""

REFUSED = "operation not permitted when stream is capturing"


def refuse(operation: Any, args: Any = ()) -> None:
    """What a capture does with an operation that waits."""
    chosen = operation is aten.index.Tensor and any(each is not None and each.dtype is torch.bool for each in args[1])
    if operation in WAITS or chosen:
        raise RuntimeError(f"{REFUSED}: {operation}")


@contextmanager
def nothing_read() -> Iterator[None]:
    """No tensor's numbers are read by the host inside; on a CPU such reading passes by the operations."""

    def refused(self: Tensor, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"{REFUSED}: a tensor is read")

    with (
        mock.patch.object(Tensor, "tolist", refused),
        mock.patch.object(Tensor, "numpy", refused),
        mock.patch.object(Tensor, "cpu", refused),
    ):
        yield


class Recording(TorchDispatchMode):
    """Records what runs inside; calling it runs that again, into the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        refuse(operation, args)
        if operation is aten.lift_fresh.default and args[0].ndim:
            raise RuntimeError(f"{REFUSED}: a tensor is made of the host's numbers")
        kwargs = kwargs or {}
        result = operation(*args, **kwargs)
        made, given = tensors(result), {_memory(each) for each in tensors((args, kwargs))}
        if operation._schema.is_mutable or not all(_memory(each) in given for each in made):  # not a mere view
            self.calls.append((operation, args, kwargs, made))
        return result

    def __call__(self) -> None:
        with torch.no_grad():
            for operation, args, kwargs, made in self.calls:
                for old, new in zip(made, tensors(operation(*args, **kwargs)), strict=True):
                    if old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def tensors(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return [each for each in tree_flatten(values)[0] if isinstance(each, Tensor)]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def record(run: Callable[[], None], device: torch.device, pool: Any) -> Callable[[], None]:
    """In the place of `hdraft.decoding.graphed.capture.capture`, where there are no graphs."""
    if device.type == "cuda":
        return capture(run, device, pool)
    recording = Recording()
    with recording, nothing_read():
        run()
    return recording
