"""`stream`: the tokens of `generate`, one at a time, as they are verified."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.decoding.adapters import PER_REQUEST
from hdraft.decoding.generate import Steps, call, starter
from hdraft.decoding.static import StepKind
from hdraft.decoding.statistics import Statistics
from hdraft.decoding.support import UnsupportedError
from hdraft.drafting.drafter import Drafter
from hdraft.drafting.tree import Source


@dataclass(frozen=True, slots=True)
class StreamedToken:
    """One emitted token.

    Attributes:
        id: the token.
        text: the text it completes; '' without a tokenizer, or while a character is incomplete. The pieces of a
            request join to the decoded whole.
        source: the database that had drafted it; None for the target's own.
    """

    id: int
    text: str
    source: Source | None


def stream(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    drafter: Drafter | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    budget: int = 64,
    statistics: Statistics | None = None,
    costs: npt.NDArray[np.float64] | None = None,
    step: StepKind | None = None,
    **options: Any,
) -> Generator[StreamedToken, None, None]:
    """Yield the tokens that `generate` would return, with the same arguments.

    Arguments are checked at the call; the model runs as the tokens are taken. Closing the generator ends the request.

    Args:
        tokenizer: decodes the tokens, without special ones, and serves `stop_strings`.
        model, input_ids, drafter, budget, statistics, costs, step, options: as for `generate`.

    Raises:
        UnsupportedError, ValueError: as `generate` does.
    """
    for name in PER_REQUEST:
        if options.get(name) is not None:
            raise UnsupportedError(f"{name} is not supported in a stream: call set_adapter before it, or leave it out")
    start = starter(drafter, budget, statistics, costs, step, options.get("streamer"))
    return _tokens(call(model, input_ids, start, {**options, "tokenizer": tokenizer}), tokenizer)


def _tokens(steps: Steps, tokenizer: PreTrainedTokenizerBase | None) -> Generator[StreamedToken, None, None]:
    pieces = None if tokenizer is None else TextPieces(tokenizer)
    try:
        for step in steps:
            last = len(step.tokens) - 1
            for index, (token, source) in enumerate(zip(step.tokens, step.sources, strict=True)):
                text = "" if pieces is None else pieces.add(token, last=step.finished and index == last)
                yield StreamedToken(token, text, source)
    finally:
        steps.close()


class TextPieces:
    """Text of a growing token sequence, piece by piece, no character cut in two.

    A token's text can depend on its neighbours (a leading space, bytes of one character). So each piece is the
    difference between two decodings that start at the same earlier token, and is held back while it ends in an
    incomplete character, which decodes to U+FFFD.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        cleans = getattr(tokenizer, "clean_up_tokenization_spaces", False)
        self.backend = None if cleans else getattr(tokenizer, "backend_tokenizer", None)
        self.ids: list[int] = []
        self.context = 0  # decodings start here
        self.shown = 0  # tokens whose text has been returned

    def add(self, token: int, last: bool = False) -> str:
        """The text that `token` completes; with the `last` token, all that was held back."""
        self.ids.append(token)
        before = self._decode(self.ids[self.context : self.shown])
        after = self._decode(self.ids[self.context :])
        if not last and (after.endswith("\ufffd") or len(after) <= len(before)):
            return ""
        self.context, self.shown = self.shown, len(self.ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        if self.backend is not None:  # what the tokenizer itself calls, without the several times as long way there
            return str(self.backend.decode(ids, skip_special_tokens=True))
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))
