"""Verification: the path through a draft tree that the target itself takes.

From the root down, the target's next token is chosen just as `model.generate` would choose it there; while a child
holds that token, the walk goes on. Every token chosen on the way is the target's own, so the output is the same.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from hdraft.decoding.clock import clocks, set_back
from hdraft.decoding.draws import UpcomingDraws
from hdraft.decoding.models.ranks import ALONE, Ranks
from hdraft.drafting.drafter import Draws
from hdraft.drafting.tree import DraftTree


class Choice(Protocol):
    """How `generate` was asked to choose tokens and to stop."""

    @property
    def draws(self) -> Draws | None:
        """Where tokens are drawn at random: by which numbers."""
        ...

    def read(self, logits: Tensor, most_likely: Callable[[], list[int]]) -> None:
        """Wait for a step's logits, float[1 + n, vocabulary], and take them in: row 0 is the root, 1 + i node i.

        Or wait for each row's most likely token alone, which `most_likely` tells.
        """
        ...

    def set_clock_back(self, seconds: float) -> None:
        """Leave so much time out of what a clock that stops generation counts."""
        ...

    def next_token(self, row: int) -> int:
        """The token that follows the text so far, which ends at this row."""
        ...

    def stops(self) -> bool:
        """Whether generation ends with the token just chosen."""
        ...

    def sequence(self) -> Tensor:
        """int[1, length], the prompt and the tokens chosen so far."""
        ...


def verify(tree: DraftTree, choice: Choice, streamer: BaseStreamer | None) -> tuple[list[int], list[int], bool]:
    """Walk down the tree; `streamer` is given each token after `generate`'s stopping criteria have seen it.

    Returns:
        The tokens emitted; the nodes that hold them, one short if the last token was not drafted; whether generation
        ends with the last.
    """
    children = {pair: node for node, pair in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))}
    tokens: list[int] = []
    nodes: list[int] = []
    node, finished = -1, False
    while not finished:
        tokens.append(choice.next_token(node + 1))
        finished = choice.stops()
        if streamer is not None:
            streamer.put(torch.tensor(tokens[-1:]))  # type: ignore[no-untyped-call]
        node = children.get((node, tokens[-1]), -1)
        if node < 0:
            break
        nodes.append(node)
    return tokens, nodes, finished


class Argmax:
    """The most likely token, until an end-of-sequence token or the greatest length: one look at the device a step."""

    scores = logits = draws = None

    def __init__(self, input_ids: Tensor, eos_token_ids: frozenset[int], max_length: int, ranks: Ranks = ALONE) -> None:
        self.input_ids = input_ids
        self.eos_token_ids = eos_token_ids
        self.ranks = ranks
        self.room = max_length - input_ids.shape[1]
        self.tokens: list[int] = []

    def read(self, logits: Tensor, most_likely: Callable[[], list[int]]) -> None:
        """See `Choice.read`."""
        self.best = self.ranks.tokens(most_likely())

    def set_clock_back(self, seconds: float) -> None:
        """See `Choice.set_clock_back`: there is no clock."""

    def next_token(self, row: int) -> int:
        """See `Choice.next_token`."""
        token = self.best[row]
        self.tokens.append(token)
        return token

    def stops(self) -> bool:
        """See `Choice.stops`."""
        return self.tokens[-1] in self.eos_token_ids or len(self.tokens) >= self.room

    def sequence(self) -> Tensor:
        """See `Choice.sequence`."""
        return torch.cat((self.input_ids, self.input_ids.new_tensor([self.tokens])), dim=1)


class Processed:
    """Any logits processors, sampling or not, any stopping criteria: called once a token, in `generate`'s order.

    Attributes:
        scores, logits: float32[1, vocabulary] for each token, after and before processing; None if not asked for.
    """

    def __init__(
        self,
        input_ids: Tensor,
        processors: LogitsProcessorList,
        criteria: StoppingCriteriaList,
        do_sample: bool,
        output_scores: bool,
        output_logits: bool,
        ranks: Ranks = ALONE,
    ) -> None:
        self.processors = processors
        self.criteria = criteria
        self.ranks = ranks
        self.draws = UpcomingDraws(input_ids.device) if do_sample else None
        self.scores: tuple[Tensor, ...] | None = () if output_scores else None
        self.logits: tuple[Tensor, ...] | None = () if output_logits else None
        self.length = input_ids.shape[1]
        with torch.inference_mode(False):  # written to later, perhaps outside the mode
            self.buffer = torch.empty((1, self.length + 256), dtype=input_ids.dtype, device=input_ids.device)
        self.buffer[:, : self.length] = input_ids

    def read(self, logits: Tensor, most_likely: Callable[[], list[int]]) -> None:
        """See `Choice.read`."""
        if logits.device.type != "cpu":  # so that a step's time is that of its forward pass
            most_likely()
        self.rows = logits
        if self.draws is not None:
            self.draws.vocab_size = logits.shape[-1]

    def set_clock_back(self, seconds: float) -> None:
        """See `Choice.set_clock_back`."""
        set_back(clocks(self.criteria), seconds)

    def next_token(self, row: int) -> int:
        """See `Choice.next_token`."""
        sequence = self.sequence()
        # float32 and a copy, as in generate: processors may write to it
        logits = self.rows[row : row + 1].to(copy=True, dtype=torch.float32, device=sequence.device)
        scores: Tensor = self.processors(sequence, logits)  # type: ignore[arg-type]
        if self.scores is not None:
            self.scores += (scores,)
        if self.logits is not None:
            self.logits += (logits,)
        if self.draws is not None:
            token = self.draws.choose(torch.nn.functional.softmax(scores, dim=-1))
        else:
            token = torch.argmax(scores, dim=-1)
        token = self.ranks.tensor(token)
        if self.length == self.buffer.shape[1]:
            self.buffer = torch.cat((self.buffer, torch.empty_like(self.buffer)), dim=1)
        self.buffer[0, self.length] = token[0]
        self.length += 1
        return int(token)

    def stops(self) -> bool:
        """See `Choice.stops`."""
        return bool(self.ranks.number(bool(self.criteria(self.sequence(), self.scores))))

    def sequence(self) -> Tensor:
        """See `Choice.sequence`."""
        return self.buffer[:, : self.length]
