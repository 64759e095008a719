"""Models that the user has compiled by `torch.compile`, as a whole or in part.

Compiled code is for inputs of certain shapes, and torch gives up a model after eight of them. Static steps have few
shapes, so they run what was compiled. Steps that grow, and the prompt's, have another shape each time: they run the
model as it was before.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule

from hdraft.decoding.models.walking import modules_of

_lock = threading.Lock()
_setting = ExitStack()
_running = 0


def is_compiled(model: nn.Module) -> bool:
    """Whether the user has compiled the model or a part of it: the module itself, or its forward."""
    return any(
        isinstance(module, OptimizedModule)
        or module._compiled_call_impl is not None
        or hasattr(module.forward, "_torchdynamo_orig_callable")
        for module in modules_of(model)
    )


@contextmanager
def uncompiled() -> Iterator[None]:
    """Run what was compiled as if it had not been.

    Torch knows one such setting for the whole process: it holds while any thread needs it, and what other threads
    compiled runs uncompiled meanwhile.
    """
    global _running
    with _lock:
        if not _running:
            _setting.enter_context(torch.compiler.set_stance("force_eager"))
        _running += 1
    try:
        yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _setting.close()
