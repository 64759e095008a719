"""The cache of one sequence: what each layer keeps of the tokens read, from which rejected drafts can be taken out."""

from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PretrainedConfig
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from hdraft.decoding.growing_layer import GrowingLayer
from hdraft.decoding.state_layer import HeldStates, HybridLayer, StateLayer


class UnknownLayerError(LookupError):
    """A layer keeps something that is not known; the argument is the name of its cache's class."""


NO_TOKENS = np.empty((0, 3), np.int64)

_KNOWN = GrowingLayer, StateLayer


class GrowingCache(Cache):
    """A `GrowingLayer` or a `StateLayer` in the place of each layer of transformers' `DynamicCache`; for one sequence.

    Attributes:
        tokens: int64[m, 3], of the first m cached tokens, those that are known: id, position, and whether it may be
            looked at. Between requests these are all.
        model: which model with which weights the keys and values are from.
        states: those of layers that keep more than keys and values.

    Raises:
        UnknownLayerError: see `keeps_states`.
    """

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(layers=[_growing(layer) for layer in DynamicCache(config=config).layers])
        self.states = HeldStates(layer for layer in self.layers if isinstance(layer, StateLayer))
        self.tokens = NO_TOKENS
        self.model = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read, an unverified draft included where a layer attends; else those of earlier requests."""
        if any(isinstance(layer, CacheLayerMixin) for layer in self.layers):
            return super().get_seq_length(layer_idx)
        return len(self.tokens)

    def agrees(self, tokens: npt.NDArray[np.int64]) -> int:
        """How many tokens `agree` would keep."""
        m = min(len(self.tokens), len(tokens) - 1)
        differ = np.flatnonzero((self.tokens[:m] != tokens[:m]).any(-1))
        kept = int(differ[0]) if len(differ) else m
        if len(self.states) and (kept < len(self.tokens) or not self.states.unchanged()):  # no way back
            return 0
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
        other.layers = [layer.fork(length) if isinstance(layer, _KNOWN) else copy(layer) for layer in self.layers]
        other.states = HeldStates(layer for layer in other.layers if isinstance(layer, StateLayer))
        other.states.mark()
        other.tokens = self.tokens[:length]
        return other

    @property
    def nbytes(self) -> int:
        """Of all buffers and states."""
        return sum(layer.nbytes for layer in self.layers if isinstance(layer, _KNOWN))

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


def keeps_states(config: PretrainedConfig) -> bool:
    """Whether a model's layers keep recurrent or convolutional states, beside keys and values or instead of them.

    Raises:
        UnknownLayerError: a layer keeps something else, as an index is, which can be neither dropped nor moved.
    """
    return any(isinstance(_growing(layer), StateLayer) for layer in DynamicCache(config=config).layers)


def _growing(layer: Any) -> Any:
    kind = type(layer)
    if kind is DynamicLayer:
        return GrowingLayer()
    if kind is DynamicSlidingWindowLayer:
        return GrowingLayer(layer.sliding_window)
    if kind is LinearAttentionLayer:
        return StateLayer(layer.number_of_states)
    if kind is LinearAttentionAndFullAttentionLayer:
        return HybridLayer(None, layer.number_of_states)
    if kind is LinearAttentionAndSlidingWindowAttentionLayer:
        return HybridLayer(layer.sliding_window, layer.number_of_states)
    if kind.__name__ == "DummyLayer":  # of a layer that reads another's cache
        return layer
    raise UnknownLayerError(kind.__name__)
