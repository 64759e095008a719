"""The drafter of one request, guarded: a failure in it costs speed, and never text."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import numpy as np

from hdraft.decoding.logs import logger
from hdraft.drafting.compiling import Compilation, compile_beside
from hdraft.drafting.costs import Costs
from hdraft.drafting.drafter import (
    Candidates,
    Drafter,
    DraftSession,
    Draws,
    TokenIds,
    lookahead_branch,
    takes_draws,
    uses_candidates,
)
from hdraft.drafting.kernel_cache import NotCompiledError, loading_only
from hdraft.drafting.methods.lookahead_branch import LookaheadBranch
from hdraft.drafting.tree import DraftTree

NO_DRAFT = DraftTree.empty()

_PATIENCE = 5.0
"""Seconds of a request before kernels that it lacks are compiled beside it: a short one is not slowed down."""

_EVERY = 1.0
"""Seconds after which to look for them again."""


class Drafts:
    """The drafts of one request; without a drafter, or after it has failed, there are none.

    A failure is logged, with its traceback where the log's level is DEBUG. Nothing waits for the compiler: where
    kernels lack, there are no drafts until another process has compiled them (`drafting.compiling`).
    """

    def __init__(
        self,
        drafter: Drafter | None,
        prompt: TokenIds,
        costs: Costs | None,
        references: Sequence[Any] = (),
        draws: Draws | None = None,
    ) -> None:
        self._drafter = drafter
        self._options: dict[str, Any] = {"references": references} if references else {}
        if draws is not None and takes_draws(drafter):
            self._options["draws"] = draws
        self._prompt, self._costs = prompt, costs
        self._emitted: list[int] = []  # for a session that begins later
        self._session: DraftSession | None = None
        self._branch: LookaheadBranch | None = None
        self._compilation: Compilation | None = None
        self._started = perf_counter()
        self._looked = -_EVERY  # for kernels
        self._ended = False
        self._active = drafter is not None  # it can hold all of the text, and has not failed
        self._failed = False
        self._begin()

    def _begin(self) -> None:
        """Begin the session, unless its kernels lack, as they did a moment ago."""
        if self._drafter is None or not self._active:
            return
        now = perf_counter()
        if (self._compilation is None or self._compilation.running()) and now - self._looked < _EVERY:
            return
        self._looked = now
        with self._guarded():
            self._session = self._drafter.session(self._prompt, self._costs, **self._options)
            for token in self._emitted:  # each by a step of its own
                self._session.extend([token])
            self._branch = lookahead_branch(self._session)

    def propose(self, budget: int, depth: int) -> DraftTree:
        """A tree of at most `budget` nodes, none deeper than `depth`, which is at least 1: checked, whatever drafts."""
        if self._session is None:
            self._begin()
        if self._active and self._session is not None and self._drafter is not None:
            with self._guarded():
                tree = self._session.propose(budget, depth)
                tree.check(self._drafter.vocab_size, budget, depth)
                return tree
        return NO_DRAFT

    def branch(self, depth: int) -> DraftTree:
        """The lookahead branch, if it is no deeper than `depth`; else an empty tree."""
        if self._active and self._branch is not None and 0 < self._branch.depth <= depth:
            with self._guarded():
                return self._branch.nodes()
        return NO_DRAFT

    @property
    def recycles(self) -> bool:
        """Whether `extend` will ask for candidates."""
        return self._active and self._session is not None and uses_candidates(self._drafter)

    def extend(
        self,
        tokens: list[int],
        predicted: list[int] | None = None,
        candidates: Callable[[], Candidates] | None = None,
    ) -> None:
        """Take in the tokens that a step emitted.

        The drafter is given the tokens before the first that it cannot hold, as an end-of-sequence id may be that the
        model has no embedding for, and drafts no more behind that.

        Args:
            tokens: in order.
            predicted: the target's most likely token after each node of the lookahead branch, if the step forwarded it.
            candidates: gives those of the step, for a drafter that uses them.
        """
        if not self._active or self._drafter is None:
            return
        vocab_size = self._drafter.vocab_size
        held = next((place for place, token in enumerate(tokens) if token >= vocab_size), len(tokens))
        self._emitted += tokens[:held]
        if self._session is not None and held:
            with self._guarded():
                ngrams = None
                if predicted is not None and self._branch is not None:
                    last = predicted[-len(self._branch.rows[-1]) :]
                    ngrams = self._branch.advance(np.minimum(last, vocab_size - 1), tokens[held - 1])
                found = candidates() if candidates is not None and self.recycles else None
                self._session.extend(tokens[:held], ngrams, found)
        self._active &= held == len(tokens)

    def close(self) -> None:
        """End the request."""
        self._ended = True
        if self._session is None:
            self._looked = -_EVERY
            self._begin()  # to learn from it, or to have kernels compiled for the next
        if self._session is not None:
            with self._guarded():
                self._session.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with loading_only():
                yield
        except NotCompiledError:
            self._session = self._branch = None
            self._wait()
        except Exception as error:
            said, self._failed, self._active = self._failed, True, False
            if not said:
                logger.warning(
                    "%s fails, and drafts no more for this request: %s: %s",
                    type(self._drafter).__name__,
                    type(error).__name__,
                    error,
                    exc_info=logger.isEnabledFor(logging.DEBUG),
                )

    def _wait(self) -> None:
        if self._drafter is not None and (self._ended or perf_counter() - self._started >= _PATIENCE):
            self._compilation = compile_beside(self._drafter)
            self._active = self._compilation is not None
