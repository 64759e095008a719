"""Files of text or token ids -> one array of token ids.

Text is read, tokenized and forgotten a batch at a time, so memory is for the token array alone. The formats:

    .npy                  1-D integer token ids, documents ended by the end-of-sequence id
    .jsonl, .jsonl.gz     a document a line: {"output_ids": [int]}, {"ids": [int]} or {"text": str}
    .txt, .py             one document in UTF-8; what is not UTF-8 becomes U+FFFD
    a folder              all of these in it and below it, in the order of their names, but for databases' own arrays
"""

import io
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases import storage
from hdraft.files import describe, json_lines

PathLike = str | os.PathLike[str]
Ids = npt.NDArray[np.integer]

Progress = Callable[[str, int, int], None]
"""Told what is being done ("reading" in bytes, "sorting" in tokens, "generating" in prompts), how much, of how much."""

SUFFIXES = (".npy", ".jsonl", ".jsonl.gz", ".txt", ".py")

_BATCH = 1 << 21  # characters tokenized at once
_PIECE = 1 << 15  # a text file is tokenized in pieces of about this many characters, cut at line ends
_CHUNK = 1 << 20  # token ids copied from an .npy at once

_log = logging.getLogger(__name__)


class BuildError(ValueError):
    """Input that no database can be built from; one line that says what is wrong and where (file, line)."""


@dataclass(frozen=True)
class Vocabulary:
    """The vocabulary that token ids belong to. `tokenizer` is None where only ids can be read."""

    vocab_size: int
    eos_token_id: int | None
    tokenizer: Any = None

    @classmethod
    def of(cls, tokenizer: Any, vocab_size: int | None, eos_token_id: int | None) -> "Vocabulary":
        """From a Hugging Face tokenizer, from numbers, or from both, where the numbers come first.

        Raises:
            BuildError: neither is given, or they make no vocabulary.
        """
        if tokenizer is not None:
            if vocab_size is None:
                vocab_size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=0))
            if eos_token_id is None:
                eos_token_id = tokenizer.eos_token_id
        if vocab_size is None:
            raise BuildError("give a tokenizer, or the vocabulary's size and end-of-sequence id")
        if not 1 <= vocab_size <= storage.MAX_VOCAB_SIZE:
            raise BuildError(f"a vocabulary of {vocab_size} ids is out of range: 1 to {storage.MAX_VOCAB_SIZE}")
        if eos_token_id is not None and not 0 <= eos_token_id < vocab_size:
            raise BuildError(f"the end-of-sequence id {eos_token_id} is outside the vocabulary of {vocab_size} ids")
        return cls(vocab_size, eos_token_id, tokenizer)

    @property
    def separator(self) -> int:
        """The id that ends a document: one more than the vocabulary has, where it has no end-of-sequence id."""
        return self.vocab_size if self.eos_token_id is None else self.eos_token_id


def read_tokens(paths: PathLike | Sequence[PathLike], vocabulary: Vocabulary, progress: Progress | None = None) -> Ids:
    """Read files and folders into one array of token ids, each document ended by the separator.

    Raises:
        BuildError: something cannot be read, is malformed, is outside the vocabulary, or there is nothing in it.
    """
    files = list_files(paths)
    total = sum(file.stat().st_size for file in files)
    tokens = _Tokens(vocabulary)
    for batch in _batches(_pieces(files)):
        tokens.add(batch)
        if progress is not None:
            progress("reading", min(batch[-1].position, total), total)
    if not tokens.documents:
        raise BuildError(f"nothing to build from: no text and no token ids in {', '.join(map(str, files))[:200]}")
    return tokens.array()


def list_files(paths: PathLike | Sequence[PathLike]) -> list[Path]:
    """The files that `paths` name, and those of the known kinds in the folders that they name.

    Raises:
        BuildError: no such file, or none of a known kind.
    """
    files: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | os.PathLike) else paths):
        if path.is_dir():
            files += _files_below(path)
        elif not path.exists():
            raise BuildError(f"{path}: no such file or folder")
        elif not path.name.endswith(SUFFIXES):
            raise BuildError(f"{path}: of no known kind ({', '.join(SUFFIXES)})")
        else:
            files.append(path)
    return files


def _files_below(folder: Path) -> list[Path]:
    """The files of a folder; the arrays of a database that lies in it are token ids too, and no text of the user's."""
    named = sorted(file for file in folder.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
    found = [file for file in named if not storage.is_array(file.name)]
    databases = {file.parent for file in named if storage.is_array(file.name)}
    if not found:
        but = " but a database's arrays" if databases else ""
        raise BuildError(f"{folder}: no {', '.join(SUFFIXES)} files in this folder{but}")
    for database in sorted(databases):
        _log.warning("%s: holds a database, whose arrays are left out", database)
    return found


def id_list(value: object, where: str, name: str) -> Ids:
    """A JSON list of token ids as an array.

    Raises:
        BuildError: it is not a list of integers.
    """
    if value == []:
        return np.empty(0, np.int64)
    ids = None
    if isinstance(value, list) and bool not in set(map(type, value)):  # which NumPy would take for 0 and 1
        with suppress(ValueError, OverflowError):  # lists of several lengths; an integer without bound
            ids = np.asarray(value)
    if ids is None or ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise BuildError(f'{where}: "{name}" is not a list of token ids')
    return ids


def check_ids(ids: Ids, vocab_size: int, where: str) -> None:
    """Raise `BuildError` if an id is outside the vocabulary."""
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or high >= vocab_size:
        raise BuildError(f"{where}: token id {low if low < 0 else high} is outside the vocabulary of {vocab_size} ids")


class _Piece(NamedTuple):
    """Part of a document."""

    where: str
    content: str | Ids
    ends: bool  # the document ends here
    position: int  # bytes read so far


def _pieces(files: Sequence[Path]) -> Iterator[_Piece]:
    before = 0
    for path in files:
        if path.name.endswith(".npy"):
            pieces = _array_pieces(path)
        elif path.name.endswith((".jsonl", ".jsonl.gz")):
            pieces = _line_pieces(path)
        else:
            pieces = _text_pieces(path)
        for piece in pieces:
            yield piece._replace(position=before + piece.position)
        before += path.stat().st_size


def _array_pieces(path: Path) -> Iterator[_Piece]:
    try:
        ids = np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({describe(error)})") from error
    except Exception:  # a header is parsed as a Python literal, which fails in many ways
        raise BuildError(f"{path}: not an .npy file of plain numbers, or cut off") from None
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise BuildError(f"{path}: holds {ids.ndim}-D {ids.dtype}, not 1-D integer token ids")
    for begin in range(0, len(ids), _CHUNK):
        chunk = np.asarray(ids[begin : begin + _CHUNK])
        yield _Piece(str(path), chunk, begin + _CHUNK >= len(ids), (begin + len(chunk)) * ids.itemsize)


def _line_pieces(path: Path) -> Iterator[_Piece]:
    for where, record, position in json_lines(path, BuildError):
        name = next((name for name in ("output_ids", "ids", "text") if name in record), None)
        if name is None:
            raise BuildError(f'{where}: none of "output_ids", "ids" and "text"')
        value = record[name]
        if name == "text" and not isinstance(value, str):
            raise BuildError(f'{where}: "text" is not a string')
        yield _Piece(where, value if name == "text" else id_list(value, where, name), True, position)


def _text_pieces(path: Path) -> Iterator[_Piece]:
    try:
        with open(path, "rb") as raw, io.TextIOWrapper(raw, encoding="utf-8-sig", errors="replace") as file:
            while text := file.read(_PIECE):
                yield _Piece(str(path), text + file.readline(_PIECE), False, raw.tell())
            yield _Piece(str(path), "", True, raw.tell())
    except OSError as error:
        raise BuildError(f"{path}: cannot be read ({describe(error)})") from error


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    size = 0
    for piece in pieces:
        batch.append(piece)
        size += len(piece.content)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Tokens:
    """A token array that grows."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.documents = 0
        self._vocabulary = vocabulary
        self._dtype = storage.id_dtype(vocabulary.vocab_size)
        self._ids = array("H" if self._dtype.itemsize == 2 else "I")
        self._begin = 0  # of the document that is being added

    def add(self, batch: Sequence[_Piece]) -> None:
        texts = [piece for piece in batch if isinstance(piece.content, str)]
        encoded = iter(self._encode(texts) if texts else ())
        for piece in batch:
            ids = np.asarray(next(encoded), np.int64) if isinstance(piece.content, str) else piece.content
            self._add(ids, piece.where)
            if piece.ends:
                self._end_document()

    def array(self) -> Ids:
        """All that was added, without a copy."""
        return np.frombuffer(self._ids, self._dtype)

    def _encode(self, texts: Sequence[_Piece]) -> Sequence[Sequence[int]]:
        tokenizer = self._vocabulary.tokenizer
        if tokenizer is None:
            raise BuildError(f"{texts[0].where}: is text; give a tokenizer")
        ids: Sequence[Sequence[int]] = tokenizer(
            [piece.content for piece in texts], add_special_tokens=False, verbose=False
        )["input_ids"]
        return ids

    def _add(self, ids: Ids, where: str) -> None:
        if not len(ids):
            return
        check_ids(ids, self._vocabulary.vocab_size, where)
        if len(self._ids) + len(ids) >= storage.MAX_TOKENS:
            raise BuildError(f"{where}: more than {storage.MAX_TOKENS - 1} tokens, which is all that a database holds")
        self._ids.frombytes(ids.astype(self._dtype).tobytes())

    def _end_document(self) -> None:
        if len(self._ids) == self._begin:
            return
        if self._ids[-1] != self._vocabulary.separator:
            self._ids.append(self._vocabulary.separator)
        self._begin = len(self._ids)
        self.documents += 1
