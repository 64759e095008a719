"""Hierarchy Drafting inside llama.cpp: a draft model for the `Llama` of llama-cpp-python.

    llama = Llama("model.gguf", n_ctx=4096, draft_model=HierarchyDraftModel(drafter))

After each pass `Llama` hands over the text so far, and takes draft tokens to verify in the next. It does not say when
a request begins, nor which tokens a request has generated: both are told by the text. After a draft of 6 7 8:

    text handed over             new           what it is
    1 2 3 4 5                                  a request: its prompt, 1 2 3 4, and the first token of its answer
    1 2 3 4 5 6 7 9              6 7 9         a step: it emits what it accepts of the draft, and one token more
    1 2 3 4 5 6 7 9 10 2 11      10 2 11       what no step emits: a request that goes on from the text of the last one
    1 2 4                                      a request

What else a draft model should know, it is not told at all. So `Llama(draft_model=…)` is made to attach it, which looks
at the `Llama`, and puts itself before its `eval` and its `sample`.
"""

import logging
import weakref
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.drafting.compiling import Compilation, compile_beside
from hdraft.drafting.costs import Costs, StepCosts
from hdraft.drafting.databases.vocabulary import describe_conflict, first_conflict, token_hashes
from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.hierarchy.budget import BudgetRule, check_costs
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.kernel_cache import NotCompiledError, loading_only
from hdraft.drafting.tree import DraftTree
from hdraft.engines.gguf import GgufTokenizer, import_llama_cpp

_log = logging.getLogger(__name__)

_ON_PROCESSOR = (1.0, 1.35, 2.4, 6.6, 23.0)
_OFFLOADED = (1.0, 1.05, 1.1, 1.2, 1.6)
"""What passes over 0, 1, 4, 16 and 64 draft tokens cost to begin with, in passes over none."""

_SECONDS = 2.0  # of `measure`, if its least rounds fit into it …
_ROUNDS = 2
_TEXT = 64  # … behind so much text, where there is none

_IN_VAIN = 4  # looks at the databases that found nothing worth its place, after which one more step goes without …
_SELDOM = 4  # … until one in so many looks

_NO_IDS = np.empty(0, np.int32)


class UnsupportedLlamaError(ValueError):
    """A `Llama` that cannot be drafted for; one line that says why."""


class HierarchyDraftModel:
    """A `LlamaDraftModel` for one `Llama`: chains of draft tokens, as long as they pay there.

    Args:
        drafter: the databases, which several draft models may share. Its `vocab_size` is `llama.n_vocab()`.
        budget: the most draft tokens of a step.
        costs: float[m], the times of passes over 0, 1, 2, … draft tokens in any unit, frozen; by default, learnt from
            the passes of the `Llama`.

    Attributes:
        draft: the chain that the next pass will verify, or that the last has; another object at each step.
        references: texts, as token ids, that answers will probably resemble: of requests that begin from now on.
        steps: passes over a draft, or over none.
        drafted: draft tokens in them.
        accepted: those of them that were emitted; of a request's last step, which no call follows, none are counted.
        seconds: the time spent on drafting.

    Raises:
        ValueError: a budget or costs that make no sense.
    """

    def __init__(self, drafter: HierarchyDrafter, *, budget: int = 16, costs: npt.ArrayLike | None = None) -> None:
        if budget < 1:
            raise ValueError(f"budget is {budget}: it must be at least 1")
        self.drafter = drafter
        self.budget = budget
        self.references: Sequence[TokenIds] = ()
        self.draft = DraftTree.empty()
        self.steps = self.drafted = self.accepted = 0
        self.seconds = 0.0
        self._costs: Costs | None = None if costs is None else check_costs(costs)
        self._rule = BudgetRule(np.ones(1))
        self._passes: _Passes | None = None
        self._text = _NO_IDS
        self._generated = 0  # where the request's answer begins in it
        self._session: HierarchySession | None = None
        self._failed = False
        self._in_vain = 0  # looks in a row that found nothing
        self._unseen: list[int] = []  # what was emitted since the last, by steps without a draft
        self._compilation: Compilation | None = None
        _introduce()

    def attach(self, llama: Any, *, logits_all: bool | None = None) -> None:
        """Draft for a `Llama` from now on; `Llama(…, draft_model=…)` calls it by itself.

        A draft's rows have their logits whatever `logits_all` is; without it, no prompt computes more than its last.

        Args:
            llama: it.
            logits_all: whether the user wants the logits of all rows; by default, as `llama` has it.

        Raises:
            UnsupportedLlamaError: it cannot take rejected draft tokens back, or is of another vocabulary.
            ValueError: this draft model is another one's.
        """
        if self._passes is not None and self._passes.llama not in (None, llama):
            raise ValueError("this draft model is another Llama's: make one for each, of the same drafter")
        _check_memory(llama)
        _check_vocabulary(llama, self.drafter)
        if self._costs is None:
            self._costs = StepCosts(_OFFLOADED if _is_offloaded(llama) else _ON_PROCESSOR)
        self._rule = BudgetRule(self._costs, self._rule.rate)
        self._passes = _Passes(llama, self, llama._logits_all if logits_all is None else logits_all)
        llama.draft_model = self
        try:
            with loading_only():
                self.drafter.warm_up()
        except NotCompiledError:
            self._wait_for_kernels()

    def measure(self, llama: Any) -> npt.NDArray[np.float64]:
        """Measure what passes cost, and go by that from now on, so that nothing is tried out while generating.

        It takes two seconds, or as long as four passes of each size do. What `llama` has in its cache stays.

        Returns:
            float64[budget + 1], the seconds of a pass over 0, 1, 2, … draft tokens: medians, never falling.

        Raises:
            UnsupportedLlamaError, ValueError: as `attach` does.
        """
        if self._passes is None or self._passes.llama is not llama:
            self.attach(llama)
        assert self._passes is not None
        costs = self._passes.measure(self.budget)
        self._costs, self._rule = costs, BudgetRule(costs, self._rule.rate)
        return costs

    def __call__(self, input_ids: npt.NDArray[np.intc], /, **kwargs: Any) -> npt.NDArray[np.intc]:
        """The draft behind a text: intc[n], n at most `budget`; what `Llama` calls.

        Args:
            input_ids: intc[m], the text; a view of what `Llama` overwrites.
            kwargs: unused.

        Raises:
            RuntimeError: no `Llama` was attached, or it is no more.
        """
        llama = None if self._passes is None else self._passes.llama
        if self._passes is None or llama is None:
            raise RuntimeError("this draft model has no Llama: give it as Llama(draft_model=…), or call attach(llama)")
        began = perf_counter()
        if self._passes_over(len(input_ids)):
            self._unseen.append(int(input_ids[-1]))
            self._rule.record(0, 1)
            self.draft = DraftTree.empty()
        else:
            room = min(self.budget, len(llama.input_ids) - len(input_ids), llama.n_batch - 1)  # verified in one batch
            self.draft = self._draft(self._take_in(np.array(input_ids, np.int32)), room)
        self.steps += 1
        self.drafted += len(self.draft)
        self._passes.expect(self.draft.tokens.tolist())
        self.seconds += perf_counter() - began
        return self.draft.tokens.astype(np.intc)

    def close(self) -> None:
        """End the request: a drafter that learns takes its answer in, as far as it was handed over.

        The next request ends it too.
        """
        session, self._session = self._session, None
        unseen, self._unseen = self._unseen, []
        if session is not None:
            with loading_only():
                session.extend(unseen)
                session.close()

    def _passes_over(self, length: int) -> bool:
        """Whether this step does without a look at the databases: the longer they had nothing, the more steps do.

        A look takes 4 % of a small model's pass. What is emitted meanwhile is taken in with the next one, so a text
        that begins to repeat itself is drafted from three steps late at most.

        Args:
            length: the text's. Where it is not longer by one token, there may be another request.
        """
        unseen = len(self._unseen) + 1
        if self._session is None or len(self.draft) or length != len(self._text) + unseen:
            return False
        return unseen < min(1 + self._in_vain // _IN_VAIN, _SELDOM)

    def _take_in(self, text: npt.NDArray[np.int32]) -> npt.NDArray[np.int32] | None:
        """What was emitted since the last look; None if the text is of another request, which it begins."""
        emitted = self._emitted(text)
        if emitted is None:
            self._begin(text)
        else:
            now = len(emitted) - len(self._unseen)  # by the last step
            self._rule.record(len(self.draft), now)
            self.accepted += now - 1
        self._text, self._unseen = text, []
        return emitted

    def _emitted(self, text: npt.NDArray[np.int32]) -> npt.NDArray[np.int32] | None:
        known, draft = self._text, self.draft.tokens
        new = text[len(known) :]
        if not len(new) or not len(known) or not np.array_equal(text[: len(known)], known):
            return None
        shorter = min(len(new), len(draft))
        accepted = int(np.append(new[:shorter] == draft[:shorter], False).argmin())
        return new if len(new) == len(self._unseen) + accepted + 1 else None

    def _begin(self, text: npt.NDArray[np.int32]) -> None:
        """Begin a request with a text whose last token is the first of its answer."""
        try:
            self.close()
        except NotCompiledError:
            self._wait_for_kernels()
        except Exception:
            self._report()
        self._generated, self._failed = len(text) - 1, False
        self._in_vain = 0
        if self._costs is not None:
            self._rule = BudgetRule(self._costs, self._rule.rate)

    def _draft(self, emitted: npt.NDArray[np.int32] | None, room: int) -> DraftTree:
        """The chain of at most `room` tokens that is worth most; a failure costs drafts, and no text."""
        if self._failed or (self._compilation is not None and self._compilation.running()):
            return DraftTree.empty()
        try:
            with loading_only():
                if self._session is None:
                    self._session = self._new_session()
                elif emitted is not None:
                    self._session.extend(emitted)
                prices = self._rule.prices(max(room, 0))
                size = len(prices) - 1
                if size < 1:
                    return DraftTree.empty()
                tree = self._session.propose(2 * size, size, float(np.diff(prices).min()))
                chain = tree.best_chain(size, prices)
                if not len(chain):
                    self._in_vain += 1
                elif prices.any():  # else a size was tried, whatever it is worth
                    self._in_vain = 0
                return chain
        except NotCompiledError:
            self._session = None
            self._wait_for_kernels()
        except Exception:
            self._session, self._failed = None, True
            self._report()
        return DraftTree.empty()

    def _new_session(self) -> HierarchySession:
        """A session that knows the text; of one with images, which are no tokens, the part behind them."""
        outside = np.flatnonzero((self._text < 0) | (self._text >= self.drafter.vocab_size))
        start = int(outside[-1]) + 1 if len(outside) else 0
        session = self.drafter.session(self._text[start : self._generated], references=self.references)
        session.extend(self._text[max(start, self._generated) :])
        return session

    def _learn_cost(self, drafted: int, seconds: float) -> None:
        if isinstance(self._costs, StepCosts):
            self._costs.record(drafted, seconds)

    def _wait_for_kernels(self) -> None:
        """Draft nothing until another process has compiled them, or for good where the log says that it cannot."""
        self._compilation = compile_beside(self.drafter)
        self._failed = self._compilation is None

    def _report(self) -> None:
        _log.exception("hdraft failed, and drafts nothing for this request")


class _Passes:
    """The passes of a `Llama`, which come through here: timed where a draft is verified, and with logits for its rows.

    A `Llama` with `logits_all` computes and keeps those of every row of every prompt, and one without fails behind
    `n_batch` tokens as soon as it has a draft model. Here it is without, but for the passes over drafts.

    Args:
        llama: it; referred to weakly.
        model: the draft model.
        every_row: whether the user wants the logits of all rows, kept in `scores`.
    """

    def __init__(self, llama: Any, model: HierarchyDraftModel, every_row: bool) -> None:
        self._llama = weakref.ref(llama)
        self._model = model
        self._every_row = every_row
        self._rows = _Rows(llama.n_vocab())
        self._expected: list[int] | None = None
        self._taken_back = False  # whether draft tokens may have been rejected since the last look at the cache
        llama._logits_all = every_row
        llama.eval, llama.sample = self.eval, self.sample

    @property
    def llama(self) -> Any:
        """The `Llama`; None where it is no more."""
        return self._llama()

    def expect(self, draft: list[int]) -> None:
        """Let the next pass be a step over these draft tokens."""
        self._expected = draft

    def eval(self, tokens: Sequence[int]) -> None:
        """In the place of `Llama.eval`."""
        llama, draft, self._expected = self.llama, self._expected, None
        if draft is None or llama.draft_model is not self._model or list(tokens[len(tokens) - len(draft) :]) != draft:
            others = llama.draft_model is not None and llama.draft_model is not self._model
            self._evaluate(tokens, self._every_row or others)
            return
        if self._taken_back and not llama._ctx.kv_cache_seq_rm(-1, llama.n_tokens, -1):
            raise UnsupportedLlamaError(f"{llama.model_path}: its cache cannot take rejected draft tokens back")
        seconds = self.timed(tokens, len(draft))
        if len(tokens) == 1 + len(draft):  # else the consumer has sent tokens
            self._model._learn_cost(len(draft), seconds)

    def timed(self, tokens: Sequence[int], drafted: int) -> float:
        """Run a pass, the last `drafted` of its tokens being drafts; its seconds."""
        llama = self.llama
        self._taken_back = drafted > 0
        begin = perf_counter()
        if drafted and not self._every_row:
            scores, llama.scores = llama.scores, self._rows
            try:
                self._evaluate(tokens, True)
            finally:
                llama.scores = scores
        else:
            self._evaluate(tokens, self._every_row)
        llama._ctx.get_logits()  # waits for a GPU
        return perf_counter() - begin

    def _evaluate(self, tokens: Sequence[int], every_row: bool) -> None:
        llama = self.llama
        llama._logits_all = every_row
        try:
            type(llama).eval(llama, tokens)
        finally:
            llama._logits_all = self._every_row

    def sample(self, *arguments: Any, idx: int | None = None, **options: Any) -> int:
        """In the place of `Llama.sample`: a logits processor sees the text up to the row, and no draft behind it."""
        llama = self.llama
        tokens = llama.n_tokens
        if idx is None or idx + 1 >= tokens:
            return int(type(llama).sample(llama, *arguments, idx=idx, **options))
        llama.n_tokens = idx + 1
        try:  # the row is told from the end, `idx - n_tokens`
            return int(type(llama).sample(llama, *arguments, idx=2 * idx + 1 - tokens, **options))
        finally:
            llama.n_tokens = tokens

    def measure(self, budget: int) -> npt.NDArray[np.float64]:
        """float64[budget + 1], the seconds of passes; see `HierarchyDraftModel.measure`."""
        llama = self.llama
        place, text = llama.n_tokens, llama.input_ids.copy()
        try:
            if not place:
                self._evaluate([0] * min(_TEXT, len(text) // 2), False)
            start = llama.n_tokens
            room = max(min(budget, len(text) - start - 1, llama.n_batch - 1), 0)
            sizes = sorted({0, room, *(size for size in (1, 2, 4, 8, 16, 32) if size < room)})
            times: dict[int, list[float]] = {size: [] for size in sizes}
            began = perf_counter()
            for number in range(20):
                if number >= _ROUNDS and perf_counter() - began > _SECONDS:
                    break
                for pair in zip(sizes, reversed(sizes), strict=True):  # hardly one after its like, as while drafting
                    for size in pair:
                        times[size].append(self.timed([0] * (1 + size), size))
                        llama.n_tokens = start
        finally:
            llama.n_tokens, llama._requires_eval = place, True
            llama.input_ids[:] = text
            llama._ctx.kv_cache_seq_rm(-1, place, -1)
        medians = np.maximum.accumulate([float(np.median(times[size])) for size in sizes])
        costs: npt.NDArray[np.float64] = np.interp(np.arange(budget + 1), sizes, medians)
        return costs


class _Rows:
    """Stands for `Llama.scores` in a pass over a draft: room for its rows alone, wherever in the text they are."""

    def __init__(self, vocab_size: int) -> None:
        self._values = np.empty((0, vocab_size), np.float32)

    def __getitem__(self, place: tuple[slice, slice]) -> npt.NDArray[np.float32]:
        rows = place[0].stop - place[0].start
        if len(self._values) < rows:
            self._values = np.empty((rows, self._values.shape[1]), np.float32)
        return self._values[:rows]


@cache
def _introduce() -> None:
    """Let `Llama(draft_model=…)` attach the model: it has no hook between being made and reading its first prompt."""
    if find_spec("llama_cpp") is None:
        return
    llama_cpp = import_llama_cpp()
    import_module("llama_cpp.llama_speculative").LlamaDraftModel.register(HierarchyDraftModel)
    make: Callable[..., None] = llama_cpp.Llama.__init__

    @wraps(make)
    def make_and_attach(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        if isinstance(model := options.get("draft_model"), HierarchyDraftModel):
            model.attach(self, logits_all=bool(options.get("logits_all", False)))

    llama_cpp.Llama.__init__ = make_and_attach


def _check_memory(llama: Any) -> None:
    """Refuse a model whose state cannot drop its last tokens, which `Llama` does not look at.

    Raises:
        UnsupportedLlamaError: it is one, or this version of llama-cpp-python has no such `Llama`.
    """
    needed = ("eval", "sample", "scores", "input_ids", "n_tokens", "n_batch", "_ctx", "_is_recurrent", "_is_hybrid")
    if lacking := [name for name in needed if not hasattr(llama, name)]:
        raise UnsupportedLlamaError(
            f"the Llama of this llama-cpp-python has no {lacking[0]}: install a version that docs/llama-cpp.md names"
        )
    kind = "recurrent" if llama._is_recurrent else "hybrid" if llama._is_hybrid else None
    if kind is not None:
        raise UnsupportedLlamaError(
            f"{llama.model_path} is a {kind} model, whose state cannot take rejected draft tokens back:"
            " leave draft_model out"
        )


def _check_vocabulary(llama: Any, drafter: HierarchyDrafter) -> None:
    """Raise `UnsupportedLlamaError` unless the drafter's ids are the file's."""
    size = llama.n_vocab()
    if drafter.vocab_size != size:
        raise UnsupportedLlamaError(
            f"the drafter is for a vocabulary of {drafter.vocab_size} ids and {llama.model_path} has {size}:"
            " make it by HierarchyDrafter.for_model(llama.n_vocab(), …)"
        )
    databases = [drafter.model_database, drafter.statistics_database]
    known = [each for each in databases if each is not None and each.token_hashes is not None]
    if not known:
        return
    tokenizer = GgufTokenizer(llama._model)
    ours = token_hashes(tokenizer, size)
    for database in known:
        assert database.token_hashes is not None
        if (conflict := first_conflict(database.token_hashes, ours)) is not None:
            raise UnsupportedLlamaError(
                f"the {database.kind}_database was built with another tokenizer than {llama.model_path}:"
                f" {describe_conflict(conflict, tokenizer, database.token_hashes)}; build it for this file"
            )


def _is_offloaded(llama: Any) -> bool:
    return llama.model_params.n_gpu_layers != 0 and bool(import_llama_cpp().llama_supports_gpu_offload())
