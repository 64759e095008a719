"""Drafts for the requests of a batch, step after step: what adapters to serving engines share.

An adapter finds out which request each row is, by whatever its engine tells, and keeps a `Request` for each:

    drafts = batch.step(lengths, emitted)       # a step has ended: are there drafts to be made, or is anything learnt?
    batch.end(ended)                            # requests that are over
    chains = batch.draft(requests)              # by row, None for a row that is no request yet

Nothing here is an engine's own: no configuration, no types, no row's tokens beyond what the adapter put into `Request`.
"""

import dataclasses
import logging
import os
import time
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from hdraft.drafting.compiling import Compilation, compile_beside
from hdraft.drafting.drafter import check_ids
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.hierarchy.together import draft_chains
from hdraft.drafting.kernel_cache import NotCompiledError, loading_only
from hdraft.drafting.threads import Threads, processors
from hdraft.engines.learning import Learner
from hdraft.engines.load import Load

_THREADS = 2  # more were not measured to pay
_RENEWED = 32  # steps of a request, after which it drafts from what D_m has learnt meanwhile; sooner at first
_LESSON = 32  # tokens that a request has generated, after which it has them learnt …
_BEFORE = 8  # … with so many before them, so that what follows on those is known

_log = logging.getLogger("vllm.hdraft")  # where vLLM's own handlers print it


class BatchDrafter:
    """Chains of draft tokens for the rows of a batch.

    Args:
        drafter: of the model.
        longest: the most draft tokens of a row.
        max_length: of a request, prompt and all.
        max_batch: the most rows that are drafted for; with more, none is.
        min_match: how many of a row's last tokens must have occurred before in this order, for a draft.
        folder: where what is learnt is kept; see `Learner`. It learns if the drafter is to `learn`.
        threads: to draft on; by default, two where there are two processors.
        on_processor: whether the model runs on one, and so on the same.

    Raises:
        DatabaseError: the folder cannot be used.
    """

    def __init__(
        self,
        drafter: HierarchyDrafter,
        longest: int,
        max_length: int,
        *,
        max_batch: int = 64,
        min_match: int = 1,
        folder: str | os.PathLike[str] | None = None,
        threads: int | None = None,
        on_processor: bool = False,
    ) -> None:
        self.drafter = drafter
        self.load = Load(on_processor)
        self._longest = longest
        self.learner = Learner(drafter, folder) if drafter.learn else None
        self.failed = False
        self._max_length = max_length
        self._max_batch, self._min_match = max_batch, min_match
        self._threads = Threads(min(_THREADS, len(processors())) if threads is None else threads)
        self._last = _Call(np.zeros(0, np.int64))
        self._start = 0.0
        self._drafts = True
        self._compilation: Compilation | None = None
        try:
            with loading_only():
                drafter.warm_up()
        except NotCompiledError:
            self._wait_for_kernels()

    def step(self, lengths: npt.NDArray[np.int64], emitted: npt.NDArray[np.int64]) -> bool:
        """Take in that a step has ended, before `draft`; returns whether requests are to be followed.

        They are where they are drafted for, or learnt from. It takes the time of the step, if all that it did was to
        decode the rows of the last call.

        Args:
            lengths: int64[rows], how many tokens each row has, those emitted included.
            emitted: int64[rows], how many it has emitted.
        """
        self._start, last, rows = time.perf_counter(), self._last, len(lengths)
        if rows and len(last.lengths) == rows and emitted.all() and np.array_equal(last.lengths + emitted, lengths):
            drafting = last.seconds if last.drafting and not last.began else None
            self._measure(rows, last.drafted, int(emitted.sum()), self._start - last.end, drafting)
        drafting = self._drafts and 1 <= rows <= self._max_batch and self.load.batches(rows).drafts()
        self._last = _Call(lengths, drafting)
        return drafting or self.learner is not None

    def draft(self, requests: Sequence["Request | None"]) -> list[list[int]]:
        """The chain for each row, after `step`: none where nothing is worth its place, or drafting rests."""
        drafts: list[list[int]] = [[] for _ in requests]
        if not self._last.drafting:
            for request in filter(None, requests):
                request.rest()
        elif self._compilation is None or not self._compilation.running():
            try:
                with loading_only():
                    self._draft(requests, drafts)
            except NotCompiledError:
                self._wait_for_kernels()
        self._teach(filter(None, requests), _LESSON)
        self._last.drafted = sum(map(len, drafts))
        self._last.end = time.perf_counter()
        self._last.seconds = self._last.end - self._start
        return drafts

    def end(self, requests: Sequence["Request"]) -> None:
        """Let go of requests; what each of them generated last is learnt, if anything is."""
        for request in requests:
            try:
                with loading_only():
                    request.rest()
            except NotCompiledError:
                self._wait_for_kernels()
            except Exception:
                self.report()
        self._teach(requests, 1)

    def report(self) -> None:
        """Log the exception that is being handled, if it is the first."""
        if not self.failed:
            self.failed = True
            _log.exception("hdraft failed and drafts nothing for these rows; what fails after this is not reported")

    def _teach(self, requests: Iterable["Request"], least: int) -> None:
        """Have learnt what requests have generated since they last taught, where that is so many tokens."""
        if self.learner is not None:
            for request in requests:
                if request.untaught >= least:
                    self.learner.take(request.teach())

    def _draft(self, requests: Sequence["Request | None"], drafts: list[list[int]]) -> None:
        price = self.load.next_price(len(requests))
        rows = [row for row, request in enumerate(requests) if request is not None and self._ready(request)]
        ready = [request for row in rows if (request := requests[row]) is not None]
        try:
            chains = self._chains(ready, price)
        except ValueError:  # an id outside the vocabulary
            sound = [self._sound(request) for request in ready]
            rows = [row for row, good in zip(rows, sound, strict=True) if good]
            good_ones = [request for request, good in zip(ready, sound, strict=True) if good]
            chains = self._chains(good_ones, price)
        for row, chain in zip(rows, chains, strict=True):
            drafts[row] = chain

    def _chains(self, requests: Sequence["Request"], price: float) -> list[list[int]]:
        sessions = [request.session for request in requests if request.session is not None]
        new = [request.new for request in requests]
        lengths = [min(self._longest, self._max_length - request.length - 1) for request in requests]
        chains = draft_chains(sessions, new, lengths, price, self._min_match, self._threads)
        for request in requests:
            request.new = []
        return chains

    def _ready(self, request: "Request") -> bool:
        """Whether the request can be drafted for: it has a session, or one begins."""
        if request.failed:
            return False
        try:
            if request.session is None:
                request.session = self.drafter.session(request.known)
                request.new, request.steps = [], 0
                self._last.began = True
            request.steps += 1
            if self.learner is not None and (request.steps & (request.steps - 1) == 0 or request.steps % _RENEWED == 0):
                request.session.renew()
        except NotCompiledError:
            raise
        except Exception:
            self._fail(request)
        return not request.failed

    def _sound(self, request: "Request") -> bool:
        try:
            check_ids(request.new, self.drafter.vocab_size)
        except ValueError:
            self._fail(request)
        return not request.failed

    def _fail(self, request: "Request") -> None:
        self.report()
        request.failed, request.session = True, None

    def _measure(self, rows: int, drafted: int, emitted: int, seconds: float, drafting: float | None) -> None:
        self.load.record(rows, drafted, emitted, seconds, drafting)

    def _wait_for_kernels(self) -> None:
        """Draft nothing until another process has compiled them, or for good where the log says that it cannot."""
        self._compilation = compile_beside(self.drafter)
        self._drafts = self._compilation is not None


class Request:
    """A request as an engine's adapter knows it.

    Args:
        text: its tokens so far, as the bytes of int32s, which are compared and sliced the fastest.
        generated: where in them what it generates begins.

    >>> request = Request(np.array([5, 6, 7], np.int32).tobytes(), generated=2)
    >>> request.goes_on_as(np.array([6, 7, 8], np.int32).tobytes(), 4, emitted=[8])
    True
    >>> request.known.tolist()
    [5, 6, 7, 8]
    >>> request.teach().tolist(), request.untaught
    ([7, 8], 0)

    Attributes:
        absent: for the adapter, the calls since it was last in a row.
        session: its drafts come from; None as long as it rests.
        new: of its last tokens, those that the session has not been given.
    """

    def __init__(self, text: bytes, generated: int) -> None:
        self._text = bytearray(text)
        self._generated = self._taught = generated
        self.absent = 0
        self.failed = False
        self.session: HierarchySession | None = None
        self.new: list[int] = []
        self.steps = 0

    @property
    def known(self) -> npt.NDArray[np.int32]:
        """A copy of its tokens: int32[length]."""
        return np.frombuffer(bytes(self._text), np.int32)

    @property
    def untaught(self) -> int:
        """How many tokens it has generated since it last taught."""
        return self.length - self._taught

    def teach(self) -> npt.NDArray[np.int32]:
        """A copy of those, and of a few before them."""
        first = max(self._taught - _BEFORE, self._generated)
        self._taught = self.length
        return np.frombuffer(bytes(self._text[4 * first :]), np.int32)

    @property
    def length(self) -> int:
        """How many tokens it has."""
        return len(self._text) // 4

    def goes_on_as(self, tail: bytes, length: int, emitted: list[int]) -> bool:
        """Whether a text is what it was known by, and what a step emitted behind it; if so, it is known by that.

        Args:
            tail: the text's last tokens, as bytes: those emitted, and enough before them to tell it from others.
            length: of the text, in tokens.
            emitted: by the step.
        """
        new = len(tail) - 4 * len(emitted)
        if length != self.length + len(emitted) or not self._text.endswith(tail[:new]):
            return False
        self._text += tail[new:]
        if self.session is not None:
            self.new += emitted
        return True

    def rest(self) -> None:
        """Do without its session until it is drafted for again."""
        session, self.session = self.session, None
        if session is not None:
            session.close()


@dataclasses.dataclass(slots=True)
class _Call:
    """A record of one step for the next: int64[rows] `lengths`, and what drafting took and gave."""

    lengths: npt.NDArray[np.int64]
    drafting: bool = False
    began: bool = False  # whether a session did
    drafted: int = 0
    seconds: float = 0.0
    end: float = 0.0
