"""The state of a model that its graphs depend on: addresses of tensors, settings of modules, hooks.

A graph replays kernels with the addresses and numbers of its capture: are they still what the model would run with?
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.models.walking import modules_of

State = tuple[object, ...]
"""Equal for a model that has not changed."""

_SETTINGS = frozenset((bool, int, float, str))

_HOOKS = tuple(name for name in vars(torch.nn.Module()) if name.endswith("_hooks"))

_SKIPPED = frozenset(vars(torch.nn.Module())) - {"training", "_parameters", "_buffers"}
"""What every module has and no pass reads, or is looked at by itself: most of what there is."""


def model_state(model: PreTrainedModel) -> State:
    """The state of a model; some milliseconds for one of 32 layers.

    What a module's forward reads from elsewhere, a global variable for one, is not in it.
    """
    parts: list[object] = [model.config.to_json_string(use_diff=False), model.config._attn_implementation]
    for module in modules_of(model):
        own = vars(module)
        parts.append(type(module))
        for name in _HOOKS:
            if hooks := own.get(name):
                parts += hooks  # a hook's number is never used again; an address may be
        for name, value in own.items():
            if name not in _SKIPPED:
                parts.append(value if type(value) in _SETTINGS else _plain(value))
    return tuple(parts)


def _plain(value: Any) -> object:
    if isinstance(value, Tensor):
        if type(value) not in (Tensor, torch.nn.Parameter) and hasattr(value, "__tensor_flatten__"):
            return tuple(_plain(getattr(value, name)) for name in value.__tensor_flatten__()[0])
        return value.data_ptr(), value.dtype, value.shape, value.stride()
    if isinstance(value, dict):
        return tuple((str(key), _plain(each)) for key, each in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return tuple(map(_plain, value))
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return id(value) if callable(value) else type(value)
