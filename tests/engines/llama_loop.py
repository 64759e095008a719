"""`Llama` without llama.cpp: what llama-cpp-python's does around a draft model, for a model that writes given texts.

`test_llama_cpp_recording` compares it with a recording of the real one.
"""

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.engines.llama_cpp import HierarchyDraftModel

Target = Callable[[list[int]], int]
"""The next token of a text."""

Processor = Callable[[npt.NDArray[np.intc], npt.NDArray[np.float32]], npt.NDArray[np.float32]]


def writer(texts: Sequence[Sequence[int]]) -> Target:
    """A target that goes on with the last of these texts that begins as its text does; with 0 where none does."""

    def write(text: list[int]) -> int:
        n = len(text)
        return next((each[n] for each in reversed(texts) if len(each) > n and list(each[:n]) == text), 0)

    return write


class Memory:
    """The cache, of which a test may ask what was done."""

    def __init__(self) -> None:
        self.takes_back = True
        self.waits = 0

    def kv_cache_seq_rm(self, sequence: int, begin: int, end: int) -> bool:
        return self.takes_back

    def get_logits(self) -> None:
        self.waits += 1


class Llama:
    """As `llama_cpp.Llama`, as far as a draft model sees it.

    Attributes:
        events: what happened: ("eval", tokens before, tokens, whether every row), ("sample", row), ("call", length).
    """

    def __init__(
        self,
        target: Target,
        *,
        vocab_size: int = 100,
        n_ctx: int = 512,
        n_batch: int = 512,
        logits_all: bool = False,
        draft_model: Any = None,
    ) -> None:
        self.target = target
        self.model_path = "written.gguf"
        self.model_params = SimpleNamespace(n_gpu_layers=0)
        self.n_batch = n_batch
        self.n_tokens = 0
        self.input_ids = np.zeros(n_ctx, np.intc)
        self.scores: Any = np.zeros((n_ctx if logits_all else n_batch, vocab_size), np.float32)
        self.draft_model = draft_model
        self.events: list[Any] = []
        self.pause: Callable[[int], None] = lambda rows: None  # what a pass over so many rows does beside
        self._vocab_size = vocab_size
        self._logits_all = logits_all if draft_model is None else True
        self._requires_eval = True
        self._is_recurrent = self._is_hybrid = False
        self._ctx = Memory()
        self._logits: list[npt.NDArray[np.float32]] = []  # of the rows of the last batch that have them
        if isinstance(draft_model, HierarchyDraftModel):  # which the real one is taught when the first is made
            draft_model.attach(self, logits_all=logits_all)

    def n_ctx(self) -> int:
        return -(-len(self.input_ids) // 256) * 256  # as llama.cpp rounds it, which is more than there is room for

    def n_vocab(self) -> int:
        return self._vocab_size

    @property
    def _input_ids(self) -> npt.NDArray[np.intc]:
        return self.input_ids[: self.n_tokens]

    def eval(self, tokens: Sequence[int]) -> None:
        self._ctx.kv_cache_seq_rm(-1, self.n_tokens, -1)
        for begin in range(0, len(tokens), self.n_batch):
            batch, before = tokens[begin : begin + self.n_batch], self.n_tokens
            self.events.append(("eval", before, [int(token) for token in batch], self._logits_all))
            self.pause(len(batch))
            text = [*self.input_ids[:before].tolist(), *map(int, batch)]
            last = 1 if not self._logits_all else len(batch)
            self._logits = [self._row(text[: len(text) - i]) for i in reversed(range(last))]
            self.input_ids[before : before + len(batch)] = batch
            if self._logits_all:
                self.scores[before : before + len(batch), :].reshape(-1)[::] = np.concatenate(self._logits)
            self.n_tokens += len(batch)
            self._requires_eval = False

    def _row(self, text: list[int]) -> npt.NDArray[np.float32]:
        row = np.zeros(self._vocab_size, np.float32)
        row[self.target(text)] = 1.0
        return row

    def sample(self, *, logits_processor: Processor | None = None, idx: int | None = None, **others: Any) -> int:
        row = -1 if idx is None else idx - self.n_tokens
        assert -len(self._logits) <= row < 0, "a row without logits is sampled, for which llama.cpp ends the process"
        logits = self._logits[row].copy()
        if logits_processor is not None:
            logits = logits_processor(self._input_ids, logits)
        self.events.append(("sample", row))
        return int(logits.argmax())

    def generate(self, prompt: Sequence[int], logits_processor: Processor | None = None) -> Iterator[int]:
        tokens = self._rest(list(prompt))
        row = self.n_tokens + len(tokens) - 1
        while True:
            self.eval(tokens)
            while row < self.n_tokens:
                token = self.sample(logits_processor=logits_processor, idx=row)
                row += 1
                yield token
                tokens = [token]
                if row < self.n_tokens and token != self.input_ids[row]:
                    self.n_tokens = row
                    self._ctx.kv_cache_seq_rm(-1, row, -1)
                    self._requires_eval = True
                    break
            if self.draft_model is not None:
                end = self.n_tokens + len(tokens)
                self.input_ids[self.n_tokens : end] = tokens
                self.events.append(("call", end))
                tokens.extend(self.draft_model(self.input_ids[:end]).astype(int)[: self.n_ctx() - end])

    def _rest(self, prompt: list[int]) -> list[int]:
        """What of a prompt is to be read: not what the cache begins with, but its last token always."""
        same = 0
        while same < min(self.n_tokens, len(prompt)) and prompt[same] == self.input_ids[same]:
            same += 1
        if same == len(prompt) == self.n_tokens and not self._requires_eval and prompt:
            return []
        same = same - 1 if same == len(prompt) else same
        self.n_tokens, self._requires_eval = max(same, 0), True
        return prompt[self.n_tokens :]


def take(tokens: Iterator[int], count: int) -> list[int]:
    """The first tokens; then the request ends, as a completion does at its `max_tokens`."""
    taken = [next(tokens) for _ in range(count)]
    tokens.close()  # type: ignore[attr-defined]
    return taken
