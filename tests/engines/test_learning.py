"""What requests have generated is learnt beside the work, and what was learnt outlives the process, however it ends."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from batch import Batch, Request, vllm_config

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.databases.storage import DatabaseError
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.kernel_cache import NotCompiledError
from hdraft.engines import learning
from hdraft.engines.learning import Learner
from hdraft.engines.vllm import HierarchyProposer

VOCAB = 100
OUTPUT = np.arange(20, 60)


def drafter() -> HierarchyDrafter:
    return HierarchyDrafter(VOCAB, learn=True)


def documents(learning: HierarchyDrafter) -> list[list[int]]:
    return [document.tolist() for document in learning.model_database.documents()]


def wait_for(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_outputs_are_learnt_without_being_waited_for_in_the_order_in_which_they_came() -> None:
    ours = drafter()
    learner = Learner(ours)
    for number in range(30):
        learner.take(OUTPUT[number:])
    wait_for(lambda: len(documents(ours)) == 30)
    assert documents(ours) == [OUTPUT[number:].tolist() for number in range(30)]
    learner.close()
    learner.take(OUTPUT)
    learner.close()
    assert len(documents(ours)) == 30


def test_without_a_folder_it_sleeps_once_it_has_learnt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "INTERVAL", 0.05)  # after which it would be time to write
    tries: list[Learner] = []
    attempt = Learner._try

    def noted(self: Learner, only_if_due: bool = False) -> bool:
        tries.append(self)
        return attempt(self, only_if_due)

    monkeypatch.setattr(Learner, "_try", noted)
    ours = drafter()
    learner = Learner(ours)
    learner.take(OUTPUT)
    wait_for(lambda: len(documents(ours)) == 1)
    time.sleep(0.5)
    assert tries.count(learner) == 1  # those of other tests may still be at work
    learner.close()


def test_ids_outside_the_vocabulary_are_left_out_and_the_rest_is_learnt() -> None:
    ours = drafter()
    learner = Learner(ours)
    learner.take(np.array([1, 2, -1, 3, 4, VOCAB, 5]))
    learner.take(np.array([], np.int32))
    learner.flush()
    assert documents(ours) == [[1, 2], [3, 4], [5]]


def test_while_kernels_are_compiled_outputs_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "_NOT_YET", 0.01)
    ours, lacking = drafter(), threading.Event()
    learn = ModelDatabase.learn_known

    def not_yet(self: ModelDatabase, *outputs: Any) -> None:
        if not lacking.is_set():
            raise NotCompiledError("a kernel")
        learn(self, *outputs)

    monkeypatch.setattr(ModelDatabase, "learn_known", not_yet)
    learner = Learner(ours)
    learner.take(OUTPUT)
    learner.take(OUTPUT[1:])
    with pytest.raises(NotCompiledError):
        learner.flush()
    assert documents(ours) == []
    lacking.set()
    wait_for(lambda: len(documents(ours)) == 2)
    assert documents(ours) == [OUTPUT.tolist(), OUTPUT[1:].tolist()]


def test_what_was_learnt_is_there_after_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "state"
    first, ours = drafter(), drafter()
    learner = Learner(first, folder)
    learner.take(OUTPUT)
    learner.close()
    Learner(ours, folder)
    assert documents(ours) == [OUTPUT.tolist()]
    assert ours.session([20, 21, 22]).propose(3).tokens.tolist() == [23, 24, 25]


def test_it_is_written_while_the_process_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "INTERVAL", 0.05)
    ours = drafter()
    learner = Learner(ours, tmp_path)
    for number in range(3):
        learner.take(OUTPUT[number:])
        wait_for(lambda: (tmp_path / "learned" / "manifest.json").exists() and len(kept(tmp_path)) == number + 1)  # noqa: B023
    learner.close()


def kept(folder: Path) -> list[list[int]]:
    theirs = drafter()
    theirs.load(folder)
    return documents(theirs)


def test_a_folder_that_cannot_be_written_any_more_is_one_line_in_the_log_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(learning, "INTERVAL", 0.02)
    full, tried = True, 0
    save = HierarchyDrafter.save

    def saving(self: HierarchyDrafter, folder: Any) -> None:
        nonlocal tried
        tried += 1
        if full:
            raise DatabaseError(f"cannot save to {folder}: the disk is full")
        save(self, folder)

    monkeypatch.setattr(HierarchyDrafter, "save", saving)
    learner = Learner(drafter(), tmp_path)
    learner.take(OUTPUT)
    wait_for(lambda: tried > 3)
    full = False
    wait_for(lambda: (tmp_path / "learned" / "manifest.json").exists() and kept(tmp_path) == [OUTPUT.tolist()])
    [record] = [record for record in caplog.records if record.name == "vllm.hdraft"]
    assert record.levelno == logging.WARNING
    assert "the disk is full" in record.getMessage()


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: folder.write_text("a file"), "cannot keep what is learnt in"),
        (lambda folder: (folder.mkdir(), (folder / "photo.jpg").touch()), "holds other files"),
        (lambda folder: HierarchyDrafter(VOCAB + 1, learn=True).save(folder), "101 ids and this drafter has 100"),
    ],
)
def test_a_folder_that_is_no_state_of_this_model_stops_the_start(
    spoil: Callable[[Path], Any], reason: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "state")
    with pytest.raises(DatabaseError, match=reason) as refused:
        HierarchyProposer(vllm_config(VOCAB, {"learn": True, "drafter_state": str(tmp_path / "state")}))
    assert "\n" not in str(refused.value)


def test_the_proposer_goes_on_from_its_folder_and_each_replica_has_its_own(tmp_path: Path) -> None:
    settings = {"learn": True, "drafter_state": str(tmp_path)}
    for replica in (0, 1):
        proposer = HierarchyProposer(vllm_config(VOCAB, settings, replica=replica))
        batch = Batch(proposer, 2)
        batch.add(Request([1, 2], OUTPUT[replica:].tolist()))
        batch.add(running := Request([3, 4], [*OUTPUT[::-1].tolist(), 1]))
        while running.emitted < 20:
            batch.step()
        proposer._close()  # what is running is learnt as far as it is
        assert running.emitted < 40
    first, second = kept(tmp_path), kept(tmp_path / "replica-1")
    assert OUTPUT[:20].tolist() == first[0][:20] and OUTPUT[1:21].tolist() == second[0][:20]
    assert OUTPUT[::-1][:20].tolist() == first[1][:20]
    again = HierarchyProposer(vllm_config(VOCAB, settings))
    assert again._batch is not None
    assert documents(again._batch.drafter) == first


SERVER = """
import multiprocessing, os, signal, sys, time
sys.path.insert(0, {tests!r})
def serve(ready):
    from batch import Batch, Request, vllm_config
    from hdraft.engines import learning
    from hdraft.engines.vllm import HierarchyProposer
    learning.INTERVAL = {interval}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    proposer = HierarchyProposer(vllm_config(100, {{"learn": True, "drafter_state": {folder!r}}}))
    batch = Batch(proposer, 4)
    for number in range(10**6):
        batch.add(request := Request([number % 7], list(range(20 + number % 3, 60))))
        while request.emitted < len(request.output):
            batch.step()
        batch.remove(request)
        if number == 20:
            ready.set()
        time.sleep(0.002)
        if os.getppid() != multiprocessing.parent_process().pid:
            os._exit(1)  # the test was stopped
if __name__ == "__main__":
    context = multiprocessing.get_context({start!r})
    ready = context.Event()
    worker = context.Process(target=serve, args=(ready,))
    worker.start()
    ready.wait()
    print(worker.pid, flush=True)
    worker.join()
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such signals")
@pytest.mark.parametrize(
    ("start", "how"), [("fork", signal.SIGTERM), ("spawn", signal.SIGTERM), ("spawn", signal.SIGKILL)]
)
def test_a_worker_that_is_stopped_keeps_what_it_learnt_and_one_that_is_killed_what_it_wrote(
    start: str, how: signal.Signals, tmp_path: Path
) -> None:
    folder = tmp_path / "state"
    interval = 60.0 if how == signal.SIGTERM else 0.01  # killed in the midst of writing, mostly
    code = SERVER.format(tests=str(Path(__file__).parent), folder=str(folder), start=start, interval=interval)
    script = tmp_path / "server.py"
    script.write_text(code, encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        if how == signal.SIGKILL:
            wait_for(lambda: (folder / "learned" / "manifest.json").exists())
        os.kill(worker, how)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    found = kept(folder)
    assert {tuple(document) for document in found} <= {
        tuple(range(begin, end)) for begin in range(20, 60) for end in range(begin + 1, 61)
    }
    begun, ended = (sum(each) for each in zip(*((each[0] <= 22, each[-1] == 59) for each in found), strict=True))
    assert begun >= ended >= (20 if how == signal.SIGTERM else 0)  # as many as had ended when the last one began
