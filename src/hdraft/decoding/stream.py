"""`stream`: the tokens of `generate`, one at a time, as they are verified; `stream_steps`: those of a step together."""

import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hdraft.decoding.generate import Steps, call_generate
from hdraft.decoding.graphed.static_step import StepKind
from hdraft.decoding.models.adapters import PER_REQUEST
from hdraft.decoding.models.support import UnsupportedError
from hdraft.decoding.request import AnyDrafter, DecodingRequest
from hdraft.decoding.stats import GenerationStats
from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.tree import DraftTree, Source

DECODING = frozenset(("skip_special_tokens", "clean_up_tokenization_spaces", "spaces_between_special_tokens"))
"""Arguments of a tokenizer's `decode` that `stream` takes."""


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


@dataclass(frozen=True, slots=True)
class StreamedStep:
    """What one step emitted.

    Attributes:
        tokens: in order; none after a chunk of the prompt that is not its last, see `prefill_chunk_size`.
        tree: the draft tree that it verified.
        accepted: the nodes of the tree that hold the tokens, one short if the last token was not drafted.
        finished: whether the request ends with the last token.
        rows: float[1 + n, vocabulary], the target's logits after the text and after each node; until the next step.
    """

    tokens: list[StreamedToken]
    tree: DraftTree
    accepted: list[int]
    finished: bool
    rows: Tensor | None

    def logits(self) -> Tensor:
        """float[m, vocabulary], what the target gave for each token, before any processing; until the next step."""
        assert self.rows is not None, "a step without tokens has none"
        chosen = [0, *(node + 1 for node in self.accepted)][: len(self.tokens)]
        return self.rows[torch.tensor(chosen, device=self.rows.device)]


def stream(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    drafter: AnyDrafter = "auto",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    budget: int = 64,
    statistics: GenerationStats | None = None,
    costs: npt.NDArray[np.float64] | None = None,
    step: StepKind | None = None,
    references: Sequence[str | TokenIds] = (),
    **options: Any,
) -> Generator[StreamedToken, None, None]:
    """Yield the tokens that `generate` would return, with the same arguments.

    Arguments are checked at the call; the model runs as the tokens are taken. Closing the generator ends the request.

    Args:
        tokenizer: decodes the tokens, and serves `stop_strings` and `references`.
        model, input_ids, drafter, budget, statistics, costs, step, references, options: as for `generate`; those in
            `DECODING` are for `tokenizer.decode`, as in `TextIteratorStreamer`. Special tokens are left out by default.

    Raises:
        UnsupportedError, ValueError: as `generate` does.
    """
    steps = stream_steps(
        model,
        input_ids,
        drafter,
        tokenizer=tokenizer,
        budget=budget,
        statistics=statistics,
        costs=costs,
        step=step,
        references=references,
        **options,
    )
    return _tokens(steps)


def stream_steps(
    model: PreTrainedModel,
    input_ids: Tensor | None = None,
    drafter: AnyDrafter = "auto",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    budget: int = 64,
    statistics: GenerationStats | None = None,
    costs: npt.NDArray[np.float64] | None = None,
    step: StepKind | None = None,
    references: Sequence[str | TokenIds] = (),
    **options: Any,
) -> Generator[StreamedStep, None, None]:
    """Yield what `stream` does, step by step, with the draft trees and the target's logits.

    Args:
        model, input_ids, drafter, tokenizer, budget, statistics, costs, step, references, options: as for `stream`.

    Raises:
        UnsupportedError, ValueError: as `generate` does.
    """
    for name in PER_REQUEST:
        if options.get(name) is not None:
            raise UnsupportedError(f"{name} is not supported in a stream: call set_adapter before it, or leave it out")
    decoding = {name: options.pop(name) for name in DECODING & options.keys()}
    pieces = None if tokenizer is None else TextPieces(tokenizer, **decoding)
    request = DecodingRequest(drafter, budget, costs, step, statistics, options.get("streamer"), references)
    options["tokenizer"] = tokenizer
    return call_generate(model, input_ids, request, lambda steps: _steps(steps, pieces), options)


def _tokens(steps: Generator[StreamedStep, None, None]) -> Generator[StreamedToken, None, None]:
    with closing(steps):
        for step in steps:
            yield from step.tokens


def _steps(steps: Steps, pieces: "TextPieces | None") -> Generator[StreamedStep, None, None]:
    with closing(steps):
        for emitted in steps:
            last = len(emitted.tokens) - 1
            tokens = []
            for index, (token, source) in enumerate(zip(emitted.tokens, emitted.sources, strict=True)):
                text = "" if pieces is None else pieces.add(token, last=emitted.finished and index == last)
                tokens.append(StreamedToken(token, text, source))
            yield StreamedStep(tokens, emitted.tree, emitted.nodes, emitted.finished, emitted.logits)


class TextPieces:
    """Text of a growing token sequence, piece by piece, no character cut in two.

    A token's text can depend on its neighbours (a leading space, bytes of one character). So each piece is what a token
    adds to the decoding of a few tokens before it, and is held back while it ends in an incomplete character, which
    decodes to U+FFFD. The tokens before it are those of the last piece, if decoded alone they are what they were among
    the others. With `▁x` for a word and `<F0>` for a byte:

        token          decoded, from   to                     piece
        ▁Hello                         Hello                  Hello
        ▁world         Hello           Hello world            " world"
        <F0>           world           world�                 (none)
        <9F> <90> <88> world           world🐈                🐈

    Args:
        tokenizer: of transformers.
        skip_special_tokens: whether their text is left out.
        decoding: further arguments of `tokenizer.decode`.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, skip_special_tokens: bool = True, **decoding: bool | None
    ) -> None:
        self.tokenizer = tokenizer
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        self.skips = skip_special_tokens
        self.special = _special_ids(tokenizer) if skip_special_tokens else frozenset()
        self.cleans = _cleans(tokenizer, decoding.pop("clean_up_tokenization_spaces", None))
        self.decoding = decoding
        self.ids: list[int] = []  # decodings start with the first
        self.shown = 0  # how many of them are in earlier pieces
        self.before = ""  # the text of those
        self.unclean = ""  # text that what follows may yet change

    def add(self, token: int, last: bool = False) -> str:
        """The text that `token` completes; with the `last` token, all that was held back."""
        piece = self._add(token, last)
        return self._clean(piece, last) if self.cleans else piece

    def _add(self, token: int, last: bool) -> str:
        if token not in self.special:
            self.ids.append(token)
        if self.shown == len(self.ids):
            return ""
        after = self._decode(self.ids)
        if after.endswith("\ufffd") and not last:
            return ""
        new = self._decode(self.ids[self.shown :])
        # bytes of no character, behind those of a whole one, change how that is decoded; it has been shown
        piece = after[len(self.before) :] if after.startswith(self.before) else new
        if piece or last:
            if new and after.endswith(new):
                del self.ids[: self.shown]
                after = new
            self.shown, self.before = len(self.ids), after
        return piece

    def _clean(self, piece: str, last: bool) -> str:
        text = self.unclean + piece
        end = len(text) if last else _UNDECIDED.search(text).start()  # type: ignore[union-attr]
        self.unclean = text[end:]
        return str(cast(Any, self.tokenizer).clean_up_tokenization(text[:end]))

    def _decode(self, ids: list[int]) -> str:
        if self.backend is not None:  # what the tokenizer itself calls, without the several times as long way there
            return str(self.backend.decode(ids, skip_special_tokens=self.skips))
        return str(
            self.tokenizer.decode(
                ids, skip_special_tokens=self.skips, clean_up_tokenization_spaces=False, **self.decoding
            )
        )


# What `clean_up_tokenization` replaces are spaces and what follows: a full stop, `n't`, `'ve`, ` ' `. One replacement
# may make room for another, so of all that they can be made of the end of a text may be the beginning.
_UNDECIDED = re.compile(r"(?: [ 'n]*[vr]?)?\Z")


def _cleans(tokenizer: Any, asked: bool | None) -> bool:
    """Whether decoding ends in a clean-up of spaces, which transformers leaves out for BPE."""
    asked = tokenizer.clean_up_tokenization_spaces if asked is None else asked
    backend = getattr(tokenizer, "backend_tokenizer", None)
    forced = getattr(tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return bool(asked and (forced or type(getattr(backend, "model", None)).__name__ != "BPE"))


def _special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that decode to nothing where special tokens are left out."""
    added = {index for index, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special}
    known = sorted(added | set(tokenizer.all_special_ids))
    return frozenset(index for index in known if not tokenizer.decode([index], skip_special_tokens=True))
