"""How a database lies on disk, and how it travels to and from the Hugging Face Hub.

A database is a folder:

    manifest.json                     what it holds, and the name, size and SHA-256 of each array
    tokens-0f3a….npy                  uint16[n] or uint32[n]
    suffixes-9c41….npy                uint32[n]
    starts-77be….npy                  uint32[vocab_size + 2]
    contexts-51d0….npy                uint32[k, 4]            of D_s: its frequent contexts, if it has any
    continuations-e8b3….npy           uint32[m, 3]
    vocabulary-c0d9….npy              uint32[vocab_size]      of a known tokenizer: a hash of each token

Arrays are named by their hash, so new ones never touch old ones. They are written and synced first, the manifest is
replaced last, and old arrays are removed after that: whatever interrupts it, the folder holds the old database or the
new one.
Arrays are memory-mapped, never unpickled; opening a database reads the manifest and `starts`, nothing else.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from hdraft import files
from hdraft.drafting.databases.vocabulary import (
    Tokenizer,
    describe_conflict,
    fingerprints_before,
    first_conflict,
    token_hashes,
    tokenizer_fingerprint,
)
from hdraft.text import parse_json

FORMAT = "hdraft-database"
VERSION = 1
MANIFEST = "manifest.json"
MAX_VOCAB_SIZE = 2**31 - 2
MAX_TOKENS = 2**32 - 1

Kind = Literal["model", "statistics"]
Array = npt.NDArray[np.unsignedinteger]
Layout = dict[str, tuple[np.dtype[np.unsignedinteger], tuple[int, ...]]]

REQUIRED = ("tokens", "suffixes", "starts")
"""The arrays that every database has."""

_COUNTED = {"contexts": 4, "continuations": 3}  # those of D_s where contexts are frequent, and their columns
_LARGEST_MANIFEST = 1 << 20
_LARGEST_HEADER = 1 << 12
_CHUNK = 1 << 22
_LOOKS = 100  # at a database that is replaced while it is read
_TEMPORARY = "hdraft-writing.tmp"
_ARRAYS = "tokens|suffixes|starts|contexts|continuations|vocabulary"
_OURS = re.compile(rf"({_ARRAYS})-[0-9a-f]{{16}}\.npy|{re.escape(_TEMPORARY)}")


class DatabaseError(ValueError):
    """A database that cannot be used or written; one line that says what is wrong and what to do.

    Where the machine is at fault (a full disk, say), `__cause__` is the `OSError`.
    """


def is_array(name: str) -> bool:
    """Whether this is the name of a file that holds a database's array."""
    return name.endswith(".npy") and _OURS.fullmatch(name) is not None


def id_dtype(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The type of token ids: uint16 where `vocab_size` ids and a separator beyond them fit, else uint32."""
    return np.dtype(np.uint16 if vocab_size < 2**16 else np.uint32)


@dataclass(frozen=True)
class StoredArray:
    """One array's entry in the manifest: `bytes` and `sha256` are those of the whole file."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a database. `eos_token_id` None: documents are separated by the id `vocab_size`."""

    kind: Kind
    vocab_size: int
    eos_token_id: int | None
    tokenizer: str | None
    tokens: int
    documents: int
    arrays: Mapping[str, StoredArray]

    def to_json(self) -> str:
        """The text of `manifest.json`."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "eos_token_id": self.eos_token_id,
                "tokenizer": self.tokenizer,
                "counts": {"tokens": self.tokens, "documents": self.documents},
                "arrays": {name: asdict(array) for name, array in self.arrays.items()},
            },
            indent=1,
        )

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read and check a folder's manifest.

        Raises:
            DatabaseError: there is none, or it is not one that this version reads.
        """
        fields = _manifest_fields(folder)
        version = fields.get("version")
        if not _is_count(version) or version < 1:
            raise DatabaseError(f"{folder / MANIFEST} is damaged (version {version!r}): build the database again")
        if version > VERSION:
            raise DatabaseError(f"{folder} has format version {version}, newer than {VERSION}: upgrade hdraft")
        try:
            return cls._parse(fields)
        except (KeyError, TypeError, ValueError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DatabaseError(f"{folder / MANIFEST} is damaged ({what}): build the database again") from None

    @classmethod
    def _parse(cls, fields: Mapping[str, Any]) -> "Manifest":
        def require(condition: bool, name: str) -> None:
            if not condition:
                raise ValueError(f"a wrong {name}")

        kind, vocab_size, eos = fields["kind"], fields["vocab_size"], fields["eos_token_id"]
        tokenizer, tokens, documents = fields["tokenizer"], fields["counts"]["tokens"], fields["counts"]["documents"]
        require(kind in ("model", "statistics"), "kind")
        require(_is_count(vocab_size) and 1 <= vocab_size <= MAX_VOCAB_SIZE, "vocab_size")
        require(eos is None or (_is_count(eos) and eos < vocab_size), "eos_token_id")
        require(tokenizer is None or isinstance(tokenizer, str), "tokenizer")
        require(_is_count(tokens) and tokens <= MAX_TOKENS and _is_count(documents), "counts")
        arrays = {}
        counted = kind == "statistics" and any(name in fields["arrays"] for name in _COUNTED)
        layout = _layout(vocab_size, tokens, "vocabulary" in fields["arrays"])
        for name in (*layout, *_COUNTED) if counted else layout:
            entry = fields["arrays"][name]
            if name in layout:
                dtype, shape = layout[name]
            else:
                rows = tuple(entry["shape"])[:1]
                require(all(_is_count(n) and 1 <= n <= tokens for n in rows), f"type or shape of {name}")
                dtype, shape = np.dtype(np.uint32), (*rows, _COUNTED[name])
            array = StoredArray(entry["file"], entry["dtype"], tuple(entry["shape"]), entry["bytes"], entry["sha256"])
            require(isinstance(array.file, str) and _OURS.fullmatch(array.file) is not None, f"file of {name}")
            require(array.dtype == dtype.name and array.shape == shape, f"type or shape of {name}")
            header = array.bytes - math.prod(shape) * dtype.itemsize if _is_count(array.bytes) else -1
            require(0 < header <= _LARGEST_HEADER, f"size of {name}")
            require(isinstance(array.sha256, str), f"sha256 of {name}")
            arrays[name] = array
        return cls(kind, vocab_size, eos, tokenizer, tokens, documents, arrays)


def load(
    name_or_path: str | os.PathLike[str],
    kind: Kind | None,
    tokenizer: Tokenizer | str | None = None,
    vocab_size: int | None = None,
    verify: bool = False,
) -> tuple[Manifest, dict[str, Array]]:
    """Open a database: its manifest, and its arrays, read-only and memory-mapped.

    Args:
        name_or_path: a folder, or a repository on the Hub (`owner/name`).
        kind: what it must be; None for any.
        tokenizer: the tokenizer, or its fingerprint, whose ids it must hold.
        vocab_size: the model's; checked unless the tokenizers settle it (a model may have ids to spare).
        verify: read everything and compare checksums.

    Raises:
        DatabaseError: there is no such database, or it does not fit, or it is damaged.
    """
    folder = locate(name_or_path)
    for _ in range(_LOOKS):
        with _held(folder / MANIFEST) as replaced:
            manifest = Manifest.read(folder)
            if kind is not None and manifest.kind != kind:
                raise DatabaseError(f"{folder} is a {manifest.kind} database where a {kind} database is needed")
            try:
                arrays = {name: _open(folder, array, verify) for name, array in manifest.arrays.items()}
                break
            except FileNotFoundError as error:
                if not replaced():
                    missing = Path(error.filename).name
                    raise DatabaseError(f"{folder} lacks {missing}: build it again, or download it again") from None
            except OSError as error:
                raise DatabaseError(f"cannot read the database {folder}: {error.strerror or error}") from error
    else:
        raise DatabaseError(f"{folder} is being replaced over and over: try again when nothing writes to it")
    starts = arrays["starts"] = np.array(arrays["starts"])  # in memory: it must stay what was checked
    if starts[0] != 0 or starts[-1] != manifest.tokens or (starts[1:] < starts[:-1]).any():
        raise _damaged(folder / manifest.arrays["starts"].file)
    starts.flags.writeable = False
    _check_vocabulary(folder, manifest, arrays, tokenizer, vocab_size)
    return manifest, arrays


def save(
    folder: str | os.PathLike[str],
    kind: Kind,
    vocab_size: int,
    eos_token_id: int | None,
    tokenizer: str | None,
    documents: int,
    arrays: Mapping[str, Array],
) -> None:
    """Write a database, in place of the one in `folder` if there is one of the same kind.

    Raises:
        DatabaseError: the folder holds something else, another process is writing it, or the disk is full; the old
            database is then untouched and nothing new is left behind.
    """
    folder = Path(folder)
    check_target(folder, kind)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files.exclusive(folder):
            check_target(folder, kind)  # another process may have written since
            try:
                stored = {name: _write_array(folder, name, array) for name, array in arrays.items()}
                _sync_folder(folder)
                tokens = len(arrays["tokens"])
                manifest = Manifest(kind, vocab_size, eos_token_id, tokenizer, tokens, documents, stored)
                files.replace(folder / MANIFEST, manifest.to_json().encode(), folder / _TEMPORARY)
                _sync_folder(folder)
            finally:
                _sweep(folder)
    except OSError as error:
        for path in created if not isinstance(error, BlockingIOError) else ():  # or they are another process's now
            with suppress(OSError):
                path.rmdir()
        raise DatabaseError(f"cannot write the database {folder}: {files.describe(error)}") from error


def check_target(folder: str | os.PathLike[str], kind: Kind) -> None:
    """Raise `DatabaseError` unless a database of this kind may be written to `folder`: nothing else is overwritten."""
    folder = Path(folder)
    try:
        names = [name for name in os.listdir(folder) if not _OURS.fullmatch(name)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise DatabaseError(f"cannot write a database to {folder}: {files.describe(error)}") from error
    if MANIFEST in names:
        there = _manifest_fields(folder)
        if there.get("kind") != kind:
            raise DatabaseError(f"{folder} holds no {kind} database but another: choose another folder")
        if there.get("version") != VERSION:
            raise DatabaseError(f"{folder} holds a database of another format version: choose another folder")
    elif names:
        raise DatabaseError(f"{folder} is not empty and not a database: choose another folder")


def try_target(folder: str | os.PathLike[str], kind: Kind) -> None:
    """Raise `DatabaseError` unless a database of this kind can be written to `folder`: it is tried, and undone."""
    folder = Path(folder)
    check_target(folder, kind)
    try:
        files.try_folder(folder)
        if folder.exists():
            with files.exclusive(folder):
                pass
    except OSError as error:
        raise DatabaseError(f"cannot write the database {folder}: {files.describe(error)}") from error


def inspect(name_or_path: str | os.PathLike[str]) -> dict[str, Any]:
    """The contents of a database, after comparing every checksum.

    Raises:
        DatabaseError: there is no such database, or it is damaged.
    """
    folder = locate(name_or_path)
    manifest, _ = load(folder, None, verify=True)
    size = sum(array.bytes for array in manifest.arrays.values())
    return {
        "folder": str(folder),
        "version": VERSION,
        "kind": manifest.kind,
        "vocab_size": manifest.vocab_size,
        "eos_token_id": manifest.eos_token_id,
        "tokenizer": manifest.tokenizer,
        "tokens": manifest.tokens,
        "documents": manifest.documents,
        "bytes": size,
        "bytes_per_token": size / manifest.tokens if manifest.tokens else None,
        "arrays": {name: asdict(array) for name, array in manifest.arrays.items()},
    }


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a database, downloaded from the Hub if it is a repository's name.

    Raises:
        DatabaseError: neither a folder nor a repository that can be had.
    """
    if not os.fspath(name_or_path):
        raise DatabaseError("a database's name is empty: give a folder, or owner/name on the Hugging Face Hub")
    path = Path(name_or_path)
    if path.is_dir():
        return path
    if path.exists():
        raise DatabaseError(f"{path} is a file: give the folder of a database")
    name = os.fspath(name_or_path)
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", name):
        raise DatabaseError(f"no database at {name}: there is no such folder")
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=[MANIFEST, "*.npy"]))
    except Exception as error:  # the Hub client raises a dozen kinds
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DatabaseError(f"no database at {name}: not a folder, and the Hub has none to give ({reason})") from None


def upload(folder: str | os.PathLike[str], repo_id: str) -> str:
    """Put the database in `folder` on the Hub as the repository `owner/name`, with a card; returns its address.

    The card is written to the folder too, as README.md.

    Raises:
        DatabaseError: the Hub refused, or cannot be reached.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    for _ in range(_LOOKS):
        with _held(folder / MANIFEST) as replaced:
            manifest = Manifest.read(folder)
            card = _CARD.format(repo_id=repo_id, cls=f"{manifest.kind.capitalize()}Database", m=manifest)
            try:
                (folder / "README.md").write_text(card, encoding="utf-8")
                api = HfApi()
                address = api.create_repo(repo_id, exist_ok=True)
                api.upload_folder(
                    repo_id=repo_id,
                    folder_path=os.fspath(folder),
                    allow_patterns=[MANIFEST, "README.md", *(array.file for array in manifest.arrays.values())],
                    delete_patterns="*.npy",
                    commit_message="Upload an hdraft database",
                )
            except Exception as error:
                if not replaced():
                    reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
                    raise DatabaseError(f"cannot upload to {repo_id}: {reason}") from None
            else:
                if not replaced():
                    return str(address)
    raise DatabaseError(f"{folder} is being replaced over and over: try again when nothing writes to it")


_CARD = """---
library_name: hdraft
tags: [speculative-decoding, hdraft]
---
A {m.kind} database for [hdraft](https://arxiv.org/abs/2502.05609): {m.tokens:,} tokens of {m.documents:,} documents,
for a vocabulary of {m.vocab_size:,} ids (tokenizer fingerprint `{m.tokenizer}`).

    from hdraft import {cls}
    database = {cls}.from_pretrained("{repo_id}", tokenizer=tokenizer)
"""


def _layout(vocab_size: int, tokens: int, vocabulary: bool) -> Layout:
    layout: Layout = {
        "tokens": (id_dtype(vocab_size), (tokens,)),
        "suffixes": (np.dtype(np.uint32), (tokens,)),
        "starts": (np.dtype(np.uint32), (vocab_size + 2,)),
    }
    if vocabulary:
        layout["vocabulary"] = (np.dtype(np.uint32), (vocab_size,))
    return layout


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _manifest_fields(folder: Path) -> dict[str, Any]:
    """The manifest as JSON, known only to be one of ours."""
    path = folder / MANIFEST
    try:
        with open(path, "rb") as file:
            text = file.read(_LARGEST_MANIFEST + 1)
        fields = parse_json(text) if len(text) <= _LARGEST_MANIFEST else None
    except FileNotFoundError:
        raise DatabaseError(f"{folder} is not a database: it has no {MANIFEST}") from None
    except OSError as error:
        raise DatabaseError(f"cannot read {path}: {files.describe(error)}") from error
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise DatabaseError(f"{folder} is not a database: its {MANIFEST} is damaged or of another program")
    return fields


def _check_vocabulary(
    folder: Path,
    manifest: Manifest,
    arrays: Mapping[str, Array],
    tokenizer: Tokenizer | str | None,
    vocab_size: int | None,
) -> None:
    """The ids that this tokenizer and the database's both have must be the same tokens."""
    if tokenizer is None or manifest.tokenizer is None:
        if vocab_size is not None and vocab_size != manifest.vocab_size:
            raise DatabaseError(
                f"{folder} is for a vocabulary of {manifest.vocab_size} ids, not {vocab_size}: build one for this model"
            )
        return
    if tokenizer_fingerprint(tokenizer) == manifest.tokenizer:
        return
    another, advice = f"{folder} was built with another tokenizer", "build it again with this model's"
    if isinstance(tokenizer, str):
        raise DatabaseError(f"{another}: {advice}")
    if "vocabulary" not in arrays:  # it remembers no more than the fingerprint
        if manifest.tokenizer in fingerprints_before(tokenizer):
            return
        raise DatabaseError(f"{another}: {advice}")
    stored, ours = arrays["vocabulary"], token_hashes(tokenizer, manifest.vocab_size)
    if (conflict := first_conflict(stored, ours)) is not None:
        raise DatabaseError(f"{another}: {describe_conflict(conflict, tokenizer, stored)}; {advice}")
    held = np.diff(arrays["starts"])[: manifest.vocab_size] > 0
    lacking = np.flatnonzero(held & (stored != 0) & (ours == 0))
    if len(lacking):
        raise DatabaseError(f"{another}: it holds token id {lacking[0]}, which this tokenizer lacks; {advice}")


@contextmanager
def _held(path: Path) -> Iterator[Callable[[], bool]]:
    """A file, and whether another is in its place since: while it is held, no other file gets its number.

    What a file says does not tell: it may say the same again.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield lambda: True
        return

    def replaced() -> bool:
        try:
            return not os.path.samestat(os.fstat(descriptor), os.stat(path))
        except OSError:
            return True

    try:
        yield replaced
    finally:
        os.close(descriptor)


def _open(folder: Path, array: StoredArray, verify: bool) -> Array:
    """Map one array. The manifest's shape and type are already known to be sound; the file must agree."""
    path = folder / array.file
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size != array.bytes:
            raise _damaged(path)
        if verify and hashlib.file_digest(file, "sha256").hexdigest() != array.sha256:
            raise _damaged(path)
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception:  # a header is parsed as a Python literal, which fails in many ways
        raise _damaged(path) from None
    if mapped.dtype != np.dtype(array.dtype) or mapped.shape != array.shape:
        raise _damaged(path)
    return np.asarray(mapped)  # a plain array: the kernels are compiled for nothing else


def _damaged(path: Path) -> DatabaseError:
    return DatabaseError(f"{path} is damaged: build the database again, or download it again")


class _Hashed:
    """A file to write to that counts and hashes what goes through."""

    def __init__(self, file: Any) -> None:
        self.file, self.hash, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> None:
        self.hash.update(data)
        self.bytes += len(data)
        self.file.write(data)


def _write_array(folder: Path, name: str, array: Array) -> StoredArray:
    with files.synced(folder / _TEMPORARY) as file:
        hashed = _Hashed(file)
        np.lib.format.write_array(hashed, array, version=(1, 0), allow_pickle=False)
    digest = hashed.hash.hexdigest()
    stored = StoredArray(f"{name}-{digest[:16]}.npy", array.dtype.name, array.shape, hashed.bytes, digest)
    os.replace(folder / _TEMPORARY, folder / stored.file)
    return stored


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove every array that the manifest does not name: a replaced database's, or an interrupted write's."""
    try:
        kept = {array["file"] for array in _manifest_fields(folder)["arrays"].values()}
    except (DatabaseError, KeyError, TypeError, AttributeError):
        kept = set()
    for name in os.listdir(folder):
        if _OURS.fullmatch(name) and name not in kept:
            with suppress(OSError):
                os.unlink(folder / name)
