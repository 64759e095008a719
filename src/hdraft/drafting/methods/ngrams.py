"""D_c and D_m as published: for each token, the few sequences that followed it, the best first."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.model import ModelDatabase
from hdraft.drafting.drafter import check_ids
from hdraft.drafting.kernel import kernel

MODEL_NGRAMS = 100_000
"""D_m keeps this many n-grams."""


class NgramTable(NamedTuple):
    """The sequences that followed each token, the best first.

    Attributes:
        sequences: int32[vocab_size, guess, ngram_size - 1].
        sizes: int32[vocab_size], how many of a token's `guess` places are taken.
    """

    sequences: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.int32]


def allocate_table(vocab_size: int, ngram_size: int, guess: int) -> NgramTable:
    """A table with nothing in it. Its memory is taken as it fills."""
    return NgramTable(np.empty((vocab_size, guess, ngram_size - 1), np.int32), np.zeros(vocab_size, np.int32))


def table_of_outputs(model_database: ModelDatabase | None, vocab_size: int, ngram_size: int, guess: int) -> NgramTable:
    """D_m: for each token, the `guess` most frequent of `most_frequent_ngrams` that begin with it."""
    table = allocate_table(vocab_size, ngram_size, guess)
    if model_database is not None:
        ngrams = most_frequent_ngrams((check_ids(ids, vocab_size) for ids in model_database.documents()), ngram_size)
        order = np.argsort(ngrams[:, 0], kind="stable")
        keys = ngrams[order, 0]
        place = np.arange(len(keys)) - np.searchsorted(keys, keys)
        kept = place < guess
        table.sequences[keys[kept], place[kept]] = ngrams[order[kept], 1:]
        table.sizes[:] = np.minimum(np.bincount(keys, minlength=vocab_size), guess)
    return table


def most_frequent_ngrams(documents: Iterable[npt.NDArray[np.integer]], ngram_size: int) -> npt.NDArray[np.int32]:
    """The `MODEL_NGRAMS` n-grams that occur in the most documents, the most frequent first, earlier ones before later.

    Returns:
        int32[n, ngram_size].

    >>> most_frequent_ngrams([np.array([5, 6, 7]), np.array([6, 7, 6, 7])], ngram_size=2).tolist()
    [[6, 7], [5, 6], [7, 6]]
    """
    windows, owners = [np.empty((0, ngram_size), np.int32)], [np.empty(0, np.int64)]
    for index, document in enumerate(documents):
        if len(document) >= ngram_size:
            windows.append(np.lib.stride_tricks.sliding_window_view(np.asarray(document, np.int32), ngram_size))
            owners.append(np.full(len(windows[-1]), index))
    ngrams, owner = np.concatenate(windows), np.concatenate(owners)
    order = np.lexsort(ngrams.T[::-1])  # stable: equal n-grams stay in the order of their occurrence
    ngrams, owner = ngrams[order], owner[order]
    first = np.ones(len(ngrams), np.bool_)  # the n-gram's first occurrence
    first[1:] = np.any(ngrams[1:] != ngrams[:-1], axis=1)
    counted = first.copy()  # its first occurrence in a document
    counted[1:] |= owner[1:] != owner[:-1]
    heads = np.flatnonzero(first)
    frequency = np.add.reduceat(counted, heads, dtype=np.int64) if len(heads) else heads
    return ngrams[heads[np.lexsort((order[heads], -frequency))[:MODEL_NGRAMS]]]


@kernel
def file_text(table: NgramTable, text: npt.NDArray[np.int32], new: int) -> None:
    """File the n-grams that end in the last `new` tokens of `text`."""
    ngram_size = table.sequences.shape[2] + 1
    for end in range(max(len(text) - new + 1, ngram_size), len(text) + 1):
        _file(table, text[end - ngram_size : end])


@kernel
def file_ngrams(table: NgramTable, ngrams: npt.NDArray[np.int32]) -> None:
    """File each of `ngrams`, int32[m, ngram_size]."""
    for ngram in ngrams:
        _file(table, ngram)


@kernel
def _file(table: NgramTable, ngram: npt.NDArray[np.int32]) -> None:
    """Put an n-gram first in the list of its first token; the last one of a full list makes room."""
    token = ngram[0]
    sequences = table.sequences[token]
    guess, length = sequences.shape
    size = table.sizes[token]
    place = 0
    while place < size:
        same = 0
        while same < length and sequences[place, same] == ngram[same + 1]:
            same += 1
        if same == length:
            break
        place += 1
    if place == size and size < guess:
        table.sizes[token] += 1
    for i in range(min(place, guess - 1), 0, -1):
        for j in range(length):
            sequences[i, j] = sequences[i - 1, j]
    for j in range(length):
        sequences[0, j] = ngram[j + 1]
