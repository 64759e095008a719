"""Keys and values in buffers that never move: one address for every step, as graphs and compiled code need it.

All layers that look equally far back share one layout, and of those the layers of one shape share one buffer, so that
one gather moves an accepted path in all of them:

    slots of a layout   | the text so far | root | 0 1 2 3 4 - - |    a step of 8 rows wrote its root and five nodes
    keep(path=[1, 3])   | the text so far   root   1 3 |              nodes 1 and 3 were accepted

What a step may look at is told by its mask alone: it is given all of the first `columns` slots, used or not.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.growing_layer import GrowingLayer

LEAST = 256
"""Slots in the smallest bucket."""

SPARE = 8
"""Slots beyond the largest bucket: no step is given the whole buffer, which compiled code would take for a rule."""


def bucket(slots: int) -> int:
    """The least size that holds so many slots: 256, 512, 768, 1024, and from there on four sizes to a doubling.

    A step reads its whole bucket, and each bucket needs a graph of its own: at most a quarter of what is read is not
    needed.
    """
    unit = max(LEAST, 1 << max((slots - 1).bit_length() - 3, 0))
    return -(-slots // unit) * unit


class Layout:
    """Where the tokens stand in the buffers of the layers that look back over one window.

    Attributes:
        window: how many tokens a token of these layers sees, itself included; None for all.
        capacity: slots.
        dropped: tokens before slot 0: out of the window for good.
        buffers: [2, layers, heads, capacity, size], keys and values, for each shape of a layer; where their sizes
            differ, two of [layers, heads, capacity, size]. They are some slots longer than `capacity` says.
        slots: int64[rows], where a step writes.
        ramp: int64[columns], the numbers of the slots that it is given.
        start: int64[], the first slot that it writes.
        length: int64[1], tokens before the step.
    """

    slots: Tensor
    ramp: Tensor
    start: Tensor
    length: Tensor

    def __init__(self, window: int | None, capacity: int, device: torch.device) -> None:
        self.window = window
        self.capacity = capacity
        self.dropped = 0
        self.buffers: list[Tensor] = []
        self.numbers = torch.arange(capacity, device=device)

    def add(self, keys: Tensor, values: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """Buffers [layers, heads, capacity, size] for so many layers whose keys and values are as these."""
        # zeros: what is masked is multiplied by zero, which no stray NaN must survive
        shapes = [(layers, states.shape[1], self.capacity + SPARE, states.shape[3]) for states in (keys, values)]
        if shapes[0] == shapes[1]:
            both = keys.new_zeros((2, *shapes[0]))
            self.buffers.append(both)
            return both[0], both[1]
        made = keys.new_zeros(shapes[0]), values.new_zeros(shapes[1])
        self.buffers += made
        return made

    def visible(self, length: int) -> int:
        """How many of `length` tokens the next one may look back at."""
        return length if self.window is None else min(length, self.window - 1)

    def crowded(self, length: int, rows: int) -> bool:
        """Whether a window has to be moved, for a step of so many rows behind `length` tokens."""
        slots = length - self.dropped
        return slots + rows > self.capacity and slots > self.visible(length)

    def make_room(self, length: int, rows: int) -> None:
        """Move a window that has come to the end of its buffers to their front."""
        if self.crowded(length, rows):
            visible = self.visible(length)
            first = length - self.dropped - visible
            for buffer in self.buffers:
                buffer[..., :visible, :] = buffer[..., first : first + visible, :].clone()
            self.dropped += first


class StaticLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The keys and values of one attention layer: [1, heads, capacity, size] each."""

    keys: Tensor
    values: Tensor

    is_compileable = True

    def __init__(self, layout: Layout, keys: Tensor, values: Tensor) -> None:
        self.layout = layout
        self.keys = keys
        self.values = values
        self.is_initialized = True
        self.is_sliding = layout.window is not None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write entries [1, heads, rows, size] to the step's slots; return all that it is given."""
        self.keys.index_copy_(2, self.layout.slots, key_states)
        self.values.index_copy_(2, self.layout.slots, value_states)
        columns = self.layout.ramp.shape[0]  # no attribute of its own: compiled code takes it for a variable
        return self.keys[:, :, :columns], self.values[:, :, :columns]

    def get_seq_length(self) -> int:
        """int64[1] rather: a number would be compiled in."""
        return cast(int, self.layout.length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All slots of the step's bucket."""
        return self.layout.ramp.shape[0], 0

    def get_max_length(self) -> int:
        """The slots there are."""
        return self.layout.capacity

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: its buffers are there."""


class StaticCache(Cache):
    """A `StaticLayer` for each layer of a `GrowingCache`, with room for so many tokens.

    Args:
        growing: holds text, so that shapes are known.
        capacity: the most tokens that the sequence will have, an unverified tree's included.
        rows: the most tokens of one step.

    Raises:
        torch.OutOfMemoryError: it does not fit.
    """

    def __init__(self, growing: GrowingCache, capacity: int, rows: int) -> None:
        self.layouts: dict[int | None, Layout] = {}
        layers = list(growing.layers)
        alike: dict[tuple[object, ...], list[int]] = {}
        for index, layer in enumerate(layers):
            if isinstance(layer, GrowingLayer) and layer.is_initialized:
                keys, values = layer.key_buffer, layer.value_buffer
                shape = (layer.window, keys.shape[1], keys.shape[3], values.shape[1], values.shape[3], keys.dtype)
                alike.setdefault(shape, []).append(index)
        with torch.inference_mode(False):  # written to later, perhaps outside the mode
            for indices in alike.values():
                first = cast(GrowingLayer, layers[indices[0]])
                if first.window not in self.layouts:
                    # a window is moved to the front of its buffers once it has passed half of them
                    slots = capacity if first.window is None else min(capacity, 2 * first.window + rows)
                    self.layouts[first.window] = Layout(first.window, bucket(slots), first.key_buffer.device)
                layout = self.layouts[first.window]
                keys, values = layout.add(first.key_buffer, first.value_buffer, len(indices))
                for place, index in enumerate(indices):
                    layers[index] = StaticLayer(layout, keys[place : place + 1], values[place : place + 1])
        super().__init__(layers=layers)

    def fits(self, length: int, rows: int) -> bool:
        """Whether a step of so many rows behind `length` tokens fits."""
        return all(layout.visible(length) + rows <= layout.capacity for layout in self.layouts.values())

    def prepare(self, length: int, rows: int) -> tuple[int, ...]:
        """Make room for a step of so many rows behind `length` tokens; the slots that each layout gives it."""
        columns = []
        for layout in self.layouts.values():
            layout.make_room(length, rows)
            # by the text's length, of which a window's slots are a part: no bucket comes a second time
            columns.append(bucket(min(length + rows, layout.capacity)))
        return tuple(columns)

    def crowded(self, length: int, rows: int) -> bool:
        """Whether `prepare` will move tokens to other slots."""
        return any(layout.crowded(length, rows) for layout in self.layouts.values())

    def keep(self, start: int, path: list[int]) -> None:
        """Keep the first `start` tokens and, of those after them, the ones that `path` numbers in ascending order."""
        moves = torch.tensor([path, list(range(len(path)))], dtype=torch.int64)
        device = next(iter(self.layouts.values())).numbers.device
        self.move(moves.to(device, non_blocking=True), [start - layout.dropped for layout in self.layouts.values()])

    def move(self, moves: Tensor, starts: Iterable[Tensor | int]) -> None:
        """Copy what is in some slots to others, in every layer: all is read before any is written.

        Args:
            moves: int64[2, n], the slots from which and to which, counted from …
            starts: … one of each layout's.
        """
        found = []
        for layout, start in zip(self.layouts.values(), starts, strict=True):
            sources, targets = moves + start
            found += [(buffer, targets, buffer.index_select(-2, sources)) for buffer in layout.buffers]
        for buffer, targets, states in found:
            buffer.index_copy_(-2, targets, states)

    def load(self, growing: GrowingCache) -> None:
        """Take in what `growing` holds."""
        length = growing.get_seq_length()
        if not length:  # its layers may have no shape yet
            for layout in self.layouts.values():
                layout.dropped = 0
            return
        for layout in self.layouts.values():
            layout.dropped = length - layout.visible(length)
        for layer, source in self._pairs(growing):
            visible = layer.layout.visible(length)
            layer.keys[:, :, :visible] = cast(Tensor, source.keys)
            layer.values[:, :, :visible] = cast(Tensor, source.values)

    def store(self, growing: GrowingCache, length: int, copy: bool) -> None:
        """Give `growing` the first `length` tokens: a copy, or the buffers themselves, which takes no memory."""
        for layer, target in self._pairs(growing):
            layout = layer.layout
            end = length - layout.dropped
            visible = slice(end - layout.visible(length), end)
            keys, values = layer.keys[:, :, visible], layer.values[:, :, visible]
            target.hold(keys.clone() if copy else keys, values.clone() if copy else values, length)

    def _pairs(self, growing: GrowingCache) -> Iterable[tuple[StaticLayer, GrowingLayer]]:
        for layer, other in zip(self.layers, growing.layers, strict=True):
            if isinstance(layer, StaticLayer):
                yield layer, cast(GrowingLayer, other)
