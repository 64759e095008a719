"""REST's retrieval (arXiv 2311.08252): the continuations that most often followed a context in D_s.

The published hierarchy asks D_s like this too. With the documents `1 2 3`, `1 2 4` and `1 2 4 5`, the context (1 2) is
followed by (4), twice, and then, once each, by (3) and (4 5).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hdraft.drafting.databases.statistics import StatisticsDatabase
from hdraft.drafting.databases.suffixes import SuffixArray, narrow, occurrences
from hdraft.drafting.kernel import kernel

OCCURRENCES = 5000
"""Retrieval looks at this many occurrences of a context, the first ones in lexicographic order, …"""

CONTINUATION = 10
"""… and this many tokens past it."""


class Retrieval(NamedTuple):
    """A trie of what most often followed a context, the most frequent first, and what it takes to find it.

    Attributes:
        array, separator: D_s and what ends its documents.
        vocab_size: the target's; ids at or above it are left out.
        tokens, parents, depths: int32[choices], as in `DraftTree`.
        counts: int32[choices], how many of the context's occurrences go on like this, …
        begins: int32[choices], … and where these begin in the scratch below.
        marks: int32[choices], for whoever reads the trie.
        positions, following: int64[OCCURRENCES].
    """

    array: SuffixArray
    separator: int
    vocab_size: int
    tokens: npt.NDArray[np.int32]
    parents: npt.NDArray[np.int32]
    depths: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int32]
    marks: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]
    following: npt.NDArray[np.int64]


def suffix_array(database: StatisticsDatabase | None, vocab_size: int) -> tuple[SuffixArray, int]:
    """The arrays of D_s and its separator; empty ones where there is no D_s.

    Raises:
        ValueError: D_s has ids that the target has not.
    """
    if database is None:
        database = StatisticsDatabase(vocab_size)
    database.check_fits(vocab_size)
    return database.array, database.separator


def allocate_retrieval(array: SuffixArray, separator: int, vocab_size: int, choices: int) -> Retrieval:
    """Room to retrieve at most `choices` continuations from D_s."""
    tokens, parents, depths, counts, begins, marks = np.empty((6, choices), np.int32)
    positions, following = np.empty((2, OCCURRENCES), np.int64)
    trie = tokens, parents, depths, counts, begins, marks
    return Retrieval(array, separator, vocab_size, *trie, positions, following)


@kernel
def find(array: SuffixArray, context: npt.NDArray[np.int32]) -> tuple[int, int]:
    """The ranks [low, high) of the texts that begin with `context`, one token at least."""
    low, high = occurrences(array, int(context[0]))
    for length in range(1, len(context)):
        if low < high:
            low, high = narrow(array, low, high, length, int(context[length]))
    return low, high


@kernel
def retrieve(found: Retrieval, low: int, high: int, length: int) -> int:
    """Find what most often followed the context of `length` tokens that begins the texts at ranks [low, high).

    REST's retrieval: of all that followed its first `OCCURRENCES` occurrences, up to `CONTINUATION` tokens long, and
    all prefixes of that, the most frequent; equally frequent ones in the order found. A document's end ends it.

    Returns:
        how many continuations `found` now holds.
    """
    choices = len(found.tokens)
    # Nodes up to `node` are settled; behind it wait those that its occurrences, [begin, end), can still displace.
    size, node, depth, begin, end = 0, -1, 0, 0, min(high - low, OCCURRENCES)
    for i in range(end):
        found.positions[i] = np.int64(found.array.suffixes[low + i]) + length
    while size < choices or found.counts[size - 1] < end - begin:
        if depth < CONTINUATION:
            following = found.following[begin:end]
            _read_following(found, found.positions[begin:end], depth, following)
            first = 0
            for i in range(1, end - begin + 1):
                if i == end - begin or following[i] != following[first]:
                    token = following[first]
                    if token != found.separator and token < found.vocab_size:
                        size = _insert(found, size, node, token, depth + 1, i - first, begin + first)
                    first = i
        node += 1
        if node == size:
            break
        depth = int(found.depths[node])
        begin = int(found.begins[node])
        end = begin + int(found.counts[node])
    return size


@kernel
def _insert(found: Retrieval, size: int, parent: int, token: int, depth: int, count: int, begin: int) -> int:
    """Put a child of `parent` behind all that are as frequent; the last of a full list makes room if it is rarer."""
    if size < len(found.tokens):
        size += 1
    elif size - 1 == parent or found.counts[size - 1] >= count:
        return size
    place = size - 1
    while place - 1 > parent and found.counts[place - 1] < count:
        found.tokens[place] = found.tokens[place - 1]
        found.parents[place] = found.parents[place - 1]
        found.depths[place] = found.depths[place - 1]
        found.counts[place] = found.counts[place - 1]
        found.begins[place] = found.begins[place - 1]
        place -= 1
    found.tokens[place] = token
    found.parents[place] = parent
    found.depths[place] = depth
    found.counts[place] = count
    found.begins[place] = begin
    return size


@kernel
def _read_following(
    found: Retrieval, positions: npt.NDArray[np.int64], offset: int, following: npt.NDArray[np.int64]
) -> None:
    """Fill `following` with the tokens `offset` past `positions`, both sorted by it, which deep suffixes are not."""
    tokens, ordered = found.array.tokens, True
    for i in range(len(positions)):
        position = positions[i] + offset
        following[i] = tokens[position] if position < len(tokens) else found.separator
        ordered &= i == 0 or following[i - 1] <= following[i]
    if not ordered:
        _sort(following, positions)


@kernel
def _sort(keys: npt.NDArray[np.int64], values: npt.NDArray[np.int64]) -> None:
    """Sort both by `keys`, in place: Shell's sort."""
    gap = len(keys) >> 1
    while gap > 0:
        for i in range(gap, len(keys)):
            key, value = keys[i], values[i]
            place = i
            while place >= gap and keys[place - gap] > key:
                keys[place], values[place] = keys[place - gap], values[place - gap]
                place -= gap
            keys[place], values[place] = key, value
        gap >>= 1
