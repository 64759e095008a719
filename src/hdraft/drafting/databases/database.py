"""The base of D_m and D_s: documents of token ids as a suffix array, made, saved and loaded."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases import storage
from hdraft.drafting.databases.sorting import build
from hdraft.drafting.databases.suffixes import SuffixArray
from hdraft.drafting.databases.vocabulary import (
    TokenHashes,
    Tokenizer,
    first_conflict,
    token_hashes,
    tokenizer_fingerprint,
)
from hdraft.drafting.drafter import TokenIds


class Database:
    """Documents of token ids, one after another, each ended by the separator, and their suffix array.

    Attributes:
        vocab_size: ids are below it.
        eos_token_id: the end-of-sequence id, or None.
        separator: what ends a document: the end-of-sequence id, or `vocab_size` where there is none.
        tokenizer: the fingerprint of the tokenizer that the ids belong to, or None if unknown.
        token_hashes: the hash of each of its tokens by id, or None if unknown.
        array: the suffix array; read-only, perhaps memory-mapped.
    """

    kind: ClassVar[storage.Kind]

    def __init__(
        self,
        vocab_size: int,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer | str | None = None,
        array: SuffixArray | None = None,
    ) -> None:
        if not 1 <= vocab_size <= storage.MAX_VOCAB_SIZE:
            raise ValueError(f"vocab_size is {vocab_size}: it must be from 1 to {storage.MAX_VOCAB_SIZE}")
        if eos_token_id is not None and not 0 <= eos_token_id < vocab_size:
            raise ValueError(f"eos_token_id is {eos_token_id}, outside the vocabulary of {vocab_size} ids")
        self.vocab_size = vocab_size
        self.eos_token_id = eos_token_id
        self.separator = vocab_size if eos_token_id is None else eos_token_id
        self.tokenizer = tokenizer_fingerprint(tokenizer)
        self.token_hashes: TokenHashes | None = None
        if tokenizer is not None and not isinstance(tokenizer, str):
            self.token_hashes = token_hashes(tokenizer, vocab_size)
        self.array = self._sorted(()) if array is None else array

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.tokens)} tokens, vocab_size={self.vocab_size})"

    @property
    def tokens(self) -> npt.NDArray[np.unsignedinteger]:
        """The documents, one after another."""
        return self.array.tokens

    @classmethod
    def from_tokens(
        cls,
        tokens: TokenIds,
        vocab_size: int,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer | str | None = None,
    ) -> Self:
        """Build a database in memory from one array of documents.

        Args:
            tokens: [n] ids, each document ended by `eos_token_id` (by the id `vocab_size` if that is None); the last
                one's end may be missing.
            vocab_size: ids must be below it.
            eos_token_id: the end-of-sequence id, if there is one.
            tokenizer: what the ids belong to: a tokenizer or its fingerprint.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        database = cls(vocab_size, eos_token_id, tokenizer)
        database.array = database._sorted(tokens)
        return database

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[TokenIds],
        vocab_size: int,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer | str | None = None,
    ) -> Self:
        """Build a database in memory from documents; an end-of-sequence id is added to those that lack it.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        database = cls(vocab_size, eos_token_id, tokenizer)
        ended = [document for ids in documents if len(document := database._document(ids)) > 1]
        database.array = database._sorted(np.concatenate(ended) if ended else ())
        return database

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        tokenizer: Tokenizer | str | None = None,
        vocab_size: int | None = None,
        verify: bool = False,
    ) -> Self:
        """Open a database from a folder or from the Hub, memory-mapped: nothing of size is read.

        Args:
            name_or_path: a folder, or a repository's name (`owner/name`).
            tokenizer: the model's tokenizer; a database built with one that gives an id to another token is refused,
                and one that holds an id which this one lacks.
            vocab_size: the model's; a database for another is refused, unless the tokenizer is known to be the same.
            verify: compare checksums, which reads everything.

        Raises:
            DatabaseError: there is none, or it does not fit, or it is damaged.
        """
        manifest, arrays = storage.load(name_or_path, cls.kind, tokenizer, vocab_size, verify)
        hashes = arrays.pop("vocabulary", None)
        database = cls(manifest.vocab_size, manifest.eos_token_id, manifest.tokenizer, SuffixArray(**arrays))
        if hashes is not None:
            database.token_hashes = hashes
        elif manifest.tokenizer is not None and tokenizer is not None and not isinstance(tokenizer, str):
            database.token_hashes = token_hashes(tokenizer, manifest.vocab_size)  # it fits: remembered when saved
        return database

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write the database to a folder; one of the same kind that is there is replaced at once or not at all.

        Raises:
            DatabaseError: the folder holds something else, or cannot be written.
        """
        array = self._to_save()
        documents = int(np.count_nonzero(array.tokens == self.separator))
        arrays = {name: values for name, values in array._asdict().items() if name in storage.REQUIRED or len(values)}
        if self.token_hashes is not None:
            arrays["vocabulary"] = self.token_hashes
        storage.save(folder, self.kind, self.vocab_size, self.eos_token_id, self.tokenizer, documents, arrays)

    def push_to_hub(self, repo_id: str) -> str:
        """Upload the database to the Hub as `owner/name`; returns the repository's address.

        Raises:
            DatabaseError: the Hub refused, or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return storage.upload(folder, repo_id)

    def documents(self) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        """The documents from the oldest to the newest, without what ends them; empty ones are left out."""
        return self._split(self.tokens)

    def check_fits(self, vocab_size: int) -> None:
        """Raise `ValueError` for a larger vocabulary than a model's, unless it is known which of its ids are stored."""
        held = self.vocab_size
        if self.token_hashes is not None:
            held = 1 + int(max(np.flatnonzero(np.diff(self.array.starts)[: self.vocab_size]), default=-1))
        if held > vocab_size:
            raise ValueError(
                f"the database holds a vocabulary of {held} ids and the model one of {vocab_size}: "
                "build it with this model's tokenizer"
            )

    def fits(self, other: "Database") -> bool:
        """Whether one drafter can use two databases: they may be of one tokenizer, before and after it was added to."""
        if self.tokens.dtype != other.tokens.dtype:
            return False
        if self.token_hashes is not None and other.token_hashes is not None:
            return first_conflict(self.token_hashes, other.token_hashes) is None
        return self.vocab_size == other.vocab_size

    def _to_save(self) -> SuffixArray:
        return self.array

    def _split(self, tokens: npt.NDArray[np.unsignedinteger]) -> Iterator[npt.NDArray[np.unsignedinteger]]:
        begin = 0
        for end in np.flatnonzero(tokens == self.separator).tolist():
            if end > begin:
                yield tokens[begin:end]
            begin = end + 1

    def _document(self, ids: TokenIds) -> npt.NDArray[np.unsignedinteger]:
        """One document, checked and ended."""
        document = self._checked(ids, self.vocab_size)
        if not len(document) or document[-1] != self.separator:
            document = np.append(document, np.array(self.separator, document.dtype))
        return document

    def _sorted(self, ids: TokenIds) -> SuffixArray:
        tokens = self._checked(ids, max(self.vocab_size, self.separator + 1))
        if len(tokens) and tokens[-1] != self.separator:
            tokens = np.append(tokens, np.array(self.separator, tokens.dtype))
        return build(tokens, self.vocab_size, self.separator)

    def _checked(self, ids: TokenIds, limit: int) -> npt.NDArray[np.unsignedinteger]:
        """`ids` in the database's type; all must be below `limit`."""
        array = np.asarray(ids)
        dtype = storage.id_dtype(self.vocab_size)
        if not array.size:
            return np.empty(0, dtype)
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise ValueError(f"token ids must be a list or a 1-D array of integers, not {array.ndim}-D {array.dtype}")
        if len(array) > storage.MAX_TOKENS - 1:
            raise ValueError(f"{len(array)} tokens are more than a database holds ({storage.MAX_TOKENS - 1})")
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= limit:
            raise ValueError(f"token id {low if low < 0 else high} is outside the vocabulary of {self.vocab_size} ids")
        return np.ascontiguousarray(array, dtype)
