"""Hierarchy Drafting inside vLLM: a proposer for its V1 model runner.

    vllm serve MODEL --additional-config '{"hdraft": {"model_database": "D_m"}}' --speculative-config
        '{"method": "custom_class", "model": "hdraft.engines.vllm.HierarchyProposer", "num_speculative_tokens": 8}'

After each forward pass vLLM hands over its batch, the tokens of each row and those just sampled, and takes a chain of
draft tokens for each row. It does not say which request a row is: rows are filled again when requests end, moved
together, and some calls are left out. So a row is known by its tokens. With those sampled last in brackets:

    row                       one call           the next call
    0                         1 2 3 [4]          7 8 9 [5 6]      moved here from row 1: its session goes on
    1                         7 8 [9]            1 2 [3]          new: what row 0 was has ended

A request goes on where there are, without those sampled last, as many tokens as it was known by, and the last 256 are
its own. What is drafted for it then is no matter of vLLM's: see `batch`.
"""

import ast
import dataclasses
import inspect
import logging
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import chain
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hdraft.drafting.drafter import TokenIds
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.engines.batch import BatchDrafter, Request

TESTED = ("0.32", "0.33")
"""The versions of vLLM whose hook is known: see `tools/vllm_contract.py`."""

RUNNER = "vllm.v1.worker.gpu_model_runner"
"""The module of the runner that makes the proposer and calls it."""

_TAIL = 256  # tokens before those emitted, by which with its length a request is told from others: its text may be long
_PATIENCE = 16  # calls that a request may be absent, as one is that the scheduler had no room for

_log = logging.getLogger("vllm.hdraft")  # where vLLM's own handlers print it


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """The settings in `additional_config` under `hdraft`.

    Attributes:
        model_database: D_m, a folder or a name on the Hub.
        statistics_database: D_s, likewise.
        learn: whether what a request generates may be drafted for others.
        drafter_state: a folder that what is learnt is kept in, from one start to the next.
        max_batch: the most rows that are drafted for; with more, none is.
        min_match: how many of a row's last tokens must have occurred before in this order, for a draft.
    """

    model_database: str | None = None
    statistics_database: str | None = None
    learn: bool = False
    drafter_state: str | None = None
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
        database, folder, least = "a folder, or a name on the Hub", "a folder", "a number, at least 1"
        wanted = {
            "model_database": database,
            "statistics_database": database,
            "learn": "true or false",
            "drafter_state": folder,
            "max_batch": least,
            "min_match": least,
        }
        for name, value in given.items():
            if name not in wanted:
                raise ValueError(f"hdraft has no setting {name!r}: there are {', '.join(wanted)}")
            kind = {database: str, folder: str, least: int}.get(wanted[name], bool)
            if type(value) is not kind or (type(value) is int and value < 1) or value == "":
                raise ValueError(f"hdraft's setting {name} is {value!r}: it must be {wanted[name]}")
        settings = cls(**given)
        if settings.drafter_state is not None and not settings.learn:
            raise ValueError("hdraft's setting drafter_state is for what is learnt: set learn to true, or leave it out")
        return settings


class HierarchyProposer:
    """Drafts for the rows of a batch; vLLM makes one for each worker, and calls `propose` after each forward pass.

    Args:
        vllm_config: vLLM's; settings are read from `additional_config["hdraft"]`, see `Settings`.

    Raises:
        ValueError, DatabaseError: a bad setting, or a database that does not fit the model.
        RuntimeError: this vLLM calls its proposers in another way than those that are known.
    """

    def __init__(self, vllm_config: Any) -> None:
        if type(vllm_config).__module__.startswith("vllm."):  # who else makes one, calls it
            _check_hook(type(self))
        try:
            additional = vllm_config.additional_config
            longest = int(vllm_config.speculative_config.num_speculative_tokens)
            model, parallel = vllm_config.model_config, vllm_config.parallel_config
            max_length, vocab_size = int(model.max_model_len), int(model.get_vocab_size())
            replica = int(parallel.data_parallel_index)
            adapters = vllm_config.lora_config is not None
            drafts = parallel.rank % parallel.tensor_parallel_size == 0  # vLLM takes one rank's drafts
        except AttributeError as error:
            raise _changed(f"its configuration is another: {error}") from error
        settings = Settings.read(additional.get("hdraft", {}) if isinstance(additional, Mapping) else {})
        self._requests: list[Request | None] = []  # by row
        self._absent: list[Request] = []
        self._batch: BatchDrafter | None = None
        if not drafts:
            return
        folder = settings.drafter_state
        if folder is not None and replica:
            folder = str(Path(folder, f"replica-{replica}"))
        self._batch = BatchDrafter(
            _open(settings, model, vocab_size),
            longest,
            max_length,
            max_batch=settings.max_batch,
            min_match=settings.min_match,
            folder=folder,
            on_processor=getattr(getattr(vllm_config, "device_config", None), "device_type", None) == "cpu",
        )
        if settings.learn and adapters:
            _log.warning("hdraft is not told which adapter a request is for: what it learns is drafted for all of them")
        if folder is not None:  # not `atexit`, which a process that `multiprocessing` has forked does not run
            Finalize(None, self._close, exitpriority=10)

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
        if self._batch is not None:
            try:
                sampled = _lists(sampled_token_ids)
                lengths = np.asarray(num_tokens_no_spec[:rows], np.int64)
                emitted = np.fromiter(map(len, sampled), np.int64, rows)
                if self._batch.step(lengths, emitted):
                    self._follow(self._batch, sampled, lengths.tolist(), np.asarray(token_ids_cpu, np.int32))
                else:
                    self._batch.end([*filter(None, self._requests), *self._absent])
                    self._requests, self._absent = [None] * rows, []
                return self._batch.draft(self._requests)
            except Exception:
                self._batch.report()
                self._requests, self._absent = [], []
        return [[] for _ in range(rows)]

    def _follow(
        self,
        batch: BatchDrafter,
        sampled_token_ids: Sequence[list[int]],
        lengths: Sequence[int],
        token_ids: npt.NDArray[np.int32],
    ) -> None:
        """Find each row's request where it was, or else among those that left other rows, or begin it."""
        left = self._requests + [None] * (len(lengths) - len(self._requests))
        self._requests = [None] * len(lengths)
        others: dict[int, bytes] = {}
        for row, sampled in enumerate(sampled_token_ids):
            length = lengths[row]
            if sampled and len(sampled) <= length <= token_ids.shape[1]:
                tail = token_ids[row, max(0, length - len(sampled) - _TAIL) : length].tobytes()
                request = left[row]
                if request is not None and request.goes_on_as(tail, length, sampled):
                    self._requests[row], left[row] = request, None
                else:
                    others[row] = tail
        self._absent += filter(None, left)
        new = []
        for row, tail in others.items():
            length, sampled = lengths[row], sampled_token_ids[row]
            moved = next((request for request in self._absent if request.goes_on_as(tail, length, sampled)), None)
            if moved is None:
                new.append(row)
                continue
            self._absent.remove(moved)
            self._requests[row], moved.absent = moved, 0
        for request in self._absent:
            # Requests are let in once all that run have a place: one that is absent then has ended.
            request.absent = _PATIENCE if new else request.absent + 1
        batch.end([request for request in self._absent if request.absent >= _PATIENCE])
        self._absent = [request for request in self._absent if request.absent < _PATIENCE]
        for row in new:
            text = token_ids[row, : lengths[row]].tobytes()
            self._requests[row] = Request(text, lengths[row] - len(sampled_token_ids[row]))

    def _close(self) -> None:
        """The process ends: what requests have generated so far is learnt and kept."""
        if self._batch is not None and self._batch.learner is not None:
            self._batch.end([*filter(None, self._requests), *self._absent])
            self._batch.learner.close()


def _lists(token_ids: Sequence[TokenIds]) -> Sequence[list[int]]:
    """The ids of each row; none where it is no list of ids, so that one bad row does not stop the others."""
    try:
        np.fromiter(chain.from_iterable(token_ids), np.int32)
        if all(type(ids) is list for ids in token_ids):
            return token_ids  # type: ignore[return-value]
    except (ValueError, TypeError, OverflowError):
        pass
    return [_list(ids) for ids in token_ids]


def _list(ids: Any) -> list[int]:
    try:
        row: list[int] = np.asarray(ids, np.int32).reshape(-1).tolist()
    except (ValueError, TypeError, OverflowError):
        return []
    return row


def call_of_hook(source: str) -> list[str]:
    """What a runner calls `propose` of a custom class with, by its source: the names of the arguments, in order."""
    for branch in ast.walk(ast.parse(textwrap.dedent(source))):
        if isinstance(branch, ast.If) and ast.unparse(branch.test).endswith(".method == 'custom_class'"):
            for call in (each for statement in branch.body for each in ast.walk(statement)):
                if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "propose":
                    positional = [ast.unparse(value).rpartition(".")[2] for value in call.args]
                    return [*positional, *(keyword.arg or "**" for keyword in call.keywords)]
    return []


def _check_hook(proposer: Any) -> None:
    """Make sure that vLLM will call the proposer as is known.

    Raises:
        RuntimeError: it will not.
    """
    version = _version()
    runner = sys.modules.get(RUNNER)  # which makes the proposer
    try:
        call = call_of_hook(inspect.getsource(runner.GPUModelRunner.propose_draft_token_ids))  # type: ignore[union-attr]
    except (AttributeError, OSError, SyntaxError) as error:
        raise _changed(f"there is no {RUNNER}.GPUModelRunner.propose_draft_token_ids to be read") from error
    takes = list(inspect.signature(proposer.propose).parameters)[1:]
    if call != takes:
        raise _changed(f"it calls propose with {', '.join(call) or 'nothing'} instead of {', '.join(takes)}")
    if ".".join(version.split(".")[:2]) not in TESTED:
        _log.warning("hdraft has not been tested with vLLM %s, but with %s", version, " and ".join(TESTED))


def _version() -> str:
    return str(getattr(sys.modules.get("vllm"), "__version__", "of this version"))


def _changed(what: str) -> RuntimeError:
    return RuntimeError(
        f"vLLM {_version()} has changed the hook that hdraft drafts by, {what}: use vLLM {' or '.join(TESTED)}, or a"
        " newer hdraft"
    )


def _open(settings: Settings, model_config: Any, vocab_size: int) -> HierarchyDrafter:
    """The drafter for vLLM's `ModelConfig`."""
    tokenizer = None
    named = settings.model_database or settings.statistics_database or settings.drafter_state
    if named and not model_config.skip_tokenizer_init:
        tokenizer = _tokenizer(model_config)
    return HierarchyDrafter.for_model(
        vocab_size, tokenizer, settings.model_database, settings.statistics_database, learn=settings.learn
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
