"""The demonstration's D_s: this machine's own Python standard library, built at the first run and kept."""

import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from typing import Any

from rich.console import Console

from hdraft import storage
from hdraft.building import build_statistics
from hdraft.drafting.statistics import StatisticsDatabase
from hdraft.terminal import progress

_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test", "pydoc_data", "lib-dynload", "__pycache__"}


def library_database(tokenizer: Any, vocab_size: int, console: Console) -> StatisticsDatabase | None:
    """D_s from the standard library's source, kept in the user's cache folder; None if there is no source."""
    folder = library_folder(tokenizer)
    try:
        return StatisticsDatabase.from_pretrained(folder, tokenizer, verify=True)
    except storage.DatabaseError:
        pass  # not built yet, or damaged: build it
    files = list(library_files())
    if not files:
        return None
    console.print("building D_s from this machine's Python standard library, once")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        return _build(files, folder, tokenizer, vocab_size, console)
    except storage.DatabaseError as error:
        console.print(f"once more, not to be kept: {error}", soft_wrap=True)
        with tempfile.TemporaryDirectory() as temporary:
            return _build(files, Path(temporary), tokenizer, vocab_size, console)


def library_folder(tokenizer: Any) -> Path:
    """Where that D_s is kept for a tokenizer."""
    return _cache_folder() / "hdraft" / _name(tokenizer)


def library_files() -> Iterator[Path]:
    """The standard library's modules, without its tests and what was installed beside it."""
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _build(files: list[Path], folder: Path, tokenizer: Any, vocab_size: int, console: Console) -> StatisticsDatabase:
    with progress(console) as report:
        return build_statistics(files, folder, tokenizer, vocab_size, progress=report)


def _cache_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user without a home folder, as in some containers
        return Path(tempfile.gettempdir())


def _name(tokenizer: Any) -> str:
    fingerprint = storage.tokenizer_fingerprint(tokenizer) or ""
    return f"python-{python_version()}-{fingerprint[:12]}-{storage.VERSION}"
