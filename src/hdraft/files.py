"""Files of a long work: tried before it, held against other writers, replaced at once, or added to line by line."""

import codecs
import errno
import gzip
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from hdraft.text import parse_json

_LONGEST_LINE = 1 << 30  # bytes of a line of JSON


def replace(path: Path, content: bytes, temporary: Path | None = None) -> None:
    """Put `content` in the place of a file, at once or not at all.

    Args:
        path: the file; a link is followed.
        content: of the file.
        temporary: where it is written first, beside the file; None for a name of its own.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path = Path(os.path.realpath(path))
    temporary = temporary or path.with_name(f".{path.name[:99]}.{os.urandom(4).hex()}")
    try:
        with naming(path):
            with synced(temporary) as file:
                if path.exists():
                    os.chmod(temporary, path.stat().st_mode & 0o777)
                file.write(content)
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


@contextmanager
def synced(path: Path) -> Iterator[BinaryIO]:
    """A file to write anew, on the disk when it is closed.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let every `OSError` in here name a file: those of writing to a descriptor name none."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def try_file(path: Path) -> None:
    """Make sure that a file can be written, by opening it to write; nothing is changed.

    Raises:
        OSError: it cannot.
    """
    path = Path(os.path.realpath(path))
    new = not path.exists()
    with open(path, "ab"):
        pass
    if new:
        path.unlink()


def try_folder(path: Path) -> None:
    """Make sure that files can be written in a folder, which need not be there, by writing one; nothing is changed.

    Raises:
        OSError: they cannot; names `path`.
    """
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        with naming(path):
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path, prefix=".hdraft-"):
                pass
    finally:
        for folder in created:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def promised(path: Path) -> Iterator[Callable[[str], None]]:
    """Make sure that a file can be written, and yield what writes it in the end; until then it stays what it is.

    A pipe or a device is written to as it is.

    Raises:
        OSError: it cannot be written.
    """
    if path.exists() and not path.is_file():
        with open(path, "wb", buffering=0) as file:
            yield lambda text: _write(file.fileno(), path, text.encode())
        return
    try_file(path)

    def write(text: str) -> None:
        try:
            replace(path, text.encode())
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EBUSY):
                raise
            path.write_text(text, encoding="utf-8")  # the file may be written, and its folder not

    yield write


def _write(descriptor: int, path: Path, content: bytes) -> None:
    rest = memoryview(content)
    with naming(path):
        while rest:
            rest = rest[os.write(descriptor, rest) :]


@contextmanager
def exclusive(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold a file or folder against other writers; a process that dies lets go of it.

    Args:
        path: the file or folder.
        patience: seconds to wait for another that holds it.

    Raises:
        BlockingIOError: another process, or another thread, holds it.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock for a folder
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        end = time.monotonic() + patience
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise BlockingIOError(errno.EWOULDBLOCK, "another process is writing it") from None
                time.sleep(0.01)
                continue
            except OSError:
                pass  # a file system without locks
            break
        yield
    finally:
        os.close(descriptor)


def describe(error: OSError) -> str:
    """An `OSError` in a few words, with what to do where that is plain."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; free some space and try again"
    return error.strerror or str(error)


class Journal:
    """A file that lines are added to; see `journal`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def append(self, line: bytes) -> None:
        """Write a line and sync it, or leave the file as it was.

        Raises:
            OSError: it cannot be written; names the file.
        """
        size = os.fstat(self._descriptor).st_size
        try:
            _write(self._descriptor, self.path, line)
            with naming(self.path):
                os.fsync(self._descriptor)
        except BaseException:
            self.cut(size)
            raise

    def cut(self, size: int) -> None:
        """Leave the first `size` bytes."""
        os.ftruncate(self._descriptor, size)


@contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """Open a file to add lines to, which no other process then writes; one that comes to nothing is removed.

    Raises:
        BlockingIOError: another process holds it.
        OSError: it cannot be written.
    """
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with exclusive(path):
            yield Journal(path, descriptor)
    except BaseException:
        if new and not os.fstat(descriptor).st_size:
            path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)


def whole_lines(path: Path) -> tuple[int, int, bytes]:
    """How many whole lines the file holds, how many bytes those are, and the torn line behind them, if any."""
    count, size, line = 0, 0, b"\n"
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                count, size = count + 1, size + len(line)
    return count, size, b"" if line.endswith(b"\n") else line


def json_lines(
    path: Path, refusal: type[ValueError] = ValueError, *, torn: bool = False
) -> Iterator[tuple[str, dict[str, Any], int]]:
    """The objects of a `.jsonl` or `.jsonl.gz`: where each is ("file:line"), itself, and the bytes read so far.

    Args:
        path: the file; empty lines are passed over.
        refusal: the exception to raise.
        torn: pass over a last line that was not written to its end.

    Raises:
        refusal: the file cannot be read, or a line is no JSON object; it names file and line.
    """
    number = 0
    try:
        with open(path, "rb") as raw:
            lines: IO[bytes] = gzip.GzipFile(fileobj=raw) if path.name.endswith(".gz") else raw  # type: ignore[assignment]
            while line := lines.readline(_LONGEST_LINE):
                number += 1
                where = f"{path}:{number}"
                if len(line) == _LONGEST_LINE:
                    raise refusal(f"{where}: longer than {_LONGEST_LINE} bytes")
                if not line.removeprefix(codecs.BOM_UTF8).strip():
                    continue
                try:
                    record = parse_json(line)
                except ValueError as error:
                    if torn and not line.endswith(b"\n"):
                        return
                    raise refusal(f"{where}: {error}") from None
                if not isinstance(record, dict):
                    raise refusal(f"{where}: not a JSON object")
                yield where, record, raw.tell()
    except (OSError, EOFError, zlib.error) as error:
        after = f" after line {number}" if number else ""
        reason = describe(error) if isinstance(error, OSError) else error
        raise refusal(f"{path}: cannot be read{after} ({reason})") from error
