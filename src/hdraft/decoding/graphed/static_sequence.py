"""How a sequence gets into the buffers of static steps, outgrows them, and gets out again."""

from contextlib import suppress
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hdraft.decoding.cache import GrowingCache
from hdraft.decoding.graphed.static_step import EXACT_ROWS, StaticStepper, StepKind, acquire, padded, release
from hdraft.decoding.graphed.text_reader import TEXT_ROWS, TextReader
from hdraft.decoding.masks import Span

AHEAD = 4096
"""Tokens that memory is taken for at first, of a sequence that may become longer."""


@dataclass
class StaticSequence:
    """A sequence that takes static steps; before the first and after the last it is in its growing cache.

    Attributes:
        model, cache, spans: the target, the growing cache, and how far back layers look, see `layer_spans`.
        kind: how steps are to be run; not "dynamic".
        budget: the most nodes of a tree.
        max_length: the most tokens that the sequence may have.
        padding: tokens that it begins with and no token looks at.
        stepper: runs its steps, and holds the sequence meanwhile.
    """

    model: PreTrainedModel
    cache: GrowingCache
    spans: dict[str, Span] | Span
    kind: StepKind
    budget: int
    max_length: int
    padding: int
    stepper: StaticStepper | None = None

    def fits(self, length: int, rows: int) -> bool:
        """Whether a step of so many rows behind `length` tokens can be taken where the sequence is."""
        return self.stepper is not None and self.stepper.fits(length, rows)

    def enter(self, length: int, rows: int) -> str | None:
        """Move the cached sequence, of `length` tokens, to where such a step fits; returns what prevents it, if any."""
        capacity = self._capacity(length)
        rows = max(rows, 1 + self.budget)
        try:
            # an exact step is tried behind its own draft, too
            room = 2 * EXACT_ROWS if self.kind == "exact" else padded(rows)
            stepper = acquire(self.model, self.cache, self.spans, capacity + room, rows, self.kind)
            assert stepper is not None
            self._begin(stepper)
        except torch.OutOfMemoryError:
            if self.kind == "exact":
                raise
            return f"no memory for buffers of {capacity} tokens"
        return None

    def enter_to_read(self, length: int, rows: int) -> TextReader | None:
        """Move the cached sequence, of `length` tokens, to where fused layers run a pass over so many rows of text.

        That is a stepper that an earlier request has left, as the shapes of layers are known there and its kernels
        have been tried; None where there is none.
        """
        if rows > TEXT_ROWS[-1]:
            return None
        capacity, most = self._capacity(length + rows), 1 + self.budget
        stepper = acquire(self.model, self.cache, self.spans, capacity + padded(most), most, self.kind, make=False)
        if stepper is None:
            return None
        if stepper.fused and stepper.reader is None:
            with suppress(RuntimeError):  # no memory, of the device or of the host
                stepper.reader = TextReader(stepper)
        reader = stepper.reader if stepper.fused else None
        if reader is None or not reader.fits(length, rows):
            release(stepper)
            return None
        self._begin(stepper)
        return reader

    def _capacity(self, length: int) -> int:
        return min(length + max(length, AHEAD), self.max_length)

    def _begin(self, stepper: StaticStepper) -> None:
        stepper.begin(self.cache, self.padding)
        self.cache.reset()
        self.stepper = stepper

    def leave(self, length: int) -> None:
        """Move the sequence back to its cache, with the buffers that it is in, so that it takes no memory."""
        stepper, self.stepper = self.stepper, None
        if stepper is not None:
            stepper.end(self.cache, length, copy=False)
            stepper.drop()

    def close(self, length: int, keep: bool) -> None:
        """End the sequence, and leave the buffers to the next one; `keep` puts it into its cache before."""
        if self.stepper is not None:
            try:
                if keep:
                    self.stepper.end(self.cache, length)
            except torch.OutOfMemoryError:
                self.leave(length)
            else:
                stepper, self.stepper = self.stepper, None
                release(stepper)
