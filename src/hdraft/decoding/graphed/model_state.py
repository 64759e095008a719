"""The state of a model that its graphs depend on: addresses of tensors, settings of modules, hooks.

A graph replays kernels with the addresses and numbers of its capture: are they still what the model would run with?
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hdraft.decoding.models.walking import modules_of

State = tuple[object, ...]
"""Equal for a model that has not changed."""

_SETTINGS = frozenset((bool, int, float, str))


def model_state(model: PreTrainedModel) -> State:
    """The state of a model; some milliseconds for one of 32 layers.

    What a module's forward reads from elsewhere, a global variable for one, is not in it.
    """
    parts: list[object] = [model.config.to_json_string(use_diff=False), model.config._attn_implementation]
    for module in modules_of(model):
        parts.append(type(module))
        for name, value in vars(module).items():
            kind = type(value)
            if kind in _SETTINGS:
                parts.append(value)
            elif (kind is dict or kind is OrderedDict) and not value:
                pass
            elif name.endswith("_hooks"):
                parts += value  # a hook's number is never used again; an address may be
            elif name not in ("_modules", "_non_persistent_buffers_set"):
                parts.append(_plain(value))
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
