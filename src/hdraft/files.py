"""Files that are written at the end of a long work: tried at its beginning, and replaced at once or not at all."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import RawIOBase
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """Put `content` in the place of a file, at once or not at all.

    Raises:
        OSError: it cannot be written; names `path`.
    """
    path = Path(os.path.realpath(path))
    with naming(path), tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:99]}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, path.stat().st_mode & 0o777 if path.exists() else 0o644)
            os.replace(file.name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(file.name)
            raise


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
            yield lambda text: _write(file, path, text.encode())
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


def _write(file: RawIOBase, path: Path, content: bytes) -> None:
    rest = memoryview(content)
    with naming(path):
        while rest:
            rest = rest[file.write(rest) or 0 :]
