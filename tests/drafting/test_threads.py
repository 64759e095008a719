"""Threads share one drafter: whole trees, drafts as good as one after another, and no lock held in a kernel."""

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pkgutil import walk_packages
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba.core.dispatcher import Dispatcher

from hdraft import drafting
from hdraft.drafting.databases import context, sorting
from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.hierarchy import drafter as hierarchy
from hdraft.drafting.hierarchy import growth
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.kernel import specialised

VOCAB, EOS = 500, 0
BUDGET, MAX_DEPTH = 16, 24
PROMPT = 40
PHRASES = [np.random.default_rng(seed).integers(1, VOCAB, 4 + seed % 9) for seed in range(60)]


def text(seed: int) -> npt.NDArray[np.int64]:
    """A request that repeats itself, and others; its own words are new to all databases."""
    rng = np.random.default_rng(seed + 1000)
    own = [rng.integers(1, VOCAB, 8) for _ in range(3)]
    common = [PHRASES[i] for i in rng.integers(0, len(PHRASES), 6)]
    chosen = [*own, *common]
    return np.concatenate([chosen[i] for i in rng.integers(0, len(chosen), 45)])


def request(drafter: HierarchyDrafter, ids: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Decode `ids` behind its prompt; returns the tokens and the steps."""
    session = drafter.session(ids[:PROMPT])
    emitted, steps = PROMPT, 0
    while emitted < len(ids):
        tree = session.propose(BUDGET, min(MAX_DEPTH, len(ids) - emitted - 1))
        tree.check(VOCAB, BUDGET, MAX_DEPTH)
        begin, node = emitted, -1
        nodes = {key: node for node, key in enumerate(zip(tree.parents.tolist(), tree.tokens.tolist(), strict=True))}
        assert len(nodes) == len(tree)
        while emitted < len(ids) - 1 and (node := nodes.get((node, int(ids[emitted])), -1)) >= 0:
            emitted += 1
        emitted += 1  # the target's own
        session.extend(ids[begin:emitted])
        steps += 1
    session.close()
    return len(ids) - PROMPT, steps


def mat(threads: int, texts: list[npt.NDArray[np.int64]]) -> float:
    """Mean accepted tokens of a learning drafter that so many threads share."""
    drafter = HierarchyDrafter(
        VOCAB,
        ModelDatabase.from_documents(PHRASES[::2], VOCAB, EOS),
        StatisticsDatabase.from_documents(PHRASES[1::3], VOCAB, EOS),
        learn=True,
    )
    with ThreadPoolExecutor(threads) as pool:
        tokens, steps = np.sum(list(pool.map(lambda ids: request(drafter, ids), texts)), 0)
    assert drafter.model_database is not None
    learned = sorted(document.tolist() for document in drafter.model_database.documents())
    assert learned == sorted([*(ids[PROMPT:].tolist() for ids in texts), *(ids.tolist() for ids in PHRASES[::2])])
    return float(tokens / steps)


def test_eight_threads_draft_whole_trees_and_accept_as_much_as_one_after_another() -> None:
    texts = [text(seed) for seed in range(64)]
    alone, together = mat(1, texts), mat(8, texts)
    assert alone > 3
    assert together == pytest.approx(alone, rel=0.05)  # what eight do at once, they cannot learn from each other


def test_every_kernel_is_compiled_to_run_without_the_lock() -> None:
    found = walk_packages(drafting.__path__, f"{drafting.__name__}.")
    modules = [import_module(module.name) for module in found if not module.ispkg]
    kernels = [value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)]
    assert len(kernels) > 30
    assert [kernel.py_func.__qualname__ for kernel in kernels if not kernel.targetoptions.get("nogil")] == []


LONG = np.random.default_rng(0).integers(1, 60, 200_000)
WORK: dict[str, tuple[ModuleType, Callable[[], Any]]] = {
    "a session starts": (context, lambda: HierarchyDrafter(VOCAB).session(LONG)),
    "a session drafts": (growth, lambda: propose_after(LONG)),
    "a database is sorted": (sorting, lambda: StatisticsDatabase.from_tokens(LONG, VOCAB, EOS)),
}


def propose_after(ids: npt.NDArray[np.int64]) -> None:
    session = HierarchyDrafter(VOCAB).session([1])
    session.extend(ids)
    session.propose(BUDGET)


@pytest.mark.parametrize("name", WORK)
def test_another_thread_runs_while(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread counts, and the interpreter is told to take its lock from nobody: a kernel that held it through its
    call would leave the count where it was, however long the call and whatever the machine does."""
    module, work = WORK[name]
    work()  # compiled
    count, advanced, stop = 0, [0], threading.Event()

    def watched(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            before = count
            result = kernel(*arguments)
            advanced.append(count - before)
            return result

        return call

    def run() -> None:
        nonlocal count
        while not stop.is_set():
            count += 1
            time.sleep(1e-4)

    for attribute, value in list(vars(module).items()):
        if isinstance(value, Dispatcher):
            monkeypatch.setattr(module, attribute, watched(value))
    monkeypatch.setattr(hierarchy, "specialised", lambda kernel, types: watched(specialised(kernel, types)))
    interval = sys.getswitchinterval()
    counter = threading.Thread(target=run)
    sys.setswitchinterval(1000)
    try:
        counter.start()
        for _ in range(10):  # in case the machine was busy elsewhere
            if max(advanced) == 0:
                work()
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        counter.join()
    assert max(advanced) > 0
