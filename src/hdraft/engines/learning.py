"""What requests have generated, learnt beside the work, and kept in a folder from one process to the next."""

import logging
import os
import threading
import time
from collections import deque
from pathlib import Path

from hdraft import files
from hdraft.drafting.databases.storage import DatabaseError
from hdraft.drafting.drafter import IdArray
from hdraft.drafting.hierarchy.drafter import HierarchyDrafter
from hdraft.drafting.kernel_cache import NotCompiledError, loading_only

INTERVAL = 60.0
"""The seconds from what is learnt to when it is in the folder, at most."""

_REST = 50.0  # times of what learning took, until it learns again
_WAITING = 4096  # pieces of output, where learning cannot keep up: the oldest are left out
_NOT_YET = 1.0  # seconds between attempts to learn while kernels are being compiled

_log = logging.getLogger("vllm.hdraft")  # where vLLM's own handlers print it


class Learner:
    """Lets a drafter's D_m learn, on a thread of its own.

    To take an output in costs a copy of all that D_m has learned. So what has come meanwhile is taken in together, and
    the thread rests for fifty times as long as that took: a fiftieth of one processor at most, whatever is learnt.

    Args:
        drafter: what learns. Its requests' experience is kept too.
        folder: where what is learnt is read from now, and written to: `INTERVAL` after something was learnt, and by
            `close`. Whatever interrupts that leaves what was written before or what is written now.

    Raises:
        DatabaseError: the folder holds something else, or is of another tokenizer, or cannot be written.
    """

    def __init__(self, drafter: HierarchyDrafter, folder: str | os.PathLike[str] | None = None) -> None:
        self._drafter = drafter
        self._folder = None if folder is None else Path(folder)
        self._waiting: deque[IdArray] = deque(maxlen=_WAITING)
        self._learning, self._saving = threading.Lock(), threading.Lock()
        self._came, self._ended = threading.Event(), threading.Event()
        self._unsaved_since: float | None = None
        self._complained = False
        if self._folder is not None:
            _open(self._folder, drafter)
        threading.Thread(target=self._run, name="hdraft-learner", daemon=True).start()

    def take(self, output_ids: IdArray) -> None:
        """Have a piece of output learnt: int[n] ids, those outside the vocabulary left out. Returns at once."""
        if len(output_ids):
            self._waiting.append(output_ids)
            self._came.set()

    def flush(self) -> None:
        """Learn what is waiting, and return when it is learnt.

        Raises:
            NotCompiledError: kernels are still being compiled; it goes on waiting.
        """
        with self._learning, loading_only():
            outputs = [self._waiting.popleft() for _ in range(len(self._waiting))]
            if not outputs:
                return
            try:
                self._drafter.model_database.learn_known(*outputs)
            except NotCompiledError:
                self._waiting.extendleft(reversed(outputs))
                raise
            if self._folder is not None:
                self._unsaved_since = self._unsaved_since or time.monotonic()

    def close(self) -> None:
        """Learn and write what is waiting; nothing is learnt afterwards."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._came.set()
        self._try()

    def _run(self) -> None:
        while not self._ended.is_set():
            due = None if self._unsaved_since is None else self._unsaved_since + INTERVAL - time.monotonic()
            if due is None or due > 0:
                self._came.wait(due)
            self._came.clear()
            if not self._ended.is_set():
                start = time.perf_counter()
                learnt = self._try(only_if_due=True)
                self._ended.wait(_REST * (time.perf_counter() - start) if learnt else _NOT_YET)

    def _try(self, only_if_due: bool = False) -> bool:
        """Learn, then save; returns whether nothing is left to learn. What fails has one line in the log."""
        learnt = True
        try:
            self.flush()
        except NotCompiledError:
            learnt = False
            self._came.set()
        except Exception:
            self._complain("hdraft cannot learn what requests have generated", exc_info=True)
        since = self._unsaved_since
        due = since is not None and (not only_if_due or time.monotonic() >= since + INTERVAL)
        if self._folder is not None and due:
            self._save(self._folder)
        return learnt

    def _save(self, folder: Path) -> None:
        with self._saving:
            self._unsaved_since = None
            try:
                self._drafter.save(folder)
            except DatabaseError as error:
                self._unsaved_since = time.monotonic()
                self._complain(f"what hdraft has learnt is not kept, which is tried again and again: {error}")

    def _complain(self, message: str, exc_info: bool = False) -> None:
        if not self._complained:
            self._complained = True
            _log.warning(message, exc_info=exc_info)


def _open(folder: Path, drafter: HierarchyDrafter) -> None:
    """Go on from a folder, which need not be there yet."""
    try:
        files.try_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"cannot keep what is learnt in {folder}: {files.describe(error)}") from error
    drafter.load(folder)
