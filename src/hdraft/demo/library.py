"""The demonstration's D_s: this machine's own Python standard library, built at the first run and kept."""

import os
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from platform import python_version
from typing import Any

from rich.console import Console

from hdraft.building.reading import Vocabulary, read_tokens
from hdraft.demo import MODEL
from hdraft.demo.cache import cache_folder
from hdraft.drafting.databases import storage
from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.vocabulary import tokenizer_fingerprint
from hdraft.loading import load_vocabulary
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
    database = _build(files, tokenizer, vocab_size, console)
    try:
        shutil.rmtree(folder, ignore_errors=True)
        database.save_pretrained(folder)
    except storage.DatabaseError as error:
        console.print(f"not kept for the next time: {error}", soft_wrap=True)
    return database


def kept_library(console: Console) -> str | None:
    """The folder of that D_s for the embedded model, built if need be; None where it cannot be had or kept."""
    tokenizer, size = load_vocabulary(str(MODEL))
    database = library_database(tokenizer, size or len(tokenizer), console)
    folder = library_folder(tokenizer)
    return str(folder) if database is not None and folder.is_dir() else None


def library_folder(tokenizer: Any) -> Path:
    """Where that D_s is kept for a tokenizer."""
    return cache_folder() / _name(tokenizer)


def library_files() -> Iterator[Path]:
    """The standard library's modules, without its tests and what was installed beside it."""
    library = Path(sysconfig.get_path("stdlib"))
    for folder, folders, names in os.walk(library):
        folders[:] = sorted(set(folders) - _LEFT_OUT)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def _build(files: list[Path], tokenizer: Any, vocab_size: int, console: Console) -> StatisticsDatabase:
    vocabulary = Vocabulary.of(tokenizer, vocab_size, None)
    with progress(console) as report:
        tokens = read_tokens(files, vocabulary, report)
        report("sorting", 0, len(tokens))
        database = StatisticsDatabase.from_tokens(tokens, vocab_size, vocabulary.eos_token_id, tokenizer)
        report("sorting", len(tokens), len(tokens))
    return database


def _name(tokenizer: Any) -> str:
    fingerprint = tokenizer_fingerprint(tokenizer) or ""
    return f"python-{python_version()}-{fingerprint[:12]}-{storage.VERSION}"
