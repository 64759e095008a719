"""A database's memory of its tokenizer: which token has which id.

A fingerprint tells whether two tokenizers are the same. Where they are not, the hashes of their tokens, four bytes an
id, tell whether they agree on the ids that both have, as they do where tokens were added to one.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

TokenHashes = npt.NDArray[np.uint32]
"""uint32[vocab_size], for each id the hash of its token, or 0 where it has none."""

_REMOVED = 8


class Tokenizer(Protocol):
    """The part of a tokenizer that is needed; every Hugging Face tokenizer has it."""

    def get_vocab(self) -> dict[str, int]: ...  # noqa: D102
    def __len__(self) -> int: ...


def tokenizer_fingerprint(tokenizer: Tokenizer | str | None) -> str | None:
    """The SHA-256 of a tokenizer's vocabulary, added tokens too; a fingerprint or None passes through.

    Equal for tokenizers that give the same id to the same token: loaded again, fast or slow.
    """
    if tokenizer is None or isinstance(tokenizer, str):
        return tokenizer
    return _fingerprint(len(tokenizer), _by_id(tokenizer))


def fingerprints_before(tokenizer: Tokenizer) -> Iterator[str]:
    """The fingerprints of a tokenizer before its last id was added, the one before that, and a few more."""
    vocabulary = _by_id(tokenizer)
    for removed in range(1, min(_REMOVED + 1, len(vocabulary))):
        yield _fingerprint(len(tokenizer) - removed, vocabulary[:-removed])


def token_hashes(tokenizer: Tokenizer, vocab_size: int) -> TokenHashes:
    """The hash of each token by its id, read-only; ids from `vocab_size` on are left out."""
    hashes = np.zeros(vocab_size, np.uint32)
    for index, token in reversed(_by_id(tokenizer)):  # of two tokens with one id, the first counts
        if 0 <= index < vocab_size:
            hashes[index] = _hash(token)
    hashes.flags.writeable = False
    return hashes


def first_conflict(one: TokenHashes, other: TokenHashes) -> int | None:
    """The first id that is one token here and another one there; None if there is none."""
    n = min(len(one), len(other))
    differ = np.flatnonzero((one[:n] != other[:n]) & (one[:n] != 0) & (other[:n] != 0))
    return int(differ[0]) if len(differ) else None


def describe_conflict(index: int, tokenizer: Tokenizer, stored: TokenHashes) -> str:
    """Say which token an id is for a tokenizer, and which it was for the stored one, if this one has that token."""
    vocabulary = _by_id(tokenizer)
    here = next(token for i, token in vocabulary if i == index)
    there = next((repr(token) for _, token in vocabulary if _hash(token) == stored[index]), "another token")
    return f"token id {index} is {there} there and {here!r} here"


def _by_id(tokenizer: Tokenizer) -> list[tuple[int, str]]:
    return sorted((index, token) for token, index in tokenizer.get_vocab().items())


def _fingerprint(size: int, vocabulary: list[tuple[int, str]]) -> str:
    return hashlib.sha256(json.dumps([size, vocabulary]).encode()).hexdigest()


def _hash(token: str) -> int:
    digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "little") or 1
