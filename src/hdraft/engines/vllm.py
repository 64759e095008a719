"""Hierarchy Drafting inside vLLM: a proposer for its V1 model runner.

    vllm serve MODEL --additional-config '{"hdraft": {"model_database": "D_m"}}' --speculative-config
        '{"method": "custom_class", "model": "hdraft.engines.vllm.HierarchyProposer", "num_speculative_tokens": 8}'

After each forward pass vLLM hands over its batch, the tokens of each row and those just sampled, and takes a chain of
draft tokens for each row. It does not say which request a row is: rows are filled again when requests end, moved
together, and some calls are left out. So a row is known by its tokens. With those sampled last in brackets:

    row                       one call           the next call
    0                         1 2 3 [4]          7 8 9 [5 6]      moved here from row 1: its session goes on
    1                         7 8 [9]            1 2 [3]          new: what row 0 was has ended

A request goes on where its tokens, without those sampled last, are exactly the tokens that it was known by.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.drafting.compiling import Compilation, compile_beside
from hdraft.drafting.costs import StepCosts
from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter, HierarchySession
from hdraft.drafting.kernel_cache import NotCompiledError, loading_only

_log = logging.getLogger("vllm.hdraft")  # where vLLM's own handlers print it

_PATIENCE = 16  # calls that a request may be absent, as one is that the scheduler had no room for
_FORGET = 0.98  # of a rate, from one step to the next
_TRIAL = 8  # steps that drafting is tried for, before it rests for …
_REST = 256  # … so many
_SIZES = (0, 1, 4, 16, 64, 256, 1024)  # numbers of tokens of a step, of which the costs are learnt


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings in `additional_config` under `hdraft`.

    Attributes:
        model_database: D_m, a folder or a name on the Hub.
        statistics_database: D_s, likewise.
        learn: whether what a request has generated may be drafted for later ones.
        max_batch: the most rows that are drafted for; with more, none is.
        min_match: how many of a row's last tokens must have occurred before in this order, for a draft.
    """

    model_database: str | None = None
    statistics_database: str | None = None
    learn: bool = False
    max_batch: int = 64
    min_match: int = 1

    @classmethod
    def read(cls, given: object) -> "Settings":
        """Check them.

        Raises:
            ValueError: an unknown setting, or a value of the wrong kind.
        """
        if not isinstance(given, Mapping):
            raise ValueError(f'additional_config["hdraft"] must be an object of settings, not {given!r}')
        folder, least = "a folder, or a name on the Hub", "a number, at least 1"
        wanted = {
            "model_database": folder,
            "statistics_database": folder,
            "learn": "true or false",
            "max_batch": least,
            "min_match": least,
        }
        for name, value in given.items():
            if name not in wanted:
                raise ValueError(f"hdraft has no setting {name!r}: there are {', '.join(wanted)}")
            kind = {folder: str, least: int}.get(wanted[name], bool)
            if type(value) is not kind or (type(value) is int and value < 1):
                raise ValueError(f"hdraft's setting {name} is {value!r}: it must be {wanted[name]}")
        return cls(**given)


class _Request:
    """A request as far as its tokens tell, of which those that it generated begin at `generated`."""

    def __init__(self, ids: npt.NDArray[np.int32], sampled: int) -> None:
        self._ids = np.concatenate([ids, np.empty(len(ids) + 64, np.int32)])
        self.length = len(ids)
        self.generated = len(ids) - sampled
        self.absent = 0  # calls since it was last in a row
        self.failed = False
        self.session: HierarchySession | None = None
        self.drafted_for = 0  # the tokens that the session has

    @property
    def known(self) -> npt.NDArray[np.int32]:
        """Its tokens: int32[length]."""
        return self._ids[: self.length]

    def goes_on_after(self, ids: npt.NDArray[np.int32]) -> bool:
        """Whether it was known by exactly these tokens."""
        return len(ids) == self.length and bool((ids == self.known).all())

    def extend(self, sampled: Sequence[int]) -> None:
        """Take in the tokens that a step emitted."""
        length = self.length + len(sampled)
        if length > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(length, np.int32)])
        self._ids[self.length : length] = sampled
        self.length = length

    def rest(self) -> None:
        """Do without its session until it is drafted for again."""
        session, self.session = self.session, None
        if session is not None:
            session.close()


@dataclasses.dataclass(slots=True)
class _Call:
    """A record of one call of `propose` for the next: int64[rows] `lengths`, and what drafting took and gave."""

    lengths: npt.NDArray[np.int64]
    drafting: bool = False
    began: bool = False  # whether a session did
    drafted: int = 0
    seconds: float = 0.0
    end: float = 0.0


class _Load:
    """The costs of draft tokens and the gains of drafting, as the last steps tell.

    What steps over so many tokens of all rows take is learnt by `StepCosts`; to begin with, one over 64 more counts as
    twice as long. Tokens that are emitted at a rate of rho a second are worth 1 / rho seconds each, so a draft token is
    worth its place while its probability exceeds rho times the seconds that it adds. Drafting as a whole pays while
    what was accepted is worth more than the place that it took and the time that finding it took; where it is not, it
    rests, and is tried again later. Rates and gains are kept for batches of about one size.

    Args:
        longest: the most draft tokens of a row.
    """

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._costs = StepCosts([1 + n / 64 for n in _SIZES], _SIZES)
        self._batches: dict[int, _Batch] = {}  # by the size of the batch, in powers of two

    def batch(self, rows: int) -> "_Batch":
        """The rates of batches of about this size."""
        return self._batches.setdefault((rows - 1).bit_length(), _Batch())

    def price(self, rows: int) -> float:
        """The probability from which on a draft token is worth its place, for a batch of so many rows."""
        most = rows * (1 + self._longest)
        size = self._costs.explore(most)
        if size is not None and size > rows:
            return 0.0  # whatever there is to draft is drafted, to see what it takes
        costs = self._costs.costs(most)
        rate = self.batch(rows).rate * self._costs.ordinary or rows / costs[rows]
        return min(float(rate * (costs[most] - costs[rows]) / (most - rows)), 1.0)

    def record(self, rows: int, drafted: int, emitted: int, seconds: float, drafting: float | None) -> None:
        """Take in a step: the tokens drafted and emitted, its seconds, and those of `drafting`, if that was done."""
        self._costs.record(rows + drafted, seconds)
        batch = self.batch(rows)
        batch.emitted(emitted, seconds + (drafting or 0.0))
        if drafting is not None:
            costs = self._costs.costs(rows + drafted)
            place = self._costs.ordinary * float(costs[-1] - costs[rows])
            batch.gained((emitted - rows) / batch.rate - place - drafting)


class _Batch:
    """Rates for batches of about one size, older steps counting less."""

    def __init__(self) -> None:
        self._tokens, self._seconds = 0.0, 0.0
        self._gain, self._tried, self._rest = 0.0, 0, 0

    @property
    def rate(self) -> float:
        """Rho: tokens emitted a second; 0 before the first step."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def emitted(self, tokens: int, seconds: float) -> None:
        """Take in what a step emitted, and how long it took."""
        self._tokens = _FORGET * self._tokens + tokens
        self._seconds = _FORGET * self._seconds + seconds

    def gained(self, seconds: float) -> None:
        """Take in what drafting for a step was worth."""
        self._gain = _FORGET * self._gain + seconds
        self._tried += 1
        if self._tried >= _TRIAL and self._gain < 0:
            self._gain, self._tried, self._rest = 0.0, 0, _REST

    def drafts(self) -> bool:
        """Whether to draft in this step."""
        if self._rest:
            self._rest -= 1
        return not self._rest


class HierarchyProposer:
    """Drafts for the rows of a batch; vLLM makes one for each worker, and calls `propose` after each forward pass.

    Args:
        vllm_config: vLLM's; settings are read from `additional_config["hdraft"]`, see `Settings`.

    Raises:
        ValueError, DatabaseError: a bad setting, or a database that does not fit the model.
    """

    def __init__(self, vllm_config: Any) -> None:
        additional = vllm_config.additional_config
        self._settings = Settings.read(additional.get("hdraft", {}) if isinstance(additional, Mapping) else {})
        self._longest = int(vllm_config.speculative_config.num_speculative_tokens)
        self._max_length = int(vllm_config.model_config.max_model_len)
        self._requests: list[_Request | None] = []  # by row
        self._absent: list[_Request] = []
        self._load = _Load(self._longest)
        self._last = _Call(np.zeros(0, np.int64))
        self._failed = False
        parallel = vllm_config.parallel_config
        self._drafts = parallel.rank % parallel.tensor_parallel_size == 0  # vLLM takes one rank's drafts
        if self._drafts:
            self._drafter = _open(self._settings, vllm_config.model_config)
            self._compilation: Compilation | None = None
            try:
                with loading_only():
                    self._drafter.warm_up()
            except NotCompiledError:
                self._wait_for_kernels()

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Part of vLLM's interface; a drafter without a model has nothing to load."""

    def propose(
        self,
        sampled_token_ids: Sequence[TokenIds],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
        slot_mappings: Any = None,
    ) -> list[list[int]]:
        """Draft for each row.

        Args:
            sampled_token_ids: for each row, the tokens that the step emitted, as a list or an array; none while its
                prompt is being read.
            num_tokens_no_spec: int32[max rows], how many tokens each row has, those emitted included.
            token_ids_cpu: int32[max rows, max_model_len], the tokens.
            slot_mappings: unused.
        """
        rows = len(sampled_token_ids)
        drafts: list[list[int]] = [[] for _ in range(rows)]
        if self._drafts:
            try:
                sampled = [_row(ids) for ids in sampled_token_ids]
                self._propose(sampled, num_tokens_no_spec[:rows], token_ids_cpu[:rows], drafts)
            except Exception:
                self._report()
                self._requests, self._absent = [], []
        return drafts

    def _propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        lengths: npt.NDArray[np.int32],
        token_ids: npt.NDArray[np.int32],
        drafts: list[list[int]],
    ) -> None:
        start, rows = time.perf_counter(), len(lengths)
        self._measure(sampled_token_ids, lengths, start)
        drafting = 1 <= rows <= self._settings.max_batch and self._load.batch(rows).drafts()
        self._last = _Call(lengths.astype(np.int64), drafting)
        if drafting or self._settings.learn:
            self._follow(sampled_token_ids, lengths, token_ids)
        else:
            self._end([*filter(None, self._requests), *self._absent])
            self._requests, self._absent = [None] * rows, []
        price = self._load.price(rows) if drafting else 1.0
        for row, request in enumerate(self._requests):
            if request is None:
                continue
            if drafting:
                drafts[row] = self._draft(request, price)
            else:
                request.rest()
        self._last.drafted = sum(map(len, drafts))
        self._last.end = time.perf_counter()
        self._last.seconds = self._last.end - start

    def _measure(self, sampled_token_ids: Sequence[Sequence[int]], lengths: npt.NDArray[np.int32], now: float) -> None:
        """Take the time of the step that ends here, if all that it did was to decode the rows of the last call."""
        last, rows = self._last, len(lengths)
        emitted = np.fromiter(map(len, sampled_token_ids), np.int64, rows)
        if rows and len(last.lengths) == rows and emitted.all() and np.array_equal(last.lengths + emitted, lengths):
            drafting = last.seconds if last.drafting and not last.began else None
            self._load.record(rows, last.drafted, int(emitted.sum()), now - last.end, drafting)

    def _follow(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        lengths: npt.NDArray[np.int32],
        token_ids: npt.NDArray[np.int32],
    ) -> None:
        """Find each row's request where it was, or else among those that left other rows, or begin it."""
        left = self._requests + [None] * (len(lengths) - len(self._requests))
        self._requests = [None] * len(lengths)
        before: dict[int, npt.NDArray[np.int32]] = {}
        for row, sampled in enumerate(sampled_token_ids):
            if sampled and len(sampled) <= lengths[row] <= token_ids.shape[1]:
                ids = token_ids[row, : lengths[row] - len(sampled)]
                request = left[row]
                if request is not None and request.goes_on_after(ids):
                    self._requests[row], left[row] = request, None
                    request.extend(sampled)
                else:
                    before[row] = ids
        self._absent += filter(None, left)
        new = []
        for row, ids in before.items():
            moved = next((request for request in self._absent if request.goes_on_after(ids)), None)
            if moved is None:
                new.append(row)
                continue
            self._absent.remove(moved)
            self._requests[row], moved.absent = moved, 0
            moved.extend(sampled_token_ids[row])
        for request in self._absent:
            # Requests are let in once all that run have a place: one that is absent then has ended.
            request.absent = _PATIENCE if new else request.absent + 1
        self._end([request for request in self._absent if request.absent >= _PATIENCE])
        self._absent = [request for request in self._absent if request.absent < _PATIENCE]
        for row in new:
            self._requests[row] = _Request(token_ids[row, : lengths[row]], len(sampled_token_ids[row]))

    def _draft(self, request: _Request, price: float) -> list[int]:
        """The chain for a row: the best path of a tree that is twice as large."""
        if request.failed or (self._compilation is not None and self._compilation.running()):
            return []
        length = min(self._longest, self._max_length - request.length - 1)
        try:
            with loading_only():
                if request.session is None:
                    request.session = self._drafter.session(request.known)
                    self._last.began = True
                else:
                    request.session.extend(request.known[request.drafted_for :])
                request.drafted_for = request.length
                tree = request.session.propose(2 * length, length, price)
                if not len(tree) or request.session.match_length < self._settings.min_match:
                    return []
                chain: list[int] = tree.best_chain(length, price).tokens.tolist()
        except NotCompiledError:
            request.session = None
            self._wait_for_kernels()
            return []
        except Exception:
            self._report()
            request.failed, request.session = True, None
            return []
        return chain

    def _end(self, requests: Sequence[_Request]) -> None:
        """Let go of requests; with `learn`, D_m takes in what each of them generated."""
        for request in requests:
            try:
                with loading_only():
                    request.rest()
                    if self._settings.learn:
                        self._drafter.model_database.learn_known(request.known[request.generated :])
            except NotCompiledError:
                self._wait_for_kernels()
            except Exception:
                self._report()

    def _wait_for_kernels(self) -> None:
        """Draft nothing until another process has compiled them, or for good where the log says that it cannot."""
        self._compilation = compile_beside(self._drafter)
        self._drafts = self._compilation is not None

    def _report(self) -> None:
        if not self._failed:
            self._failed = True
            _log.exception("hdraft failed and drafts nothing for these rows; what fails after this is not reported")


def _row(ids: Any) -> list[int]:
    """The ids that a row emitted; none where it is no list of ids, so that one bad row does not stop the others."""
    try:
        row: list[int] = np.asarray(ids, np.int32).reshape(-1).tolist()
    except (ValueError, TypeError, OverflowError):
        return []
    return row


def _open(settings: Settings, model_config: Any) -> HierarchyDrafter:
    """The drafter for vLLM's `ModelConfig`."""
    vocab_size = int(model_config.get_vocab_size())
    tokenizer = None
    if (settings.model_database or settings.statistics_database) and not model_config.skip_tokenizer_init:
        tokenizer = _tokenizer(model_config)
    return HierarchyDrafter.for_model(  # what is learnt, the proposer knows
        vocab_size, tokenizer, settings.model_database, settings.statistics_database
    )


def _tokenizer(model_config: Any) -> Any:
    """The model's tokenizer, to tell whether databases are of the same; None if that cannot be told."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            model_config.tokenizer,
            revision=model_config.tokenizer_revision,
            trust_remote_code=model_config.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        _log.warning("hdraft cannot tell whether its databases are of the model's tokenizer: %s", error)
        return None
