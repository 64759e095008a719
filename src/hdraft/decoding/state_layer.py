"""Recurrent and convolutional states, which a rejected draft is in for good: they are put back as they were before it.

A recurrent state is one tensor that every token changes. Before a pass with drafts it is copied; where a draft is
rejected, the copy is put back, and the tokens that were accepted are read again, together with the next draft. The
state of a convolution is the last few of its inputs. Where a model has no others, those of rejected tokens are cut off,
and nothing is read again:

    inputs of a convolution of width 3    a b c | d e f g     the text so far, then a pass over a token and three drafts
    the state after the pass                      e f g
    drop(2): f and g were rejected            c d e
"""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import LinearAttentionLayer

from hdraft.decoding.growing_layer import GrowingLayer


class StateLayer(LinearAttentionLayer):
    """The states of one layer for one sequence, numbered: transformers' own, and the inputs of convolutions."""

    def __init__(self, number_of_states: int = 1) -> None:
        super().__init__(number_of_states=number_of_states)
        self._inputs: dict[int, Tensor] | None = None  # of the pass, and before them the state; None: not asked for
        self._opaque = False  # a convolution whose state is not its last inputs

    def update_conv_state(
        self, conv_states: Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> Tensor:
        """Take in a convolution's inputs, [1, channels, n]; return them behind those that it looks back at."""
        inputs: Tensor = super().update_conv_state(conv_states, state_idx, conv_kernel_size, **kwargs)
        if conv_kernel_size is None:
            self._opaque = True
        elif self._inputs is not None:
            self._inputs[state_idx] = inputs
        return inputs

    def states(self) -> list[Tensor]:
        """All that it keeps: those of them that are there already."""
        kinds = self.conv_states, self.recurrent_states
        return [state for kind in kinds for state in kind.values() if state is not None]

    def recurs(self) -> bool:
        """Whether it keeps more than inputs of convolutions, as a first pass has shown."""
        return self._opaque or any(self.is_recurrent_states_initialized.values())

    def watch(self) -> None:
        """Keep the inputs of the next pass."""
        self._inputs = {}

    def drop(self, tokens: int) -> None:
        """Cut off the inputs of the last tokens of the pass."""
        for index, read in (self._inputs or {}).items():
            kept = read[..., : read.shape[-1] - tokens]
            state = cast(Tensor, self.conv_states[index])
            width = state.shape[-1]
            state.copy_(pad(kept, (max(0, width - kept.shape[-1]), 0))[..., -width:])

    def forget_inputs(self) -> None:
        """Keep the inputs of passes no longer."""
        self._inputs = None

    def fork(self, length: int) -> "StateLayer":
        """Another layer like it, of all the text that it has read; neither changes the other."""
        return deepcopy(self)

    @property
    def nbytes(self) -> int:
        """Of its states."""
        return sum(state.nbytes for state in self.states())

    def thaw(self) -> None:
        """Make states writable that a pass in inference mode has made, outside of it."""
        for kind in (self.conv_states, self.recurrent_states):
            for index, state in kind.items():
                if state is not None and _frozen(state):
                    kind[index] = state.clone()


class HybridLayer(StateLayer, GrowingLayer):  # type: ignore[misc, override]
    """The states of a layer that also attends, and the keys and values of its attention."""

    is_compileable = False  # its keys and values grow

    def __init__(self, window: int | None = None, number_of_states: int = 1) -> None:
        GrowingLayer.__init__(self, window)
        StateLayer.__init__(self, number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Make room for states; keys and values have theirs from the first `update`."""
        if not args:
            StateLayer.lazy_initialization(self, **kwargs)

    def reset(self) -> None:
        """Forget everything."""
        StateLayer.reset(self)  # type: ignore[no-untyped-call]
        GrowingLayer.__init__(self, self.window)

    @property
    def nbytes(self) -> int:
        """Of its states, and of the buffers of keys and values."""
        buffers = self.key_buffer.nbytes + self.value_buffer.nbytes if self.is_initialized else 0
        return buffers + sum(state.nbytes for state in self.states())


class HeldStates:
    """The states of all layers as they were before the last pass with drafts, in memory that is taken once."""

    def __init__(self, layers: Iterable[StateLayer]) -> None:
        self._layers = list(layers)
        self._states: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._marks: list[float] = []

    def __len__(self) -> int:
        return len(self._layers)

    def recur(self) -> bool:
        """Whether rejected tokens cannot be cut off, as far as passes have shown."""
        return any(layer.recurs() for layer in self._layers)

    def mark(self) -> None:
        """Note what the states are, for `unchanged`."""
        self._marks = self._sums()

    def unchanged(self) -> bool:
        """Whether the states are those that were noted: who is handed a cache may have gone on with it."""
        return self._marks == self._sums()

    def _sums(self) -> list[float]:
        sums = [state.double().sum().cpu() for layer in self._layers for state in layer.states()]
        return torch.stack(sums).tolist() if sums else []

    def thaw(self) -> None:
        """Make the states writable, before any pass."""
        for layer in self._layers:
            layer.thaw()

    def hold(self) -> None:
        """Copy the states, before a pass with drafts, which is never the first."""
        for layer in self._layers:
            layer.watch()
        self._states = [state for layer in self._layers for state in layer.states()] if self.recur() else []
        fits = [each.shape for each in self._copies] == [each.shape for each in self._states]
        if not fits or any(map(_frozen, self._copies[:1])):
            self._copies = [torch.empty_like(state) for state in self._states]
        if self._states:
            torch._foreach_copy_(self._copies, self._states)

    def drop(self, tokens: int) -> bool:
        """Take the last tokens of that pass out of the states; False where it is undone, to be read again without."""
        if not self.recur():
            for layer in self._layers:
                layer.drop(tokens)
            return True
        torch._foreach_copy_(self._states, self._copies)
        return False

    def release(self) -> None:
        """Leave the states as they are."""
        for layer in self._layers:
            layer.forget_inputs()


def _frozen(tensor: Tensor) -> bool:
    """Whether it was made in inference mode, and cannot be written to here, outside of it."""
    return tensor.is_inference() and not torch.is_inference_mode_enabled()
