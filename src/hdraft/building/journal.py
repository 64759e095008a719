"""A file of JSON lines that is added to a line at a time, by one process, and survives its being killed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hdraft import files
from hdraft.drafting.databases import storage


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor to append to `path` with, which no other process then writes.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be written.
    """
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with storage.exclusive(path):
            yield descriptor
    except BaseException:
        if new and not os.fstat(descriptor).st_size:  # nothing came of it
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def append(descriptor: int, path: Path, line: bytes) -> None:
    """Write a line and sync it, or leave the file as it was.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    size = os.fstat(descriptor).st_size
    try:
        with files.naming(path):
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
    except BaseException:
        os.ftruncate(descriptor, size)
        raise


def whole_lines(path: Path) -> tuple[int, int, bytes]:
    """How many whole lines the file holds, how many bytes those are, and the torn line behind them, if any."""
    count, size, line = 0, 0, b"\n"
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, size = count + 1, size + len(line)
    return count, size, b"" if line.endswith(b"\n") else line
