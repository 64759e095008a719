"""vLLM's batch without vLLM: what its V1 runner does to rows between two calls of a proposer's hook."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.engines.vllm import HierarchyProposer

Ids = npt.NDArray[np.int32]


def vllm_config(
    vocab_size: int,
    settings: Any = None,
    *,
    tokens: int = 6,
    max_model_len: int = 512,
    rank: int = 0,
    tensor_parallel_size: int = 1,
    replica: int = 0,
    tokenizer: str | None = None,
) -> SimpleNamespace:
    """What the proposer reads of a `VllmConfig`."""
    return SimpleNamespace(
        model_config=SimpleNamespace(
            get_vocab_size=lambda: vocab_size,
            max_model_len=max_model_len,
            skip_tokenizer_init=tokenizer is None,
            tokenizer=tokenizer,
            tokenizer_revision=None,
            trust_remote_code=False,
        ),
        speculative_config=SimpleNamespace(num_speculative_tokens=tokens),
        parallel_config=SimpleNamespace(
            rank=rank, tensor_parallel_size=tensor_parallel_size, data_parallel_index=replica
        ),
        lora_config=None,
        additional_config={} if settings is None else {"hdraft": settings},
    )


@dataclass(eq=False)
class Request:
    """A request: its prompt, what the target will write, and how far that is; `read` of the prompt is cached."""

    prompt: list[int]
    output: list[int]
    emitted: int = 0
    read: int = 0
    draft: list[int] = field(default_factory=list)

    @property
    def text(self) -> list[int]:
        return self.prompt + self.output[: self.emitted]


class Batch:
    """Rows as `InputBatch` keeps them: holes are filled by new requests, else by the last rows; no row is cleared."""

    def __init__(self, proposer: HierarchyProposer, rows: int, max_model_len: int = 512, chunk: int = 10**9) -> None:
        self.proposer = proposer
        self.max_model_len = max_model_len
        self.chunk = chunk  # of a prompt, read in one step
        self.rows: list[Request | None] = []
        self.tokens = np.zeros((rows, max_model_len), np.int32)
        self.lengths = np.zeros(rows, np.int32)
        self.calls = self.drafted = self.accepted = 0

    def add(self, request: Request) -> None:
        """Let a request in, or one that was preempted again."""
        row = self.rows.index(None) if None in self.rows else len(self.rows)
        self.rows[row : row + 1] = [request]
        request.draft, request.read = [], 0
        self._write(row)

    def remove(self, request: Request) -> None:
        self.rows[self.rows.index(request)] = None

    def swap(self, one: int, other: int) -> None:
        self.rows[one], self.rows[other] = self.rows[other], self.rows[one]
        self._write(one)
        self._write(other)

    def condense(self) -> None:
        while None in self.rows:
            last = self.rows.pop()
            if last is not None:
                hole = self.rows.index(None)
                self.rows[hole] = last
                self._write(hole)

    def _write(self, row: int) -> None:
        if (request := self.rows[row]) is not None:
            self.lengths[row] = len(request.text)
            self.tokens[row, : len(request.text)] = request.text

    def step(self) -> list[list[int]]:
        """One forward pass, and the call after it; returns what each row emitted."""
        self.condense()
        sampled: list[list[int]] = []
        for row, request in enumerate(self.rows):
            assert request is not None
            request.read = min(request.read + self.chunk, len(request.text))
            if request.read < len(request.text):
                sampled.append([])
                continue
            rest = request.output[request.emitted :]
            accepted = 0
            while accepted < min(len(request.draft), len(rest) - 1) and request.draft[accepted] == rest[accepted]:
                accepted += 1
            new = rest[: accepted + 1]
            end = self.lengths[row] + len(new)
            self.tokens[row, self.lengths[row] : end] = new
            self.tokens[row, end : end + len(request.draft) - accepted] = request.draft[accepted:]  # as vLLM leaves it
            self.lengths[row] = end
            request.emitted += len(new)
            request.read = end - 1 + self.chunk  # decoding reads what it emits
            self.drafted += len(request.draft)
            self.accepted += accepted
            request.draft = []
            sampled.append(new)
        longest = max((len(request.text) for request in self.rows if request), default=0)
        if longest + 6 <= self.max_model_len:  # the hook is left out for all rows
            self.calls += 1
            drafts = self.proposer.propose(sampled, self.lengths, self.tokens, slot_mappings=None)
            assert len(drafts) == len(self.rows)
            for request, draft, new in zip(self.rows, drafts, sampled, strict=True):
                assert request is not None
                assert new or not draft, "a row whose prompt is being read has no use for a draft"
                request.draft = draft
        return sampled

    def finished(self) -> list[Request]:
        return [request for request in self.rows if request and request.emitted >= len(request.output)]


def check(proposer: HierarchyProposer, batch: Batch) -> None:
    """No row is drafted for with another's text: what the proposer and its sessions know of each is the row itself."""
    for row, request in enumerate(proposer._requests):
        if request is None:
            continue
        own: Ids = batch.tokens[row, : batch.lengths[row]]
        assert request.known.tolist() == own.tolist()
        if request.session is not None:
            context = request.session._context
            assert context.trie.text[: len(context)].tolist() == own.tolist()
