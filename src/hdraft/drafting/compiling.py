"""Kernels compiled beside the work: by a process of its own, at low priority, into the folder they are loaded from.

A thread would hold the interpreter's lock for seconds at a time. Whoever lacks a kernel meanwhile does without drafts.
"""

import logging
import os
import subprocess
import sys
import threading

from hdraft.drafting import kernel_cache
from hdraft.drafting.drafter import Drafter, kernel_arguments

logger = logging.getLogger(__name__)

_MODULE = "hdraft.drafting.compile_kernels"


class Compilation:
    """A process that compiles kernels."""

    def __init__(self, arguments: tuple[str, ...]) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        path = os.pathsep.join(sys.path)  # hdraft may be found by what a script has put there
        self._process = subprocess.Popen(
            [sys.executable or "python", "-P", "-m", _MODULE, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C is for the request; a session, too, would have a share of processors of its own
        )
        threading.Thread(target=self._process.wait, daemon=True).start()  # leaves no zombie
        self.met_ended = False  # by somebody who lacks a kernel

    def running(self) -> bool:
        """Whether it is still at work."""
        return self._process.poll() is None


_compilations: dict[tuple[str, ...], Compilation | None] = {}
_lock = threading.Lock()


def compile_beside(drafter: Drafter) -> Compilation | None:
    """See to it that the kernels are compiled that a drafter was found to lack, and say so in the log, once.

    Returns:
        What compiles them, to try again when it has ended; None if that came to nothing: the log says what to do.
    """
    arguments = kernel_arguments(drafter)
    with _lock:
        if arguments not in _compilations:
            _compilations[arguments] = _start(arguments)
        compilation = _compilations[arguments]
        if compilation is None or compilation.running():
            return compilation
        if not compilation.met_ended:  # since the kernel was looked for, perhaps
            compilation.met_ended = True
            return compilation
        _compilations[arguments] = None
    logger.warning(
        "the drafting kernels could not be compiled in the background, so nothing is drafted: `python -m %s %s` says"
        " why; or call %s.warm_up(drafter) first, which compiles them at once",
        _MODULE,
        " ".join(arguments),
        _MODULE,
    )
    return None


def _start(arguments: tuple[str, ...]) -> Compilation | None:
    if not kernel_cache.folders:
        logger.warning(
            "no folder for compiled kernels can be written, so nothing is drafted: set NUMBA_CACHE_DIR, or call"
            " %s.warm_up(drafter) first, which compiles them for this process",
            _MODULE,
        )
        return None
    try:
        compilation = Compilation(arguments)
    except OSError as error:
        logger.warning("no process to compile drafting kernels can be started, so nothing is drafted: %s", error)
        return None
    logger.warning("compiling the drafting kernels in the background, once; until then, decoding goes without drafts")
    return compilation
