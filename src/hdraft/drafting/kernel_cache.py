"""Where compiled kernels are kept between processes.

The first of these that can be written: the folder that `NUMBA_CACHE_DIR` names, the package's own `__pycache__`, the
user's cache folder, the temporary folder. If there is none, kernels are compiled in every process. What is kept is
machine code: of the last two, a folder that somebody else may write is not used.

To compile takes seconds, to load what was compiled a tenth of one. So who must not wait calls kernels within
`loading_only`, where one that would have to be compiled raises `NotCompiledError` instead (`compiling` does it then).
"""

import logging
import os
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import (
    CompileResultCacheImpl,
    FunctionCache,
    NullCache,
    _CacheLocator,
    _SourceFileBackedLocatorMixin,
)
from numba.core.sigutils import normalize_signature
from numba.misc.appdirs import AppDirs

logger = logging.getLogger(__name__)

folders: set[Path] = set()
"""Where the kernels imported so far are kept; none where no folder can be written."""

_thread = threading.local()


class NotCompiledError(RuntimeError):
    """A kernel that is neither compiled in this process nor kept on disk, within `loading_only`."""


@contextmanager
def loading_only() -> Iterator[None]:
    """Let kernels that this thread calls raise `NotCompiledError` rather than compile."""
    before = getattr(_thread, "loading_only", False)
    _thread.loading_only = True
    try:
        yield
    finally:
        _thread.loading_only = before


def keep(dispatcher: Any) -> None:
    """Let a compiled function be kept, and what was kept of it be used; the log has a line if that is not as usual."""
    try:
        dispatcher._cache = kept = _KernelCache(dispatcher.py_func)
    except Exception as error:  # Numba raises RuntimeError where its locators have no folder
        logger.debug("%s", error)
        dispatcher._cache = _NoCache()
        return
    locator = kept._impl.locator
    folders.add(Path(kept.cache_path))
    if isinstance(locator, _TemporaryFolder):
        _warn(f"compiled kernels are kept in {locator.folder.parent}: no better folder can be written")


@cache
def _warn(message: str) -> None:
    """Once for all kernels."""
    logger.warning(message)


def make_private(folder: Path) -> None:
    """Make a folder for this user alone, if it is not there.

    Raises:
        OSError: it cannot be made, or somebody else could write to it, or put another in its place.
    """
    if not folder.is_absolute():  # "~" where there is no home folder
        raise NotADirectoryError(f"{folder} depends on the current folder")
    for place in (*reversed(folder.parents), folder):
        if not place.exists():
            place.mkdir(mode=0o700, exist_ok=True)
    if os.name == "nt":  # a user's cache and temporary folders are the user's alone
        return
    real = folder.resolve()
    for place in {folder, *folder.parents, real, *real.parents}:
        found = place.lstat()
        shared = bool(found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)) and not stat.S_ISLNK(found.st_mode)
        if found.st_mode & stat.S_ISVTX and place != real:
            shared = False  # as /tmp is: what is in it is its owner's
        if shared or found.st_uid not in (0, os.getuid()):
            raise PermissionError(f"{place} is not this user's alone")


class _PrivateFolder(_SourceFileBackedLocatorMixin, _CacheLocator):  # type: ignore[misc]
    """A folder for each folder of sources, in one of this user's."""

    def __init__(self, function: Any, file: str) -> None:
        self._py_file = file
        self._lineno = function.__code__.co_firstlineno
        self.folder = Path(self.base(), self.get_suitable_cache_subpath(file))

    def base(self) -> str:
        return str(AppDirs("hdraft", False).user_cache_dir)

    def get_cache_path(self) -> str:
        return str(self.folder)

    def ensure_cache_path(self) -> None:
        make_private(self.folder)
        super().ensure_cache_path()


class _TemporaryFolder(_PrivateFolder):
    def base(self) -> str:
        user = os.getuid() if hasattr(os, "getuid") else "kernels"
        return os.path.join(tempfile.gettempdir(), f"hdraft-{user}")


class _KernelCacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (
        *(
            locator
            for locator in CompileResultCacheImpl._locator_classes
            if locator.__name__.lstrip("_") in ("UserProvidedCacheLocator", "InTreeCacheLocator")
        ),
        _PrivateFolder,
        _TemporaryFolder,
    )


class _KernelCache(FunctionCache):  # type: ignore[misc]
    """Numba's, but that nothing which befalls the files stops a request."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        found = None
        try:
            # Numba's own begins by making the compiler ready, which takes half a second and is not needed to load.
            with self._guard_against_spurious_io_errors():
                found = self._load_overload(sig, target_context)
        except Exception as error:  # a torn file fails in every way that unpickling can
            logger.debug("%s: %s", self._name, error)
            self._start_anew()
        # Two processes that save at once may give two types' code one file name.
        expected = tuple(normalize_signature(sig)[0])
        if found is not None and tuple(found.signature.args) == expected:
            return found
        _refuse_to_wait(self._name)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error)
            _warn(f"compiled kernels cannot be kept ({reason}): each process compiles its own (set NUMBA_CACHE_DIR)")

    def _start_anew(self) -> None:
        try:
            self.flush()
        except OSError as error:
            logger.debug("%s: %s", self._name, error)


class _NoCache(NullCache):  # type: ignore[misc]
    def load_overload(self, sig: Any, target_context: Any) -> None:
        _refuse_to_wait("kernels")
        _warn("no folder for compiled kernels can be written: each process compiles its own (set NUMBA_CACHE_DIR)")


def _refuse_to_wait(name: str) -> None:
    if getattr(_thread, "loading_only", False):
        raise NotCompiledError(f"not compiled yet: {name}")
