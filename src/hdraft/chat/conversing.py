"""A conversation with a model: turns with history, whose cache goes on from one to the next."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from transformers import PreTrainedModel

from hdraft.conversation import Conversation
from hdraft.decoding import GenerationStats, GrowingCache, StreamedToken, stream
from hdraft.decoding.models.support import places_left
from hdraft.drafting import Source
from hdraft.drafting.drafter import Drafter


class ChatError(ValueError):
    """A message or a command that cannot be honoured; one line that says what to do."""


@dataclass(slots=True)
class Turn:
    """An answer, and what it cost.

    Attributes:
        text: as far as it has been said.
        tokens: emitted.
        steps: forward passes of the target.
        seconds_to_first: from the question to the first token.
        seconds: from the question to the last token.
        is_cut: it is as long as an answer may be, and not at its end.
    """

    text: str = ""
    tokens: int = 0
    steps: int = 0
    seconds_to_first: float = 0.0
    seconds: float = 0.0
    is_cut: bool = False


class Chat:
    """A conversation in which each answer is what `model.generate` says to all that was said before it.

    The keys and values of one turn serve the next, as far as the prompts agree.

    Args:
        model: the target.
        conversation: its chat template and system prompt; nothing has been said yet.
        drafter: of all turns; None for ordinary decoding.
        max_new_tokens: the most of an answer; fewer where the model's positions end.
        options: further ones of `stream`.

    Attributes:
        turns: those of this conversation.
        statistics: its counters.

    Raises:
        ConversationError: the chat template does not take turns, or the system prompt.
        UnsupportedError, ValueError: as `stream` does.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        conversation: Conversation,
        drafter: Drafter | None = None,
        *,
        max_new_tokens: int = 1024,
        **options: Any,
    ) -> None:
        self.model = model
        self.conversation = conversation
        self.drafter = drafter
        self.max_new_tokens = max_new_tokens
        self.options = options
        self._opening = len(conversation.messages)
        self._stream(conversation.rehearse(), max_new_tokens=1).close()  # refuses what cannot be; nothing is run
        self.reset()

    def reset(self) -> None:
        """Begin anew; what the drafter has learnt stays."""
        del self.conversation.messages[self._opening :]
        self.turns: list[Turn] = []
        self.statistics = GenerationStats()
        self._cache = GrowingCache(self.model.config)

    def say(self, text: str) -> Generator[StreamedToken, None, None]:
        """Yield the tokens of the answer; with the last one it is in the conversation.

        Closing the generator, an interrupt or a failure ends the answer: what has been said of it is taken in. Where
        nothing has been said, neither is the question.

        Raises:
            ChatError: the model has no positions for a longer conversation.
            ConversationError: the text is none, or the chat template fails on it.
        """
        started = perf_counter()
        ids = self.conversation.prompt(text)
        room = self._room(len(ids))
        turn, finished = Turn(), False
        tokens, steps = self.statistics.tokens, self.statistics.steps
        answer = self._stream(ids, max_new_tokens=room, cache=self._cache, statistics=self.statistics)
        try:
            with closing(answer):
                for token in answer:
                    turn.seconds_to_first = turn.seconds_to_first or perf_counter() - started
                    turn.text += token.text
                    turn.is_cut = token.id not in self._ends()
                    yield token
            finished = True
        except (Exception, KeyboardInterrupt):
            self._cache = GrowingCache(self.model.config)  # it may be half written
            raise
        finally:
            turn.seconds = perf_counter() - started
            turn.tokens, turn.steps = self.statistics.tokens - tokens, self.statistics.steps - steps
            turn.is_cut &= finished and turn.tokens == room
            if finished or turn.text:
                self.conversation.take(text, turn.text)
                self.turns.append(turn)

    def sources(self) -> dict[Source | None, int]:
        """How many tokens of the conversation came from which database; None stands for the model itself."""
        accepted = self.statistics.accepted
        counts: dict[Source | None, int] = {source: accepted[source] for source in accepted}
        counts[None] = self.statistics.tokens - sum(accepted.values())
        return counts

    def _stream(self, ids: list[int], **options: Any) -> Generator[StreamedToken, None, None]:
        prompt = torch.tensor([ids], device=self.model.device)
        options |= {"attention_mask": torch.ones_like(prompt)}  # what `generate` else may take for padding is none
        return stream(
            self.model, prompt, self.drafter, tokenizer=self.conversation.tokenizer, **self.options, **options
        )

    def _room(self, prompt_tokens: int) -> int:
        left = places_left(self.model, prompt_tokens)
        if left == 0:
            raise ChatError(
                f"the model has no room for the {prompt_tokens:,} tokens of the conversation: /reset begins anew"
            )
        return self.max_new_tokens if left is None else min(left, self.max_new_tokens)

    def _ends(self) -> list[int]:
        ends: Any = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [ends]
