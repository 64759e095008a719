"""Keys and values with room to grow, from which the rejected branches of a draft tree are dropped in place.

transformers' `DynamicLayer` concatenates its whole cache at every step. Here each layer owns buffers a quarter longer
than it needs, a step writes its new entries behind the old ones, and `keep` moves the accepted path's entries to the
front of the step's:

    slots of a layer   | the text so far | root | 0 1 2 3 4 |    a step wrote its root and a tree of five nodes
    keep(path=[1, 3])  | the text so far   root   1 3 |          nodes 1 and 3 were accepted
"""

from copy import copy
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer


class GrowingLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one attention layer for one sequence.

    Attributes:
        length: tokens seen so far, those of an unverified draft tree included.
        key_buffer, value_buffer: [1, heads, capacity, head size]; slot i holds token `dropped` + i.
    """

    key_buffer: Tensor
    value_buffer: Tensor

    is_sliding = False
    is_croppable = True

    def __init__(self, window: int | None = None) -> None:
        self.is_initialized = False
        self.window = window
        self.is_sliding = window is not None
        self.length = 0
        self.dropped = 0  # tokens before slot 0: out of the window for good

    def visible(self) -> int:
        """How many of the cached tokens the next token may look back at."""
        return self.length if self.window is None else min(self.length, self.window - 1)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append entries [1, heads, n, head size]; return all that the appended tokens may look at, as views."""
        new, visible = key_states.shape[-2], self.visible()
        used = self.length - self.dropped
        stale = used - visible
        full = not self.is_initialized or used + new > self.key_buffer.shape[-2]
        # outside of inference mode, buffers made inside cannot be written
        frozen = not full and self.key_buffer.is_inference() and not torch.is_inference_mode_enabled()
        if full or frozen or stale > 1024 + visible:
            self._move(key_states, value_states, visible, new)
            used, stale = visible, 0
        end = used + new
        self.key_buffer[:, :, used:end] = key_states
        self.value_buffer[:, :, used:end] = value_states
        self.length += new
        return self.key_buffer[:, :, stale:end], self.value_buffer[:, :, stale:end]

    @property
    def keys(self) -> Tensor | None:  # type: ignore[override]
        """[1, heads, m, head size], of the tokens that the next one may look back at; None before the first."""
        return self._entries("key_buffer")

    @property
    def values(self) -> Tensor | None:  # type: ignore[override]
        """As `keys`."""
        return self._entries("value_buffer")

    def _entries(self, buffer: str) -> Tensor | None:
        end = self.length - self.dropped
        return cast(Tensor, getattr(self, buffer))[:, :, end - self.visible() : end] if self.is_initialized else None

    def _move(self, key_states: Tensor, value_states: Tensor, visible: int, new: int) -> None:
        """Take larger buffers, and leave behind what no token will look at again."""
        capacity = visible + new + max(256, (visible + new) // 4)
        used = self.length - self.dropped
        for name, states in (("key_buffer", key_states), ("value_buffer", value_states)):
            buffer = states.new_empty((1, states.shape[1], capacity, states.shape[3]))
            if visible:
                buffer[:, :, :visible] = getattr(self, name)[:, :, used - visible : used]
            setattr(self, name, buffer)
        self.dropped = self.length - visible
        self.is_initialized = True

    def hold(self, keys: Tensor, values: Tensor, length: int) -> None:
        """Take these entries, [1, heads, visible, head size], for those of the last of `length` tokens."""
        self.key_buffer, self.value_buffer = keys, values
        self.length, self.dropped = length, length - keys.shape[2]
        self.is_initialized = True

    def keep(self, start: int, path: list[int] | Tensor, count: int) -> None:
        """Keep the first `start` tokens and, of those after them, the `count` that `path` numbers in ascending order.

        A `path` that is a list is the first `count` tokens: nothing moves.
        """
        if not self.is_initialized:  # a layer that its model never uses
            return
        if isinstance(path, Tensor):
            slot = start - self.dropped
            slots = (path + slot).to(self.key_buffer.device)
            for buffer in (self.key_buffer, self.value_buffer):
                buffer[:, :, slot : slot + count] = buffer.index_select(2, slots)
        self.crop(start + count - self.length)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens: as many as `tokens_to_remove`, a negative number, says.

        Raises:
            ValueError: a positive number, or the window before those tokens is gone already.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}) is not supported: pass -n to remove the last n tokens")
        self.length = max(self.length + tokens_to_remove, 0)
        if self.length - self.dropped < self.visible():
            raise ValueError(f"cannot remove {-tokens_to_remove} tokens: the window before them is no longer cached")

    def holds(self, length: int) -> bool:
        """Whether the first `length` tokens are cached, as far as the next one looks back at them."""
        visible = length if self.window is None else min(length, self.window - 1)
        return length <= self.length and length - self.dropped >= visible

    def fork(self, length: int) -> "GrowingLayer":
        """Another layer with the first `length` tokens, which must be held; neither changes the other."""
        other = GrowingLayer(self.window)
        if self.is_initialized:
            end = length - self.dropped
            begin = end - (length if self.window is None else min(length, self.window - 1))
            keys, values = (buffer[:, :, begin:end].clone() for buffer in (self.key_buffer, self.value_buffer))
            other.hold(keys, values, length)
        return other

    @property
    def nbytes(self) -> int:
        """Of its buffers."""
        return self.key_buffer.nbytes + self.value_buffer.nbytes if self.is_initialized else 0

    def get_seq_length(self) -> int:
        """Tokens seen so far."""
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many entries `query_length` further tokens will attend to, and the position of the first of them."""
        visible = self.visible()
        return visible + query_length, self.length - visible

    def get_max_length(self) -> int:
        """-1: it grows without limit."""
        return -1

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Buffers are made by the first `update`, which knows the shapes."""

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.window)  # type: ignore[misc]


NO_TOKENS = np.empty((0, 3), np.int64)


class UnknownLayerError(LookupError):
    """A layer keeps more than keys and values; the argument is the name of its cache's class."""


def check_layers(config: PretrainedConfig) -> None:
    """Refuse a model whose layers keep more than keys and values.

    Raises:
        UnknownLayerError: a layer keeps a recurrent, convolutional or indexed state, which can be neither dropped nor
            moved.
    """
    for layer in DynamicCache(config=config).layers:
        _growing(layer)


def _growing(layer: Any) -> Any:
    if type(layer) is DynamicLayer:
        return GrowingLayer()
    if type(layer) is DynamicSlidingWindowLayer:
        return GrowingLayer(layer.sliding_window)
    if type(layer).__name__ == "DummyLayer":  # of a layer that reads another's cache
        return layer
    raise UnknownLayerError(type(layer).__name__)


class GrowingCache(Cache):
    """A `GrowingLayer` in the place of each layer of transformers' `DynamicCache`; for one sequence.

    Attributes:
        tokens: int64[m, 3], of the first m cached tokens, those that are known: id, position, and whether it may be
            looked at. Between requests these are all.
        model: which model with which weights the keys and values are from.

    Raises:
        UnknownLayerError: see `check_layers`.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[_growing(layer) for layer in DynamicCache(config=config).layers])
        self.tokens = NO_TOKENS
        self.model = 0

    def agrees(self, tokens: npt.NDArray[np.int64]) -> int:
        """How many tokens `agree` would keep."""
        m = min(len(self.tokens), len(tokens) - 1)
        differ = np.flatnonzero((self.tokens[:m] != tokens[:m]).any(-1))
        kept = int(differ[0]) if len(differ) else m
        return kept if all(layer.holds(kept) for layer in self._used()) else 0

    def agree(self, tokens: npt.NDArray[np.int64]) -> int:
        """Keep, of the cached tokens, the first that are those of `tokens`, but its last; returns how many."""
        kept = self.agrees(tokens)
        if kept:
            self.keep(kept, [])
            self.tokens = self.tokens[:kept]
        else:
            self.reset()
        return kept

    def fork(self, length: int) -> "GrowingCache":
        """Another cache with the first `length` tokens, as many as `agrees` said; neither changes the other."""
        other = copy(self)
        other.layers = [layer.fork(length) if isinstance(layer, GrowingLayer) else copy(layer) for layer in self.layers]
        other.tokens = self.tokens[:length]
        return other

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        return sum(layer.nbytes for layer in self._used())

    def _used(self) -> list[GrowingLayer]:
        return [layer for layer in self.layers if isinstance(layer, GrowingLayer) and layer.is_initialized]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens; see `GrowingLayer.crop`."""
        super().crop(tokens_to_remove)
        self.tokens = self.tokens[: self.get_seq_length()]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()  # type: ignore[no-untyped-call]
        self.tokens = NO_TOKENS

    def keep(self, start: int, path: list[int]) -> None:
        """Keep the first `start` tokens and, of those after them, the ones that `path` numbers in ascending order."""
        count = len(path)
        moved = path if not count or path[-1] == count - 1 else torch.tensor(path)
        for layer in self.layers:
            if isinstance(layer, GrowingLayer):
                layer.keep(start, moved, count)
